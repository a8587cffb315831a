import * as tf from '@tensorflow/tfjs-core';
import { dense, type DenseParams } from './dense.ts';
import { attentionScale, dotProductAttention } from './dot-product-attention.ts';

export type AttentionParams = {
  /** Query, key and value in one kernel, [D, 3 D]: one large product instead of three. */
  readonly qkv: DenseParams;
  readonly output: DenseParams;
};

export interface AttentionOptions {
  readonly numHeads: number;
  /** Added to the scores, [B, 1, 1, L]. */
  readonly bias?: tf.Tensor;
  /** Scores for where the states stand, [1, A, L, L] or one a row; see `AttentionHeads`. */
  readonly positions?: tf.Tensor | undefined;
}

/**
 * Multi-head self-attention, [B, L, D] to [B, L, D]. `bias` [B, 1, 1, L] is added to the scores: 0 where a position
 * may be looked at, a large negative number where not. Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2.
 */
export function selfAttention(
  params: AttentionParams,
  x: tf.Tensor,
  options: AttentionOptions,
): tf.Tensor {
  return selfAttentionAndKeys(params, x, options).output;
}

/** How much each position looks at each, [B, A, L, L]: the weights of {@link selfAttention}. */
export function attentionWeights(
  { qkv: { kernel, bias } }: AttentionParams,
  x: tf.Tensor,
  options: AttentionOptions,
): tf.Tensor {
  const [batch, length, width] = x.shape as [number, number, number];
  const heads = (at: number): tf.Tensor => {
    const own = tf.slice(kernel, [0, at * width], [-1, width]);
    const params = bias === undefined ? {} : { bias: tf.slice(bias, [at * width], [width]) };
    const packed = tf.reshape(dense({ kernel: own, ...params }, x), [
      batch,
      length,
      options.numHeads,
      -1,
    ]);
    return tf.transpose(packed, [0, 2, 1, 3]); // [B, A, L, D/A]
  };
  const { positions } = options;
  const scale = attentionScale(width / options.numHeads, positions);
  const products = tf.matMul(tf.mul(heads(0), scale), heads(1), false, true);
  const scores = positions === undefined ? products : tf.add(products, positions);
  return tf.softmax(options.bias === undefined ? scores : tf.add(scores, options.bias));
}

/** {@link selfAttention}, and its keys, [B, A, L, D/A]. */
export function selfAttentionAndKeys(
  params: AttentionParams,
  x: tf.Tensor,
  { numHeads, bias, positions }: AttentionOptions,
): { output: tf.Tensor; keys: tf.Tensor } {
  const [batch, length, width] = x.shape as [number, number, number];
  const headWidth = width / numHeads;
  const packed = tf.reshape(dense(params.qkv, x), [batch, length, 3, numHeads, headWidth]);
  const [query, key, value] = tf.unstack(tf.transpose(packed, [2, 0, 3, 1, 4])) as [
    tf.Tensor,
    tf.Tensor,
    tf.Tensor,
  ]; // each [B, A, L, D/A]
  const attended = dotProductAttention({ query, key, value, bias, positions });
  const mixed = tf.transpose(attended, [0, 2, 1, 3]);
  const output = dense(params.output, tf.reshape(mixed, [batch, length, width]));
  return { output, keys: key };
}

/**
 * Multi-head attention of queries [B, Lq, D] to keys and values [B, Lk, D], each cut into heads: [B, Lq, D]. `bias` and
 * `positions`, broadcast to [B, A, Lq, Lk], are added to the scores. Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2.
 */
export function attend(
  query: tf.Tensor,
  key: tf.Tensor,
  value: tf.Tensor,
  { numHeads, bias, positions }: AttentionOptions,
): tf.Tensor {
  const [batch, length, width] = query.shape as [number, number, number];
  const heads = (x: tf.Tensor): tf.Tensor =>
    tf.transpose(tf.reshape(x, [batch, -1, numHeads, width / numHeads]), [0, 2, 1, 3]); // [B, A, L, D/A]
  const given = { query: heads(query), key: heads(key), value: heads(value), bias, positions };
  return tf.reshape(tf.transpose(dotProductAttention(given), [0, 2, 1, 3]), [batch, length, width]);
}
