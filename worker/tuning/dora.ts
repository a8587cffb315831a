/**
 * Weight-decomposed low-rank adaptation: each column of a kernel is a length times a direction; LoRA changes the
 * direction, the length is trained by itself. W' = m (W + A B) / |W + A B|, the norms those of columns and a constant to
 * the gradient. R (in + out) + out parameters a kernel. Source: Liu et al. 2024, arXiv:2402.09353, sec. 4.1 and 4.3.
 *
 * Trained is m - |W|, which begins as zero: gradients and steps are those of m, and a model begins as it was whatever
 * weights it is given.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import type { LowRank } from '../layers/dense.ts';
import { constantOf } from '../tokens/constant.ts';
import type { TensorTree } from '../tree.ts';
import { initByLayer, namedLayers, withLayers, type ByLayer } from './dense-layers.ts';
import { DEFAULT_TARGETS, initLowRank, scaledLowRank, type LoraConfig } from './lora.ts';
import type { TunedModel, Tuning } from './tuning.ts';

export type DoraParams = ByLayer<LowRank & { readonly magnitude: tf.Tensor /* [out] */ }>;

/** @throws VideoloomError `TUNING_NO_TARGET` */
export function initDora(
  init: Initializer,
  params: TensorTree,
  { rank, targets = DEFAULT_TARGETS }: LoraConfig,
): DoraParams {
  return initByLayer(init, namedLayers(params, targets), (own, layer) => ({
    ...initLowRank(own, layer, rank),
    magnitude: own.fill(`${layer.path}/magnitude`, [layer.numOut], 0),
  }));
}

const SMALLEST_NORM = 1e-12;

export function withDora<T extends TensorTree>(params: T, dora: DoraParams, config: LoraConfig): T {
  return withLayers(params, dora, (layer, { a, b, magnitude }) => {
    const change = scaledLowRank({ a, b }, config);
    const before = constantOf(() => tf.sqrt(squaredNorms(layer.kernel)));
    const after = constantOf(() => tf.sqrt(squaredNorms(layer.kernel, change)));
    // A column of zeros has no direction, and stays one.
    const scale = tf.div(tf.add(before, magnitude), tf.maximum(after, SMALLEST_NORM));
    return { ...layer, lora: change, scale };
  });
}

/**
 * Of the columns of W, or of W + A B, which is as large as the kernels of all layers and is not made for it:
 * |w + A b|^2 = |w|^2 + 2 b.(A^T w) + b.(A^T A b).
 */
function squaredNorms(kernel: tf.Tensor, change?: LowRank): tf.Tensor {
  const own = tf.sum(tf.square(kernel), -2); // [..., out]
  if (change === undefined) return own;
  const { a, b } = change;
  const along = tf.sum(tf.mul(b, tf.matMul(a, kernel, true)), -2);
  const added = tf.sum(tf.mul(b, tf.matMul(tf.matMul(a, a, true), b)), -2);
  // Where the change takes a column away, rounding may leave less than nothing.
  return tf.maximum(tf.add(own, tf.add(tf.mul(along, 2), added)), 0);
}

export function dora(config: LoraConfig, { form, decoder }: TunedModel): Tuning<DoraParams> {
  return {
    init: (init) => initDora(init, form, config),
    fixed: {},
    adapted: (params, own) => withDora(params, own, config),
    decoder,
    kind: { tuning: 'dora', alpha: config.alpha },
  };
}
