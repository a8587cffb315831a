import * as tf from '@tensorflow/tfjs-core';
import type { CompiledFunction, Engine } from './backend/engine.ts';
import type { Placement } from './backend/sharded-program.ts';
import type { ObjectiveSums } from './losses/cross-entropy.ts';
import type { VideoLanguageSystem } from './models/system.ts';
import { adamW, type AdamWConfig, type AdamWState } from './optim/adamw.ts';
import { REPLICATED, numDevicesOf, type Sharding } from './stablehlo/sharding.ts';
import { leavesOf, mapTree, numElements, withLeaves, type TensorTree } from './tree.ts';

/** The three programs of a run. Each is compiled once per shape; the same bytes run on every worker. */
export interface Programs<P extends TensorTree> {
  /**
   * Gradient of the scaled sum of losses, and the sums of {@link sums}. The gradient is flat, [number of parameters];
   * where several devices compute it, a tree that lies as the parameters do.
   */
  readonly gradient: CompiledFunction<
    [P, TensorTree, TensorTree, tf.Tensor],
    { readonly gradient: TensorTree; readonly sums: tf.Tensor }
  >;
  /** Parameters and moments after a step; their old buffers are reused. */
  readonly update: CompiledFunction<
    [P, AdamWState<P>, TensorTree, tf.Tensor],
    { readonly params: P; readonly state: AdamWState<P> }
  >;
  /** Loss sum and number of right answers by objective, in the order of the system's objectives, [2 K]. */
  readonly sums: CompiledFunction<[P, TensorTree, TensorTree], tf.Tensor>;
  /** The gradient on the host, flat. */
  readGradient(gradient: TensorTree): Promise<Float32Array>;
  /** A flat gradient on the devices, for {@link update}. */
  uploadGradient(values: Float32Array, params: P): TensorTree;
}

/** How several devices share the programs; with one they have nothing to share. */
export interface StateShardings {
  /** Of parameters, their gradients and their moments, by path. */
  readonly parameters: ReadonlyMap<string, Sharding>;
  /** Of all that a microbatch holds. */
  readonly rows: Sharding;
}

export function compilePrograms<P extends TensorTree>(
  engine: Engine,
  system: Pick<VideoLanguageSystem<P>, 'objectives' | 'sums' | 'decays'>,
  optimizer: AdamWConfig,
  shardings?: StateShardings,
): Programs<P> {
  const isFlat = numDevicesOf(engine.mesh) === 1;
  const rows: Placement = () => shardings?.rows ?? REPLICATED;
  const asParameters: Placement = (path) => shardings?.parameters.get(path) ?? REPLICATED;
  /** Trees like the parameters, below names. */
  const below =
    (...names: readonly string[]): Placement =>
    (path, shape) => {
      const name = names.find((prefix) => path.startsWith(`${prefix}/`));
      return name === undefined ? REPLICATED : asParameters(path.slice(name.length + 1), shape);
    };
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
        const gradient = isFlat
          ? tf.concat(gradients.map((each) => tf.reshape(each, [-1])))
          : withLeaves<TensorTree>(params, gradients);
        return { gradient, sums: sums! };
      },
      {
        name: 'gradient',
        shardings: {
          arguments: [asParameters, undefined, rows],
          results: below('gradient'),
          leading: [2],
        },
      },
    ),
    update: engine.compile(
      (params: P, state: AdamWState<P>, gradient: TensorTree, scalars: tf.Tensor) =>
        adamW(optimizer, {
          params,
          state,
          gradient,
          scalars,
          decays: (path, shape) => system.decays(path, shape),
        }),
      {
        name: 'update',
        donate: [0, 1, 2, 3],
        shardings: {
          arguments: [asParameters, below('first', 'second'), isFlat ? undefined : asParameters],
          results: below('params', 'state/first', 'state/second'),
        },
      },
    ),
    sums: engine.compile(
      (params: P, frozen: TensorTree, batch: TensorTree) =>
        stack(system.sums(params, frozen, batch)),
      { name: 'sums', shardings: { arguments: [asParameters, undefined, rows], leading: [2] } },
    ),
    async readGradient(gradient) {
      if (gradient instanceof tf.Tensor) return (await gradient.data()) as Float32Array;
      const flat = new Float32Array(numElements(gradient));
      let offset = 0;
      for (const [, tensor] of leavesOf(gradient)) {
        flat.set(await tensor.data(), offset);
        offset += tensor.size;
      }
      return flat;
    },
    uploadGradient(values, params) {
      if (isFlat) return engine.upload(values, [values.length]);
      let offset = 0;
      return mapTree<TensorTree>(params, ({ shape, size }) => {
        offset += size;
        return engine.upload(values.subarray(offset - size, offset), shape);
      });
    },
  };
}
