import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Sample } from '../../video/index/sample.ts';
import { joinSegments } from './videobert-segments.ts';

/** Forty segments of 2 s of each of two films, one after the other, with a pause of 10 s in the middle. */
const SEGMENTS: readonly Sample[] = [0, 1].flatMap((file) =>
  Array.from({ length: 40 }, (_, i): Sample => {
    const startSeconds = 2 * i + (i < 20 ? 0 : 10);
    return {
      id: `${file}-${i}`,
      media: [{ file, startSeconds, endSeconds: startSeconds + 2 }],
      text: `word${i}`,
      cues: [{ startSeconds, endSeconds: startSeconds + 1, text: `word${i}` }],
      decodeMegapixels: 1,
    };
  }),
);

test('a share of the segments reaches to the end of the next one, with the words of both', () => {
  const joined = joinSegments(SEGMENTS, { share: 0.5, seed: 1 });
  assert.equal(joined.length, SEGMENTS.length);
  let numJoined = 0;
  for (const [at, sample] of joined.entries()) {
    const own = SEGMENTS[at]!;
    if (sample === own) continue;
    numJoined++;
    const next = SEGMENTS[at + 1]!;
    const [span] = sample.media;
    assert.deepEqual(span, {
      file: own.media[0]!.file,
      startSeconds: own.media[0]!.startSeconds,
      endSeconds: next.media[0]!.endSeconds,
    });
    assert.equal(span.endSeconds - span.startSeconds, 4, 'no pause is reached over, no film');
    assert.equal(sample.text, `${own.text} ${next.text}`);
    assert.deepEqual(sample.cues, [...own.cues, ...next.cues]);
    assert.equal(sample.decodeMegapixels, 2);
  }
  // Binomial(76, 1/2): four standard deviations are 17.
  assert.ok(Math.abs(numJoined - 38) < 17, `${numJoined}`);
  assert.equal(new Set(joined.map(({ id }) => id)).size, joined.length);
});

test('which ones is a function of seed and place, and none unless it is asked for', () => {
  assert.equal(joinSegments(SEGMENTS, { share: 0, seed: 1 }), SEGMENTS);
  const ids = (seed: number): string[] =>
    joinSegments(SEGMENTS, { share: 0.5, seed }).map(({ id }) => id);
  assert.deepEqual(ids(1), ids(1));
  assert.notDeepEqual(ids(1), ids(2));
  const all = joinSegments(SEGMENTS, { share: 1, seed: 1 });
  assert.equal(all.filter((sample, at) => sample !== SEGMENTS[at]).length, 76);
});
