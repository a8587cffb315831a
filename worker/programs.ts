import * as tf from '@tensorflow/tfjs-core';
import type { CompiledFunction, Engine } from './backend/engine.ts';
import type { ObjectiveSums } from './losses.ts';
import type { VideoLanguageSystem } from './models/system.ts';
import { adamW, type AdamWConfig, type AdamWState } from './optim/adamw.ts';
import { leavesOf, withLeaves, type TensorTree } from './tree.ts';

/** The three programs of a run. Each is compiled once per shape; the same bytes run on every worker. */
export interface Programs<P extends TensorTree> {
  /** Gradient of the scaled sum of losses: flat [number of parameters], and the sums of {@link sums}. */
  readonly gradient: CompiledFunction<
    [P, TensorTree, TensorTree, tf.Tensor],
    { readonly gradient: tf.Tensor; readonly sums: tf.Tensor }
  >;
  /** Parameters and moments after a step; their old buffers are reused. */
  readonly update: CompiledFunction<
    [P, AdamWState<P>, tf.Tensor, tf.Tensor],
    { readonly params: P; readonly state: AdamWState<P> }
  >;
  /** Loss sum and number of right answers by objective, in the order of the system's objectives, [2 K]. */
  readonly sums: CompiledFunction<[P, TensorTree, TensorTree], tf.Tensor>;
}

export function compilePrograms<P extends TensorTree>(
  engine: Engine,
  system: VideoLanguageSystem<P>,
  optimizer: AdamWConfig,
): Programs<P> {
  const objectives = Object.keys(system.objectives);
  const stack = (sums: Record<string, ObjectiveSums>): tf.Tensor =>
    tf.stack(objectives.flatMap((name) => [sums[name]!.lossSum, sums[name]!.correct]));
  return {
    gradient: engine.compile(
      (params: P, frozen: TensorTree, batch: TensorTree, scales: tf.Tensor) => {
        const leaves = leavesOf(params).map(([, tensor]) => tensor);
        let sums: tf.Tensor | undefined;
        const total = (...inputs: tf.Tensor[]): tf.Scalar => {
          const own = system.sums(withLeaves(params, inputs), frozen, batch);
          sums = tf.keep(stack(own));
          // Only the losses: the counts of right answers have no gradient.
          const losses = tf.stack(objectives.map((name) => own[name]!.lossSum));
          return tf.sum(tf.mul(losses, scales));
        };
        const gradients = tf.grads(total)(leaves);
        const flat = tf.concat(gradients.map((gradient) => tf.reshape(gradient, [-1])));
        return { gradient: flat, sums: sums! };
      },
      { name: 'gradient' },
    ),
    update: engine.compile(
      (params: P, state: AdamWState<P>, gradient: tf.Tensor, scalars: tf.Tensor) =>
        adamW(optimizer, {
          params,
          state,
          gradient,
          scalars,
          decays: (path, shape) => system.decays(path, shape),
        }),
      { name: 'update', donate: [0, 1, 2, 3] },
    ),
    sums: engine.compile(
      (params: P, frozen: TensorTree, batch: TensorTree) =>
        stack(system.sums(params, frozen, batch)),
      { name: 'sums' },
    ),
  };
}
