import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import {
  crossAttention,
  initCrossAttention,
  type CrossAttentionParams,
} from './cross-attention.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from './norm.ts';

/** Learned queries that look at states once. */
export type QueryPoolParams = {
  readonly queries: tf.Tensor; // [Q, D]
  readonly attention: CrossAttentionParams;
  readonly norm: LayerNormParams;
};

export function initQueryPool(
  init: Initializer,
  path: string,
  { width, numQueries }: { readonly width: number; readonly numQueries: number },
): QueryPoolParams {
  return {
    // As long as a normed state: shorter ones would all look everywhere alike.
    queries: init.normal(`${path}/queries`, [numQueries, width], 1),
    attention: initCrossAttention(init, `${path}/attention`, { width, contextWidth: width }),
    norm: initLayerNorm(init, `${path}/norm`, width),
  };
}

/**
 * States [B, N, D] as many as there are queries, [B, Q, D]: one layer of multi-head attention, and a norm. Source: Yu et
 * al. 2022, arXiv:2205.01917, sec. 3.2, attentional poolers.
 */
export function queryPool(
  { queries, attention, norm }: QueryPoolParams,
  states: tf.Tensor,
  { numHeads, epsilon }: { readonly numHeads: number; readonly epsilon: number },
): tf.Tensor {
  const all = tf.tile(tf.expandDims(queries, 0), [states.shape[0], 1, 1]);
  return layerNorm(norm, crossAttention(attention, all, states, { numHeads }), epsilon);
}
