import * as tf from '@tensorflow/tfjs-core';

import type { Engine } from '../backend/engine.ts';
import type { Runner } from './step-bench.ts';

/** Products of 2048 x 2048 matrices: what a step that were nothing but products would reach, in seconds a FLOP. */
export function openProducts(engine: Engine): Runner {
  const size = 2048;
  const matrix = engine.upload(new Float32Array(size * size).fill(0.5), [size, size]);
  const product = engine.compile((a: tf.Tensor) => tf.matMul(a as tf.Tensor2D, a as tf.Tensor2D), {
    name: 'limit',
  });
  return {
    name: 'limit',
    async steps(count) {
      const seconds: number[] = [];
      for (let i = 0; i < count; i++) {
        const begin = performance.now();
        (await product(matrix)).dispose();
        seconds.push((performance.now() - begin) / 1000 / (2 * size ** 3));
      }
      return { seconds, cpuSeconds: 0, peakBytes: 0 };
    },
    close() {
      matrix.dispose();
    },
  };
}
