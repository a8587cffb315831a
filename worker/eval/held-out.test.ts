import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CAPTIONED, captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { maskPadding } from './held-out.ts';
import { askedSamples } from './held-out-rows.ts';

test('padding counts nothing: rows of one entry and of several, whatever is not a weight as it is', () => {
  const data = Float32Array.from([1, 2, 3, 4, 5, 6, 7, 8]);
  const arrays = {
    rowWeights: { data: data.slice(0, 4), shape: [4] },
    groupWeights: { data, shape: [8] }, // two groups a row
    pairWeights: { data, shape: [4, 2] },
    labels: { data, shape: [8] },
  };
  const masked = maskPadding(arrays, { numRows: 4, numFresh: 3 });
  assert.deepEqual([...masked['rowWeights']!.data], [1, 2, 3, 0]);
  assert.deepEqual([...masked['groupWeights']!.data], [1, 2, 3, 4, 5, 6, 0, 0]);
  assert.deepEqual([...masked['pairWeights']!.data], [1, 2, 3, 4, 5, 6, 0, 0]);
  assert.equal(masked['labels'], arrays.labels);
  assert.equal(maskPadding(arrays, { numRows: 4, numFresh: 4 }), arrays);
});

test('of a last microbatch that is filled up, each held-out question of MERLOT counts its fresh clips alone', async () => {
  const { system, config } = await openCaptioned('merlot', {
    preset: 'tiny',
    // Two groups a clip.
    overrides: ['data.frameSize=16', 'data.windows=8'],
  });
  const clips = captionedRows(config, CAPTIONED.slice(0, 4));
  for (const task of system.heldOutTasks) {
    const alone = task.labels(task.assemble(clips.slice(0, 1)));
    const batch = task.assemble(clips);
    const arrays = maskPadding(batch.arrays, { numRows: 4, numFresh: 1 });
    assert.deepEqual(task.labels({ ...batch, arrays }), alone, task.name);
    if (task.objective !== 'frame-text') {
      const weights = arrays[task.objective === 'masked-token' ? 'maskWeights' : 'pairWeights']!;
      const numCounted = [...weights.data].filter((weight) => weight > 0).length;
      assert.equal(numCounted, alone.length, task.name);
    }
  }
});

test('where not all held-out samples are asked, those that are come from all of them, whoever asks', () => {
  // As an index has them: film by film.
  const heldOut = Array.from({ length: 1000 }, (_, i) => ({
    ...CAPTIONED[0]!,
    id: `${Math.floor(i / 100)}-${i}`,
    text: i % 2 === 0 ? 'a question' : 'another',
  }));
  const limit = 200;
  const asked = askedSamples(heldOut, {}, { limit, seed: 5 });
  assert.equal(new Set(asked).size, limit);
  assert.deepEqual(asked, askedSamples(heldOut, {}, { limit, seed: 5 }));
  assert.notDeepEqual(asked, askedSamples(heldOut, {}, { limit, seed: 6 }));
  for (let film = 0; film < 10; film++) {
    const own = asked.filter((number) => Math.floor(number / 100) === film).length;
    // 20 of 100 expected; four standard deviations of the hypergeometric distribution.
    assert.ok(Math.abs(own - 20) < 4 * Math.sqrt((200 * 0.1 * 0.9 * 800) / 999), `${film}: ${own}`);
  }
  const asks = ({ text }: { readonly text: string }): boolean => text === 'another';
  const some = askedSamples(heldOut, { asks }, { limit, seed: 5 });
  assert.equal(some.length, limit);
  assert.ok(some.every((number) => number % 2 === 1));
  const all = askedSamples(heldOut, { asks }, { limit: 500, seed: 5 });
  assert.deepEqual(
    all,
    Array.from({ length: 500 }, (_, i) => 2 * i + 1),
    'all of them, in their order',
  );
});
