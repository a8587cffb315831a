import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { before, describe, it } from 'node:test';

import '@tensorflow/tfjs-backend-cpu';
import * as tf from '@tensorflow/tfjs-core';

import { openRng } from '../../proto/random.ts';
import { registerGradients } from './gradients.ts';

type Fn = (...inputs: tf.Tensor[]) => tf.Tensor;

describe('tfjs gradients', () => {
  before(async () => {
    registerGradients();
    await tf.setBackend('cpu');
  });

  it('are registered with the engine that tfjs-core uses', () => {
    const inner = createRequire(import.meta.url)('@tensorflow/tfjs-core/dist/engine') as {
      ENGINE: unknown;
    };
    assert.equal(inner.ENGINE, tf.engine());
    const kernels = [tf.Add, tf.BatchMatMul, tf.Softmax, tf.GatherV2, tf.Conv2D, tf.Erf];
    for (const name of kernels) assert(tf.getGradient(name), name);
  });

  const indices = tf.tensor2d(
    [
      [1, 0],
      [2, 2],
      [0, 3],
    ],
    [3, 2],
    'int32',
  );
  const cases: Record<string, { shapes: number[][]; fn: Fn }> = {
    'maximum, broadcast': {
      shapes: [
        [2, 1, 4],
        [3, 1],
      ],
      fn: (a, b) => tf.maximum(a, b),
    },
    'minimum, broadcast': { shapes: [[4], [3, 4]], fn: (a, b) => tf.minimum(a, b) },
    'squaredDifference, broadcast': {
      shapes: [
        [2, 1],
        [2, 3],
      ],
      fn: (a, b) => tf.squaredDifference(a, b),
    },
    'cumsum of a middle axis': { shapes: [[2, 3, 2]], fn: (x) => tf.cumsum(x, 1, true, true) },
    'tile of three axes': { shapes: [[2, 1, 3]], fn: (x) => tf.tile(x, [2, 3, 2]) },
    'prod of two axes': { shapes: [[2, 3, 2]], fn: (x) => tf.prod(x, [0, 2]) },
    'gather with a batch axis': {
      shapes: [[3, 4, 2]],
      fn: (x) => tf.gather(x, indices, 1, 1),
    },
    'gather with a batch axis and an axis between': {
      shapes: [[3, 2, 4]],
      fn: (x) => tf.gather(x, indices, 2, 1),
    },
    'gather of repeated rows': { shapes: [[4, 3]], fn: (x) => tf.gather(x, indices) },
    'where, whose condition depends on it': {
      shapes: [[3, 4]],
      fn: (x) => tf.where(tf.greater(x, 0.1), tf.square(x), tf.mul(x, 3)),
    },
    'matMul with a broadcast batch': {
      shapes: [
        [1, 2, 3],
        [4, 3, 2],
      ],
      fn: (a, b) => tf.matMul(a, b),
    },
    'matMul of transposed inputs with a broadcast batch': {
      shapes: [
        [4, 3, 2],
        [1, 2, 3],
      ],
      fn: (a, b) => tf.matMul(a, b, true, true),
    },
    'unstack of one': { shapes: [[1, 3]], fn: (x) => tf.unstack(x)[0]! },
    'split in one': { shapes: [[2, 3]], fn: (x) => tf.split(x, 1, 1)[0]! },
    'layer norm': {
      shapes: [[3, 5]],
      fn: (x) => {
        const centred = tf.sub(x, tf.mean(x, -1, true));
        return tf.mul(centred, tf.rsqrt(tf.add(tf.mean(tf.square(centred), -1, true), 1e-5)));
      },
    },
  };
  for (const [name, { shapes, fn }] of Object.entries(cases)) {
    it(`of ${name} are those of finite differences`, () => {
      const rng = openRng(11, name);
      const inputs = shapes.map((shape) =>
        tf.tensor(
          Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => rng.normal()),
          shape,
        ),
      );
      const weighted = (...xs: tf.Tensor[]): tf.Tensor => {
        const y = tf.reshape(fn(...xs), [-1]);
        return tf.sum(tf.mul(y, tf.cos(tf.range(0, y.size))));
      };
      const gradients = tf.grads(weighted)(inputs);
      for (const [i, gradient] of gradients.entries()) {
        assert.deepEqual(gradient.shape, inputs[i]!.shape);
        const values = inputs[i]!.dataSync();
        for (const [j, slope] of gradient.dataSync().entries()) {
          const at = (delta: number): number => {
            const moved = values.slice();
            moved[j]! += delta;
            const xs = inputs.with(i, tf.tensor(moved, inputs[i]!.shape));
            return weighted(...xs).dataSync()[0]!;
          };
          const expected = (at(1e-2) - at(-1e-2)) / 2e-2;
          // float32 differences of step 1e-2: rounding about 1e-5, curvature about 1e-3.
          assert(
            Math.abs(slope - expected) < 5e-3 * (1 + Math.abs(expected)),
            `input ${i}[${j}]: ${slope} and ${expected}`,
          );
        }
      }
    });
  }
});
