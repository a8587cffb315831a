import * as tf from '@tensorflow/tfjs-core';
import { leavesOf, mapTree, partsOf, withLeaves, type TensorTree } from '../tree.ts';

export interface AdamWConfig {
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly weightDecay: number;
}

/** Least and greatest value of parameters by their paths. */
export type Bounds = Readonly<Record<string, readonly [least: number, most: number]>>;

/** First and second moments, trees of the parameters' form. */
export type AdamWState<P extends TensorTree> = {
  readonly first: P;
  readonly second: P;
};

export function initAdamW<P extends TensorTree>(params: P): AdamWState<P> {
  const zeros = (): P => mapTree(params, (tensor) => tf.zeros(tensor.shape));
  return { first: zeros(), second: zeros() };
}

/** What changes from step to step, as one float32 vector [4] for {@link adamW}. */
export function adamWScalars(
  { beta1, beta2 }: AdamWConfig,
  {
    step,
    learningRate,
    gradientScale,
  }: { step: number; learningRate: number; gradientScale: number },
): Float32Array {
  return Float32Array.of(
    learningRate,
    gradientScale,
    1 / (1 - beta1 ** step),
    1 / (1 - beta2 ** step),
  );
}

/**
 * One update. `gradient` is a tree like the parameters, or flat: float32 [number of parameters], leaves in the tree's
 * order; it is multiplied by the clip factor in `scalars` ({@link adamWScalars}) first. Weight decay is decoupled, and
 * off for the paths that `decays` refuses, which is told a layer's own shape. What a step takes beyond `bounds` is set
 * back to them. Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
 */
export function adamW<P extends TensorTree>(
  config: AdamWConfig,
  {
    params,
    state,
    gradient,
    scalars,
    decays,
    bounds = {},
  }: {
    readonly params: P;
    readonly state: AdamWState<P>;
    readonly gradient: TensorTree;
    readonly scalars: tf.Tensor;
    readonly decays: (path: string, shape: readonly number[]) => boolean;
    readonly bounds?: Bounds | undefined;
  },
): { readonly params: P; readonly state: AdamWState<P> } {
  const [learningRate, gradientScale, firstCorrection, secondCorrection] = tf.unstack(scalars) as [
    tf.Tensor,
    tf.Tensor,
    tf.Tensor,
    tf.Tensor,
  ];
  const [firsts, seconds] = [leavesOf(state.first), leavesOf(state.second)];
  const gradients = leavesOf(gradient);
  const updated: Record<'params' | 'first' | 'second', tf.Tensor[]> = {
    params: [],
    first: [],
    second: [],
  };
  let offset = 0;
  for (const [index, [path, param]] of leavesOf(params).entries()) {
    const own =
      gradient instanceof tf.Tensor
        ? tf.reshape(tf.slice(gradient, [offset], [param.size]), param.shape)
        : gradients[index]![1];
    offset += param.size;
    const grad = tf.mul(own, gradientScale);
    const first = tf.add(tf.mul(firsts[index]![1], config.beta1), tf.mul(grad, 1 - config.beta1));
    const second = tf.add(
      tf.mul(seconds[index]![1], config.beta2),
      tf.mul(tf.square(grad), 1 - config.beta2),
    );
    const direction = tf.div(
      tf.mul(first, firstCorrection),
      tf.add(tf.sqrt(tf.mul(second, secondCorrection)), config.epsilon),
    );
    const change = decays(path, partsOf(path, param.shape)[0]!.shape)
      ? tf.add(direction, tf.mul(param, config.weightDecay))
      : direction;
    const next = tf.sub(param, tf.mul(change, learningRate));
    const bound = bounds[path];
    updated.params.push(bound === undefined ? next : tf.clipByValue(next, ...bound));
    updated.first.push(first);
    updated.second.push(second);
  }
  return {
    params: withLeaves(params, updated.params),
    state: { first: withLeaves(params, updated.first), second: withLeaves(params, updated.second) },
  };
}
