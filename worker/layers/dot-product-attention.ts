import * as tf from '@tensorflow/tfjs-core';
import { applyPasses, type TracedPasses } from '../traced-passes.ts';

/** What attention is computed of, cut into heads. Each of the K heads of keys and values serves A/K of the queries'. */
export interface AttentionHeads {
  readonly query: tf.Tensor; // [B, A, Lq, W]
  readonly key: tf.Tensor; // [B, K, Lk, W]
  readonly value: tf.Tensor; // [B, K, Lk, W]
  /** Added to the scores, each axis 1 or that of [B, A, Lq, Lk]: a mask, to which no gradient goes. */
  readonly bias?: tf.Tensor | undefined;
  /**
   * Scores for where queries and keys stand, each axis 1 or that of [B, A, Lq, Lk]; they have a gradient. The products of
   * queries and keys are added to them scaled by 1/sqrt(2 W), so that both sums together have the size of one alone.
   */
  readonly positions?: tf.Tensor | undefined;
}

/** What a tfjs backend has beside its kernels if its device's library computes attention in one. */
interface AttentionTracingBackend {
  /** Differentiable by [query, key, value]; undefined where the library has no kernel for them. */
  traceAttention?(heads: Omit<AttentionHeads, 'positions'>): TracedPasses | undefined;
}

/**
 * softmax(query key^T / sqrt(W) + bias) value, [B, A, Lq, W]; one fused kernel where the device has it, unless there are
 * scores of positions, of which such kernels give no gradient.
 * Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2.1; groups: Ainslie et al. 2023, arXiv:2305.13245, sec. 2.2;
 * positions: Ke et al. 2021, arXiv:2006.15595, sec. 3.1, eq. 7.
 */
export function dotProductAttention(heads: AttentionHeads): tf.Tensor {
  const { query, key, value, bias, positions } = heads;
  const fused =
    positions === undefined
      ? (tf.backend() as AttentionTracingBackend).traceAttention?.(heads)
      : undefined;
  if (fused !== undefined) return applyPasses(fused, [query, key, value]);
  const [batch, numHeads, length, width] = query.shape as [number, number, number, number];
  const numGroups = key.shape[1]!;
  // The query heads of a group are rows of one product with their common keys.
  const rows = (x: tf.Tensor): tf.Tensor =>
    numGroups === numHeads
      ? x
      : tf.reshape(x, [batch, numGroups, (numHeads / numGroups) * length, -1]);
  const apart = (x: tf.Tensor): tf.Tensor =>
    numGroups === numHeads ? x : tf.reshape(x, [batch, numHeads, length, -1]);
  const scaled = rows(tf.mul(query, attentionScale(width, positions)));
  const products = apart(tf.matMul(scaled, key, false, true)); // [B, A, Lq, Lk]
  const scores = positions === undefined ? products : tf.add(products, positions);
  const weights = tf.softmax(bias === undefined ? scores : tf.add(scores, bias));
  return apart(tf.matMul(rows(weights), value));
}

/** Of the products of queries and keys of that width. */
export function attentionScale(width: number, positions: tf.Tensor | undefined): number {
  return 1 / Math.sqrt(positions === undefined ? width : 2 * width);
}
