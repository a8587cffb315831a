import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openEngine } from '../backend/engine.ts';
import { binaryCrossEntropySums, crossEntropySums } from '../losses/cross-entropy.ts';
import { transformerBlock, type BlockParams } from '../layers/transformer-block.ts';
import { adamW, adamWScalars, initAdamW } from '../optim/adamw.ts';
import { leavesOf, withLeaves } from '../tree.ts';

/** Layers, losses and optimizer against PyTorch; `fixtures/torch_reference.py` made the figures. */
interface Values {
  readonly shape: readonly number[];
  readonly data: readonly number[];
}
type Reference = {
  readonly block: Record<
    'x' | 'present' | 'weights' | 'y' | 'gradX' | 'gradQkvKernel' | 'gradMlpNormScale',
    Values
  > & {
    readonly numHeads: number;
    readonly params: object;
  };
  readonly crossEntropy: {
    logits: Values;
    labels: number[];
    weights: Values;
    lossSum: number;
    correct: number;
  };
  readonly binary: { logits: Values; labels: Values; weights: Values; lossSum: number };
  readonly adamW: {
    start: Values[];
    learningRate: number;
    weightDecay: number;
    clipNorm: number;
    steps: { gradients: Values[]; norm: number; params: Values[] }[];
  };
};
const REFERENCE = JSON.parse(
  readFileSync(join(import.meta.dirname, 'fixtures/torch-reference.json'), 'utf8'),
) as Reference;

await openEngine({ engine: 'cpu', cacheDir: '' });

const tensor = ({ shape, data }: Values): tf.Tensor => tf.tensor([...data], [...shape], 'float32');

function toTensors(tree: object): tf.Tensor {
  if ('shape' in tree) return tensor(tree as Values);
  return Object.fromEntries(
    Object.entries(tree as Record<string, object>).map(([key, child]) => [key, toTensors(child)]),
  ) as unknown as tf.Tensor;
}

function assertClose(actual: tf.Tensor, expected: Values, tolerance = 2e-5): void {
  assert.deepEqual(actual.shape, expected.shape);
  const values = actual.dataSync();
  for (const [i, value] of expected.data.entries()) {
    assert.ok(
      Math.abs(values[i]! - value) <= tolerance * Math.max(1, Math.abs(value)),
      `element ${i}: ${values[i]} instead of ${value} (float32, ${tolerance})`,
    );
  }
}

test("a block's output and gradients are those of torch.nn.TransformerEncoderLayer", () => {
  const { params, numHeads, x, present, weights, y, gradX, gradQkvKernel, gradMlpNormScale } =
    REFERENCE.block;
  const block = toTensors(params) as unknown as BlockParams;
  const [batch, length] = present.shape as [number, number];
  const bias = tf.mul(tf.sub(tf.reshape(tensor(present), [batch, 1, 1, length]), 1), 1e9);
  const forward = (input: tf.Tensor, ...leaves: tf.Tensor[]): tf.Tensor =>
    transformerBlock(withLeaves(block, leaves), input, { numHeads, bias });
  const leaves = leavesOf(block);
  const tensors = leaves.map(([, leaf]) => leaf);
  // PyTorch leaves padded positions to themselves; only the others are compared.
  const shown = tf.expandDims(tensor(present), -1);
  const visible = (values: tf.Tensor): tf.Tensor => tf.mul(values, shown);
  assertClose(visible(forward(tensor(x), ...tensors)), {
    ...y,
    data: [...visible(tensor(y)).dataSync()],
  });
  const gradients = tf.grads((...inputs: tf.Tensor[]) =>
    tf.sum(tf.mul(forward(inputs[0]!, ...inputs.slice(1)), tensor(weights))),
  )([tensor(x), ...tensors]);
  assertClose(gradients[0]!, gradX, 5e-5);
  const byPath = new Map(leaves.map(([path], i) => [path, gradients[i + 1]!]));
  assertClose(byPath.get('attention/qkv/kernel')!, gradQkvKernel, 5e-5);
  assertClose(byPath.get('mlpNorm/scale')!, gradMlpNormScale, 5e-5);
});

test("losses are PyTorch's, summed over what counts", () => {
  const { crossEntropy: ce, binary } = REFERENCE;
  const sums = crossEntropySums(
    tensor(ce.logits),
    tf.tensor1d(ce.labels, 'int32'),
    tensor(ce.weights),
  );
  assert.ok(Math.abs(sums.lossSum.dataSync()[0]! - ce.lossSum) < 1e-5 * ce.lossSum);
  assert.equal(sums.correct.dataSync()[0], ce.correct);
  const bce = binaryCrossEntropySums(
    tensor(binary.logits),
    tensor(binary.labels),
    tensor(binary.weights),
  );
  assert.ok(Math.abs(bce.lossSum.dataSync()[0]! - binary.lossSum) < 1e-5 * binary.lossSum);
});

test('three clipped steps of AdamW are those of torch.optim.AdamW', () => {
  const { start, steps, learningRate, weightDecay, clipNorm } = REFERENCE.adamW;
  const config = { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weightDecay };
  let params = { decayed: tensor(start[0]!), plain: tensor(start[1]!) };
  let state = initAdamW(params);
  for (const [index, { gradients, norm, params: expected }] of steps.entries()) {
    const gradient = tf.concat(gradients.map((values) => tf.reshape(tensor(values), [-1])));
    const own = Math.sqrt(tf.sum(tf.square(gradient)).dataSync()[0]!);
    assert.ok(Math.abs(own - norm) < 1e-5 * norm);
    const gradientScale = Math.min(1, clipNorm / own);
    const scalars = tf.tensor1d(
      adamWScalars(config, { step: index + 1, learningRate, gradientScale }),
    );
    const decays = (path: string): boolean => path === 'decayed';
    ({ params, state } = adamW(config, { params, state, gradient, scalars, decays }));
    assertClose(params.decayed, expected[0]!, 1e-5);
    assertClose(params.plain, expected[1]!, 1e-5);
  }
});
