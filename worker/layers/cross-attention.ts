import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { attend, type AttentionOptions } from './attention.ts';
import { dense, initDense, type DenseParams } from './dense.ts';

export type CrossAttentionParams = {
  readonly query: DenseParams;
  /** Key and value in one kernel, [C, 2 D]. */
  readonly keyValue: DenseParams;
  readonly output: DenseParams;
};

export function initCrossAttention(
  init: Initializer,
  path: string,
  { width, contextWidth }: { readonly width: number; readonly contextWidth: number },
): CrossAttentionParams {
  return {
    query: initDense(init, `${path}/query`, width, width),
    keyValue: initDense(init, `${path}/keyValue`, contextWidth, 2 * width),
    output: initDense(init, `${path}/output`, width, width),
  };
}

/**
 * Queries [B, Q, D] look at a context [B, N, C]: [B, Q, D]. `bias` [B, 1, 1, N] and `positions` [1, A, Q, N] are added
 * to the scores.
 * Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2.3.
 */
export function crossAttention(
  params: CrossAttentionParams,
  x: tf.Tensor,
  context: tf.Tensor,
  options: AttentionOptions,
): tf.Tensor {
  const [key, value] = tf.split(dense(params.keyValue, context), 2, -1) as [tf.Tensor, tf.Tensor];
  return dense(params.output, attend(dense(params.query, x), key, value, options));
}
