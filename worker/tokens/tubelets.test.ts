import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { tubelets } from './tubelets.ts';

test('a pixel of a window has the same place of all of its frames, in their order', async () => {
  await openCpuEngine();
  const [numWindows, numFrames, height, width, channels] = [2, 3, 2, 2, 3] as const;
  const frames = tf.tensor4d(
    Float32Array.from({ length: 2 * 3 * 2 * 2 * 3 }, (_, i) => i),
    [numWindows * numFrames, height, width, channels],
  );
  const windows = tubelets(frames, numFrames);
  assert.deepEqual(windows.shape, [numWindows, height, width, numFrames * channels]);
  const [from, to] = [await frames.array(), (await windows.array()) as number[][][][]];
  for (const [n, window] of to.entries()) {
    for (const [y, row] of window.entries()) {
      for (const [x, pixel] of row.entries()) {
        const own = from.slice(n * numFrames, (n + 1) * numFrames);
        assert.deepEqual(
          pixel,
          own.flatMap((frame) => frame[y]![x]!),
        );
      }
    }
  }
  assert.equal(tubelets(frames, 1), frames);
});
