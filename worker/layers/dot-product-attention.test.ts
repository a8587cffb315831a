import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openEngine } from '../backend/engine.ts';
import { formulaTensor } from '../test/formula-weights.ts';
import { dotProductAttention } from './dot-product-attention.ts';

const [BATCH, HEADS, FROM, TO, WIDTH] = [2, 2, 3, 4, 5];

/** The sum of what attention gives, in scalars. */
function sumInScalars([query, key, value, positions]: readonly ArrayLike<number>[]): number {
  let sum = 0;
  for (let row = 0; row < BATCH * HEADS; row++) {
    for (let i = 0; i < FROM; i++) {
      const shares = Array.from({ length: TO }, (_, j) => {
        let product = 0;
        for (let w = 0; w < WIDTH; w++) {
          product += query![(row * FROM + i) * WIDTH + w]! * key![(row * TO + j) * WIDTH + w]!;
        }
        const score = positions![((row % HEADS) * FROM + i) * TO + j]!;
        return Math.exp(product / Math.sqrt(2 * WIDTH) + score);
      });
      const total = shares.reduce((a, b) => a + b);
      for (const [j, share] of shares.entries()) {
        for (let w = 0; w < WIDTH; w++) {
          sum += (share / total) * value![(row * TO + j) * WIDTH + w]!;
        }
      }
    }
  }
  return sum;
}

test('scores of positions are added, have a gradient, and keep attention from a kernel that gives none', async () => {
  await openEngine({ engine: 'cpu', cacheDir: '' });
  const heads = (name: string, length: number): tf.Tensor =>
    formulaTensor(name, [BATCH, HEADS, length, WIDTH], { scale: 1 });
  const inputs = [
    ...[heads('query', FROM), heads('key', TO), heads('value', TO)],
    formulaTensor('positions', [1, HEADS, FROM, TO], { scale: 1 }),
  ];
  const backend = tf.backend() as { traceAttention?: () => never };
  backend.traceAttention = () => assert.fail('the fused kernel was asked');
  try {
    const { value, grads } = tf.valueAndGrads((...given: tf.Tensor[]): tf.Scalar => {
      const [query, key, values, positions] = given as [tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor];
      return tf.sum(dotProductAttention({ query, key, value: values, positions }));
    })(inputs);
    const arrays = inputs.map((input) => Float64Array.from(input.dataSync()));
    assert.ok(Math.abs(value.dataSync()[0]! - sumInScalars(arrays)) < 1e-5); // float32
    const gradient = grads[3]!.dataSync();
    assert.equal(gradient.length, arrays[3]!.length);
    const step = 1e-4;
    for (const [i, found] of gradient.entries()) {
      const moved = (by: number): number =>
        sumInScalars(arrays.with(3, arrays[3]!.with(i, arrays[3]![i]! + by)));
      const slope = (moved(step) - moved(-step)) / (2 * step);
      assert.ok(Math.abs(found - slope) < 1e-5, `element ${i}: ${found} instead of ${slope}`);
    }
  } finally {
    delete backend.traceAttention;
  }
});
