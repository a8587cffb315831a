import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openRng } from '../../proto/random.ts';
import {
  cueTimes,
  evenTimes,
  fixedRateTimes,
  keyFrameTimes,
  randomClip,
  sceneTimes,
  windowTimes,
  wordSegments,
} from './frame-sampler.ts';

test('times are the centres of equal segments', () => {
  assert.deepEqual(evenTimes(0, 8, 4), [1, 3, 5, 7]);
  assert.deepEqual(evenTimes(2, 3, 1), [2.5]);
  assert.deepEqual(evenTimes(5, 5, 2), [5, 5]);
});

test('times lie inside the span, ascending and evenly spaced', () => {
  const times = windowTimes({
    startSeconds: 1.7,
    endSeconds: 9.3,
    numWindows: 5,
    framesPerWindow: 3,
  });
  assert.equal(times.length, 15);
  assert.ok(times[0]! > 1.7 && times.at(-1)! < 9.3);
  for (let i = 1; i < times.length; i++)
    assert.ok(Math.abs(times[i]! - times[i - 1]! - 7.6 / 15) < 1e-9);
});

test('a window holds the frames of its own part of the span', () => {
  const times = windowTimes({ startSeconds: 0, endSeconds: 6, numWindows: 3, framesPerWindow: 2 });
  assert.deepEqual(
    times.map((t) => Math.floor(t / 2)),
    [0, 0, 1, 1, 2, 2],
  );
});

test('a fixed rate gives the centres of its segments, and no more than may be', () => {
  const span = { startSeconds: 1, endSeconds: 4.25 };
  assert.deepEqual(
    fixedRateTimes(span, { framesPerSecond: 2, maxFrames: 100 }),
    [1.25, 1.75, 2.25, 2.75, 3.25, 3.75],
  );
  assert.deepEqual(
    fixedRateTimes(span, { framesPerSecond: 2, maxFrames: 3 }),
    evenTimes(1, 4.25, 3),
  );
  const short = { startSeconds: 1, endSeconds: 1.1 };
  assert.deepEqual(fixedRateTimes(short, { framesPerSecond: 2, maxFrames: 3 }), [1.05]);
  const floating = { startSeconds: 0.1, endSeconds: 0.1 + 0.3 }; // 3 segments, a hair less in floating point
  assert.equal(fixedRateTimes(floating, { framesPerSecond: 10, maxFrames: 9 }).length, 3);
});

test('a random clip lies in its span, starts anywhere with equal chance, and is a function of its key', () => {
  const span = { startSeconds: 2, endSeconds: 12 };
  const counts = new Array<number>(10).fill(0);
  for (let sample = 0; sample < 2000; sample++) {
    const clip = randomClip(span, 4, openRng(7, 'clip', 1, sample));
    assert.deepEqual(clip, randomClip(span, 4, openRng(7, 'clip', 1, sample)));
    assert.ok(clip.startSeconds >= 2 && clip.endSeconds <= 12);
    assert.ok(Math.abs(clip.endSeconds - clip.startSeconds - 4) < 1e-12);
    counts[Math.floor(((clip.startSeconds - 2) / 6) * 10)]!++;
  }
  // Chi-squared with 9 degrees of freedom: 27.9 is passed by chance once in 1,000 keys, and the key is fixed.
  assert.ok(counts.reduce((sum, count) => sum + (count - 200) ** 2 / 200, 0) < 27.9, counts.join());
  assert.deepEqual(randomClip(span, 11, openRng(7, 'clip')), span);
});

test('of key frames the nearest to even times are taken, each once if there are enough', () => {
  const keys = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
  const span = { startSeconds: 0, endSeconds: 10 };
  assert.deepEqual(keyFrameTimes(keys, span, 2), [2, 7]);
  assert.deepEqual(keyFrameTimes(keys, span, 10), keys);
  assert.deepEqual(keyFrameTimes([0, 0.1, 0.2, 9], span, 3), [0.1, 0.2, 9]);
  assert.deepEqual(keyFrameTimes([0, 9], span, 4), [0, 0, 9, 9]);
  assert.deepEqual(keyFrameTimes([0, 20], { startSeconds: 5, endSeconds: 10 }, 2), [0, 0]);
  assert.deepEqual(keyFrameTimes([3, 20], { startSeconds: 0, endSeconds: 2 }, 1), [3]);
  const rng = openRng(5, 'keys');
  for (let i = 0; i < 200; i++) {
    const drawn = Array.from({ length: 3 + rng.integer(20) }, () => rng.uniform() * 10);
    const ascending = drawn.sort((a, b) => a - b);
    const chosen = keyFrameTimes(ascending, span, 3);
    assert.equal(new Set(chosen).size, 3);
    assert.ok(
      chosen.every((time, at) => ascending.includes(time) && time >= (chosen[at - 1] ?? 0)),
    );
  }
});

test('scenes are seen in their middle, the longest ones if there are too many', () => {
  const span = { startSeconds: 0, endSeconds: 10 };
  assert.deepEqual(sceneTimes([4, 6], span, 8), [2, 5, 8]);
  assert.deepEqual(sceneTimes([4, 6], span, 2), [2, 8]);
  assert.deepEqual(sceneTimes([], span, 2), [5]);
  assert.deepEqual(
    sceneTimes([0, 4, 6, 10, 12], { startSeconds: 5, endSeconds: 9 }, 8),
    [5.5, 7.5],
  );
});

test('cues are seen in their middle, segments of words between their first and last word', () => {
  const word = (startSeconds: number, text: string) => ({
    ...{ startSeconds, endSeconds: startSeconds + 0.5, text },
  });
  const words = [word(1, 'a'), word(2, 'b'), word(4, 'c'), word(9, 'd'), word(11, 'e')];
  assert.deepEqual(cueTimes(words.slice(0, 2)), [1.25, 2.25]);
  const segments = wordSegments(words, 3);
  assert.deepEqual(
    segments.map(({ text }) => text),
    ['a b c', 'd e'],
  );
  assert.deepEqual(cueTimes(segments), [(1 + 4.5) / 2, (9 + 11.5) / 2]);
});
