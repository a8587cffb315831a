import assert from 'node:assert/strict';

import * as tf from '@tensorflow/tfjs-core';

import { openRng } from '../../../proto/random.ts';

/** Tokens as plain numbers: [B][N][D]. */
export type Plain = number[][][];

/** Normal numbers; the seed names the data. */
export function drawTokens(seed: number, ...shape: readonly [number, number, number]): Plain {
  const rng = openRng(seed, 'tokens');
  const [batch, length, width] = shape;
  const list = <T>(count: number, make: () => T): T[] => Array.from({ length: count }, make);
  return list(batch, () => list(length, () => list(width, () => Math.fround(rng.normal()))));
}

export function toTensor(plain: Plain): tf.Tensor {
  return tf.tensor3d(plain);
}

/** Absolute and relative tolerance, float32. */
export function assertNear(
  actual: tf.Tensor,
  expected: Plain | readonly number[],
  tolerance = 1e-5,
): void {
  const wanted = (expected as number[]).flat(2);
  const values = actual.dataSync();
  assert.equal(values.length, wanted.length);
  for (const [i, want] of wanted.entries()) {
    const isNear = Math.abs(values[i]! - want) <= tolerance * (1 + Math.abs(want));
    assert.ok(isNear, `[${i}] is ${values[i]}, and by the formula ${want}`);
  }
}

/** Compares the gradient of a weighted sum of `fn` with finite differences, float32. */
export function assertGradient(fn: (x: tf.Tensor) => tf.Tensor, x: tf.Tensor): void {
  const weighted = (given: tf.Tensor): tf.Tensor => {
    const y = tf.reshape(fn(given), [-1]);
    return tf.sum(tf.mul(y, tf.cos(tf.range(0, y.size))));
  };
  const slopes = tf.grad(weighted)(x).dataSync();
  const values = x.dataSync();
  for (const [i, slope] of slopes.entries()) {
    const at = (delta: number): number => {
      const moved = values.slice();
      moved[i]! += delta;
      return weighted(tf.tensor(moved, x.shape)).dataSync()[0]!;
    };
    const expected = (at(1e-2) - at(-1e-2)) / 2e-2;
    // Rounding is about 1e-5, curvature about 1e-3.
    const isNear = Math.abs(slope - expected) < 5e-3 * (1 + Math.abs(expected));
    assert.ok(isNear, `gradient [${i}] is ${slope}, by differences ${expected}`);
  }
}
