import * as tf from '@tensorflow/tfjs-core';
import type { CompiledFunction, Engine } from './backend/engine.ts';
import type { Placement } from './backend/sharded-program.ts';
import { VideoloomError } from '../proto/errors.ts';
import type { ObjectiveSums } from './losses/cross-entropy.ts';
import type { Contrast, VideoLanguageSystem } from './systems/system.ts';
import { adamW, type AdamWConfig, type AdamWState } from './optim/adamw.ts';
import { REPLICATED, numDevicesOf, type Sharding } from './stablehlo/sharding.ts';
import { leavesOf, mapTree, numElements, withLeaves, type TensorTree } from './tree.ts';

/** The three programs of a run. Each is compiled once per shape; the same bytes run on every worker. */
export interface Programs<P extends TensorTree> {
  /**
   * Gradient of the scaled sum of losses, and the sums of {@link sums}. The gradient is flat, [number of parameters];
   * where several devices compute it, a tree that lies as the parameters do. `cotangents` are the gradients of a
   * contrast by this microbatch's embeddings; an empty tree where the system has none.
   */
  readonly gradient: CompiledFunction<
    [P, TensorTree, TensorTree, tf.Tensor, TensorTree],
    { readonly gradient: TensorTree; readonly sums: tf.Tensor }
  >;
  /** What a system's contrast compares over the global batch. */
  readonly contrast?: ContrastPrograms<P>;
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

export interface ContrastPrograms<P extends TensorTree> {
  readonly embed: CompiledFunction<[P, TensorTree, TensorTree], Record<string, tf.Tensor>>;
  /** Of the embeddings of the whole batch, with the scales of all objectives. */
  readonly compare: CompiledFunction<
    [P, TensorTree, Record<string, tf.Tensor>, tf.Tensor],
    {
      /** By the embeddings, [all rows, ...] each. */
      readonly cotangents: Record<string, tf.Tensor>;
      /** By the parameters that the comparison uses itself. */
      readonly direct: Record<string, tf.Tensor>;
      /** Loss sum and right answers by objective of the contrast, [2 K]. */
      readonly sums: tf.Tensor;
    }
  >;
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
  system: Pick<
    VideoLanguageSystem<P>,
    'name' | 'objectives' | 'sums' | 'decays' | 'bounds' | 'contrast'
  >,
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
  const stack = (
    sums: Record<string, ObjectiveSums>,
    names: readonly string[] = objectives,
  ): tf.Tensor =>
    tf.stack(
      names.flatMap((name) => {
        const own = sums[name];
        return own === undefined ? [tf.scalar(0), tf.scalar(0)] : [own.lossSum, own.correct];
      }),
    );
  const { contrast } = system;
  return {
    ...(contrast === undefined ? {} : { contrast: contrastPrograms(engine, contrast, objectives) }),
    gradient: engine.compile(
      (
        params: P,
        frozen: TensorTree,
        batch: TensorTree,
        scales: tf.Tensor,
        cotangents: TensorTree,
      ) => {
        const leaves = leavesOf(params).map(([, tensor]) => tensor);
        let sums: tf.Tensor | undefined;
        const total = (...inputs: tf.Tensor[]): tf.Scalar => {
          const tree = withLeaves(params, inputs);
          const both = contrast?.together?.(tree, frozen, batch);
          const own = both?.sums ?? system.sums(tree, frozen, batch);
          sums = tf.keep(stack(own));
          // Only the losses: the counts of right answers have no gradient.
          const losses = tf.stack(objectives.map((name) => own[name]?.lossSum ?? tf.scalar(0)));
          const ownTotal: tf.Scalar = tf.sum(tf.mul(losses, scales));
          if (contrast === undefined) return ownTotal;
          // The chain rule: the comparison's gradient by what is compared, times that by the parameters.
          const embeddings = both?.embeddings ?? contrast.embed(tree, frozen, batch);
          return Object.entries(cotangents as Record<string, tf.Tensor>).reduce<tf.Scalar>(
            (sum, [name, cotangent]) => tf.add(sum, tf.sum(tf.mul(embeddings[name]!, cotangent))),
            ownTotal,
          );
        };
        const gradients = gradientsOf(total, leaves).map((gradient, k) => {
          if (gradient !== undefined) return gradient;
          const [path, { shape }] = leavesOf(params)[k]!;
          // What a comparison alone uses has its gradient from there.
          if (contrast?.parameters.includes(path) === true) return tf.zeros(shape);
          throw new VideoloomError(
            'GRADIENT_MISSING',
            `no loss of ${system.name} depends on the parameter ${path}: name it in train.frozen`,
          );
        });
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
          bounds: system.bounds,
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
      (params: P, frozen: TensorTree, batch: TensorTree) => {
        const own = system.sums(params, frozen, batch);
        // A held-out question may bring what it compares with.
        const isAnswered = contrast?.objectives.every((name) => own[name] !== undefined) ?? true;
        if (contrast === undefined || isAnswered) return stack(own);
        const embeddings = contrast.embed(params, frozen, batch);
        return stack({ ...own, ...contrast.sums(params, embeddings, frozen) });
      },
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

function contrastPrograms<P extends TensorTree>(
  engine: Engine,
  contrast: Contrast<P>,
  objectives: readonly string[],
): ContrastPrograms<P> {
  return {
    embed: engine.compile(
      (params: P, frozen: TensorTree, batch: TensorTree) => contrast.embed(params, frozen, batch),
      { name: 'embed' },
    ),
    compare: engine.compile(
      (params: P, frozen: TensorTree, embeddings: Record<string, tf.Tensor>, scales: tf.Tensor) => {
        const isCompared = (name: string): boolean => !name.endsWith('Ids');
        const names = Object.keys(embeddings).filter(isCompared);
        const leaves = leavesOf(params);
        let sums: tf.Tensor | undefined;
        const total = (...inputs: tf.Tensor[]): tf.Scalar => {
          const compared = {
            ...embeddings,
            ...Object.fromEntries(names.map((name, k) => [name, inputs[k]!])),
          };
          const direct = new Map(
            contrast.parameters.map((path, k) => [path, inputs[names.length + k]!]),
          );
          const tree = withLeaves(
            params,
            leaves.map(([path, tensor]) => direct.get(path) ?? tensor),
          );
          const own = contrast.sums(tree, compared, frozen);
          sums = tf.keep(
            tf.stack(
              contrast.objectives.flatMap((name) => [own[name]!.lossSum, own[name]!.correct]),
            ),
          );
          const losses = tf.stack(contrast.objectives.map((name) => own[name]!.lossSum));
          const ownScales = contrast.objectives.map((name) => objectives.indexOf(name));
          return tf.sum(tf.mul(losses, tf.gather(scales, ownScales)));
        };
        const known = new Map(leaves);
        const direct = contrast.parameters.map((path) => known.get(path)!);
        const wanted = [...names.map((name) => embeddings[name]!), ...direct];
        const gradients = gradientsOf(total, wanted).map(
          (gradient, at) => gradient ?? tf.zerosLike(wanted[at]!),
        );
        return {
          cotangents: Object.fromEntries(names.map((name, k) => [name, gradients[k]!])),
          direct: Object.fromEntries(
            contrast.parameters.map((path, k) => [path, gradients[names.length + k]!]),
          ),
          sums: sums!,
        };
      },
      { name: 'compare' },
    ),
  };
}

/** The gradients of `total` by `inputs`; undefined where it does not depend on one. */
function gradientsOf(
  total: (...inputs: tf.Tensor[]) => tf.Scalar,
  inputs: readonly tf.Tensor[],
): (tf.Tensor | undefined)[] {
  return tf.tidy(() => {
    const { grads } = tf.engine().gradients(() => total(...inputs), [...inputs], undefined, true);
    return grads;
  });
}
