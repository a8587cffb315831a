import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import '@tensorflow/tfjs-backend-cpu';
import * as tf from '@tensorflow/tfjs-core';

import { registerGradients } from '../backend/gradients.ts';
import { preferenceSums, type PreferenceLoss } from './preference.ts';

before(async () => {
  registerGradients();
  await tf.setBackend('cpu');
});

/** Log-probabilities of the preferred answer and of the other one; the third pair is as the reference has it. */
const POLICY = [
  [-3.25, -4.5],
  [-7, -2.125],
  [-1.5, -1.5],
  [-20, -60],
];
const REFERENCE = [
  [-3.75, -4.25],
  [-6, -2.5],
  [-1.5, -1.5],
  [-25, -20],
];
const TOKENS = [
  [3, 5],
  [4, 2],
  [1, 1],
  [6, 9],
];

function sumsOf(policy: tf.Tensor, loss: PreferenceLoss, weights = [1, 1, 1, 1]) {
  const [reference, numTokens] = [tf.tensor(REFERENCE), tf.tensor(TOKENS)];
  return preferenceSums({ policy, reference, numTokens }, tf.tensor1d(weights), loss);
}

// TRL 0.24's dpo_loss in PyTorch 2.13, float64: losses by pair, and their gradients by the policy's log-probabilities.
const FROM_TRL = [
  {
    loss: { loss: 'sigmoid', beta: 0.1, labelSmoothing: 0 },
    losses: [0.65635, 0.764259, 0.693147, 0.011048],
    gradients: [
      [-0.048126, 0.048126],
      [-0.053432, 0.053432],
      [-0.05, 0.05],
      [-0.001099, 0.001099],
    ],
  },
  {
    loss: { loss: 'sigmoid', beta: 0.5, labelSmoothing: 0.1 },
    losses: [0.560623, 1.026101, 0.693147, 2.25],
    gradients: [
      [-0.153667, 0.153667],
      [-0.282705, 0.282705],
      [-0.2, 0.2],
      [0.05, -0.05],
    ],
  },
  {
    loss: { loss: 'ipo', beta: 0.25, labelSmoothing: 0 },
    losses: [3.180278, 5.941406, 4, 10.743827],
    gradients: [
      [-1.188889, 0.713333],
      [-1.21875, 2.4375],
      [-4, 4],
      [1.092593, -0.728395],
    ],
  },
] as const;

for (const { loss, losses, gradients } of FROM_TRL) {
  test(`${loss.loss}, beta ${loss.beta}, smoothed by ${loss.labelSmoothing}: losses and gradients are TRL's`, () => {
    for (const [pair, wanted] of losses.entries()) {
      const weights = losses.map((_, at) => (at === pair ? 1 : 0));
      const got = sumsOf(tf.tensor(POLICY), loss, weights).loss.lossSum.dataSync()[0]!;
      assert.ok(Math.abs(got - wanted) < 2e-6 * Math.max(1, wanted), `${pair}: ${got}, ${wanted}`);
    }
    const own = tf.grad((policy) => sumsOf(policy, loss).loss.lossSum)(tf.tensor(POLICY));
    const got = own.dataSync();
    for (const [at, wanted] of gradients.flat().entries())
      assert.ok(Math.abs(got[at]! - wanted) < 2e-6, `[${at}] ${got[at]!}, ${wanted}`);
  });
}

test('as it begins a policy is indifferent: log 2 a pair, half right, and no margin', () => {
  const loss = { loss: 'sigmoid', beta: 0.1, labelSmoothing: 0 } as const;
  const { loss: sums, margin } = sumsOf(tf.tensor(REFERENCE), loss);
  assert.ok(Math.abs(sums.lossSum.dataSync()[0]! - 4 * Math.log(2)) < 1e-6);
  assert.equal(sums.correct.dataSync()[0], 2);
  assert.equal(margin.lossSum.dataSync()[0], 0);
});

test('a margin is that of the rewards, and a pair without weight counts nowhere', () => {
  const loss = { loss: 'sigmoid', beta: 0.1, labelSmoothing: 0 } as const;
  const { loss: sums, margin } = sumsOf(tf.tensor(POLICY), loss, [1, 1, 1, 0]);
  // 0.1 x ((0.5 + 0.25) + (-1 - 0.375) + 0), of which the first is right and the last is a tie.
  assert.ok(Math.abs(margin.lossSum.dataSync()[0]! - 0.1 * (0.75 - 1.375)) < 1e-6);
  assert.equal(sums.correct.dataSync()[0], 1.5);
});
