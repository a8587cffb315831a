import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CAPTIONED, captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { maskPadding } from './held-out.ts';

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
