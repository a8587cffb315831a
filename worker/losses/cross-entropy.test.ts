import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import '@tensorflow/tfjs-backend-cpu';
import * as tf from '@tensorflow/tfjs-core';

import { registerGradients } from '../backend/gradients.ts';
import { l2Normalize } from '../layers/normalize.ts';
import { crossEntropySums } from './cross-entropy.ts';

before(async () => {
  registerGradients();
  await tf.setBackend('cpu');
});

test('a class that is ruled out has no part in the loss, nor in its gradient', () => {
  const loss = (logits: tf.Tensor): tf.Tensor =>
    crossEntropySums(logits, tf.tensor1d([0], 'int32'), tf.tensor1d([1])).lossSum;
  const { value, grad } = tf.valueAndGrad(loss)(tf.tensor2d([[1, 2, -Infinity]]));
  const p = 1 / (1 + Math.exp(1));
  assert.ok(Math.abs(value.dataSync()[0]! + Math.log(p)) < 1e-6);
  for (const [i, wanted] of [p - 1, 1 - p, 0].entries())
    assert.ok(Math.abs(grad.dataSync()[i]! - wanted) < 1e-6, `[${i}]`);
});

test('a row of zeros is shorter than the floor and has a finite gradient', () => {
  const x = tf.tensor2d([
    [0, 0],
    [3, 4],
  ]);
  const first = (given: tf.Tensor): tf.Tensor =>
    tf.sum(tf.slice(l2Normalize(given, 1e-6), [0, 0], [2, 1]));
  const { value, grad } = tf.valueAndGrad(first)(x);
  assert.ok(Math.abs(value.dataSync()[0]! - 0.6) < 1e-6);
  // Of x / 1e-6, and of x / |x|: (1 - 0.6^2) / 5 and -0.6 * 0.8 / 5.
  for (const [i, wanted] of [1e6, 0, 0.128, -0.096].entries())
    assert.ok(Math.abs(grad.dataSync()[i]! - wanted) <= 1e-6 * Math.max(1, wanted), `[${i}]`);
});
