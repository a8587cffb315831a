import assert from 'node:assert/strict';

import * as tf from '@tensorflow/tfjs-core';

import { openRng } from '../../../proto/random.ts';
import { leavesOf } from '../../tree.ts';
import type { Engine, TensorTree } from '../engine.ts';
import type { TestEngines } from './engines.ts';

/** How test data is drawn: normal, in (0.1, 2), integers below `below`, or booleans. */
export type Draw = 'normal' | 'positive' | 'bool' | { readonly below: number };

export interface Input {
  readonly shape: readonly number[];
  readonly draw: Draw;
}

export interface Case {
  readonly name: string;
  readonly inputs: readonly Input[];
  readonly fn: (...inputs: tf.Tensor[]) => TensorTree;
  /** Whether the gradients with respect to the float inputs are compared too; they are, unless this says no. */
  readonly gradient?: boolean;
  /** Absolute and relative, float32; the default leaves room for sums in another order and polynomial exp and tanh. */
  readonly tolerance?: number;
}

export const normal = (...shape: number[]): Input => ({ shape, draw: 'normal' });
export const positive = (...shape: number[]): Input => ({ shape, draw: 'positive' });
export const bool = (...shape: number[]): Input => ({ shape, draw: 'bool' });
export const int = (below: number, ...shape: number[]): Input => ({ shape, draw: { below } });

/** Compares what both engines give in a compiled function: results, and gradients unless the case has none. */
export async function assertSame(
  { xla, cpu }: TestEngines,
  testCase: Case,
  seed: number,
): Promise<void> {
  const expected = await outputsOf(cpu, testCase, seed);
  const actual = await outputsOf(xla, testCase, seed);
  assert.equal(actual.length, expected.length);
  for (const [i, { path, shape, dtype, values }] of actual.entries()) {
    const want = expected[i]!;
    assert.equal(path, want.path);
    assert.deepEqual(shape, want.shape, `shape of ${path}`);
    assert.equal(dtype, want.dtype, `dtype of ${path}`);
    assertClose(values, want.values, testCase.tolerance ?? 2e-5, path);
  }
}

/** Random integers are drawn as int32; tfjs's gradient engine hands them on as they are. */
export function toInt(x: tf.Tensor): tf.Tensor {
  return tf.cast(x, 'int32');
}

interface Output {
  readonly path: string;
  readonly shape: readonly number[];
  readonly dtype: string;
  readonly values: ArrayLike<number>;
}

/** Forward results, and the gradients of their weighted sum with respect to each float input. */
async function outputsOf(engine: Engine, testCase: Case, seed: number): Promise<Output[]> {
  const inputs = testCase.inputs.map((input, i) => {
    const data = draw(input, seed * 100 + i);
    return engine.upload(data, input.shape);
  });
  const floats = [...inputs.keys()].filter((i) => inputs[i]!.dtype === 'float32');
  const compiled = engine.compile(
    (...given: tf.Tensor[]): TensorTree => {
      const results = testCase.fn(...given);
      if (testCase.gradient === false) return { results };
      const weightedSum = (...xs: tf.Tensor[]): tf.Tensor => {
        const all = given.map((tensor, i) =>
          floats.includes(i) ? xs[floats.indexOf(i)]! : tensor,
        );
        const terms = leavesOf(testCase.fn(...all)).map(([, leaf], term) => {
          // A weight of its own for each element, so that a gradient in the wrong place shows.
          const weights = tf.sin(tf.add(tf.range(0, leaf.size), term));
          return tf.sum(tf.mul(tf.reshape(leaf, [-1]), weights));
        });
        return terms.reduce((a, b) => tf.add(a, b));
      };
      return { results, gradients: tf.grads(weightedSum)(floats.map((i) => given[i]!)) };
    },
    { name: testCase.name },
  );
  const outputs = leavesOf(await compiled(...inputs));
  return Promise.all(
    outputs.map(async ([path, tensor]) => ({
      path,
      shape: tensor.shape,
      dtype: tensor.dtype,
      values: await tensor.data(),
    })),
  );
}

export function draw(
  { shape, draw: kind }: Input,
  seed: number,
): Float32Array | Int32Array | Uint8Array {
  const rng = openRng(7, 'kernels', seed);
  const size = shape.reduce((product, n) => product * n, 1);
  if (kind === 'normal') return Float32Array.from({ length: size }, () => rng.normal());
  if (kind === 'positive')
    return Float32Array.from({ length: size }, () => 0.1 + 1.9 * rng.uniform());
  if (kind === 'bool') return Uint8Array.from({ length: size }, () => rng.integer(2));
  return Int32Array.from({ length: size }, () => rng.integer(kind.below));
}

export function assertClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number,
  what: string,
): void {
  assert.equal(actual.length, expected.length, `size of ${what}`);
  for (let i = 0; i < actual.length; i++) {
    const [a, e] = [actual[i]!, expected[i]!];
    const isClose = Object.is(a, e) || Math.abs(a - e) <= tolerance * (1 + Math.abs(e));
    assert(isClose, `${what}[${i}] is ${a}, and tfjs-backend-cpu says ${e}`);
  }
}
