/** What the blocks of decoder-only language models share: attention to what came before, with grouped heads. */
import * as tf from '@tensorflow/tfjs-core';
import { dense, type DenseParams } from './dense.ts';
import { dotProductAttention } from './dot-product-attention.ts';
import type { KeyValues } from './kv-cache.ts';
import { applyRope, type RopeAngles } from './rope.ts';

/** Separate kernels, so that each can be changed alone (LoRA), and keys may have fewer heads. */
export type DecoderAttentionParams = {
  readonly query: DenseParams; // D to A W
  readonly key: DenseParams; // D to K W
  readonly value: DenseParams; // D to K W
  readonly output: DenseParams; // A W to D
  /** What stands in place of the first keys and values of every row, [K, P, W]; see tuning/prefix.ts. */
  readonly prefix?: KeyValues;
};

/** What a block sees beside the states. */
export interface BlockContext {
  /** Added to the scores, [B, 1, L, S + L] for S slots of `past`. */
  readonly bias: tf.Tensor;
  /** Scores for where the states stand, [1, A, L, S + L]; see `AttentionHeads`. */
  readonly positions?: tf.Tensor | undefined;
  readonly rope?: RopeAngles;
  /** Of this layer, from earlier tokens. */
  readonly past?: KeyValues;
}

/** States after a block, [B, L, D], and the keys and values of its tokens, [B, K, L, W]. */
export interface BlockResult {
  readonly output: tf.Tensor;
  readonly made: KeyValues;
}

/**
 * Attention in which each of K key-value heads serves A/K query heads. Source: Ainslie et al. 2023, arXiv:2305.13245,
 * sec. 2.2.
 */
export function decoderAttention(
  params: DecoderAttentionParams,
  x: tf.Tensor,
  {
    numHeads,
    numKeyValueHeads,
    bias,
    positions,
    rope,
    past,
  }: BlockContext & { readonly numHeads: number; readonly numKeyValueHeads: number },
): BlockResult {
  const [batch, length] = x.shape as [number, number, number];
  const heads = (y: tf.Tensor, count: number): tf.Tensor =>
    tf.transpose(tf.reshape(y, [batch, length, count, -1]), [0, 2, 1, 3]);
  const turned = (y: tf.Tensor): tf.Tensor => (rope === undefined ? y : applyRope(y, rope));
  const query = turned(heads(dense(params.query, x), numHeads)); // [B, A, L, W]
  const own = {
    key: turned(heads(dense(params.key, x), numKeyValueHeads)), // [B, K, L, W]
    value: heads(dense(params.value, x), numKeyValueHeads),
  };
  // With earlier tokens it is among theirs.
  const { key, value } = past === undefined ? withPrefix(params.prefix, own) : own;
  const allKeys = past === undefined ? key : tf.concat([past.key, key], 2); // [B, K, S + L, W]
  const allValues = past === undefined ? value : tf.concat([past.value, value], 2);

  const width = query.shape[3]!;
  const mixed = dotProductAttention({ query, key: allKeys, value: allValues, bias, positions });
  const joined = tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [batch, length, numHeads * width]);
  return { output: dense(params.output, joined), made: { key, value } };
}

function withPrefix(prefix: KeyValues | undefined, { key, value }: KeyValues): KeyValues {
  if (prefix === undefined) return { key, value };
  const replaced = (first: tf.Tensor, all: tf.Tensor): tf.Tensor => {
    const rows = tf.tile(tf.expandDims(first, 0), [all.shape[0], 1, 1, 1]);
    return tf.concat([rows, tf.slice(all, [0, 0, first.shape[1]!, 0], [-1, -1, -1, -1])], 2);
  };
  return { key: replaced(prefix.key, key), value: replaced(prefix.value, value) };
}
