/** Attention of every text to the tokens of every picture: a picture looks otherwise to each text. */
import * as tf from '@tensorflow/tfjs-core';

export interface MixtureSizes {
  readonly numHeads: number;
  /** What the products of queries and keys are divided by before the softmax. */
  readonly temperature: number;
}

/** What is mixed of pictures. */
export interface MixtureTokens {
  readonly keys: tf.Tensor; // [I, K, M]
  readonly values: tf.Tensor; // [I, K, M]
}

/** How much each text takes of each token of each picture, head by head, [A, I, T, K]; sums of 1 over the last axis. */
export function mixtureWeights(
  keys: tf.Tensor,
  queries: tf.Tensor,
  { numHeads, temperature }: MixtureSizes,
): tf.Tensor {
  const [numImages, numTokens, width] = keys.shape as [number, number, number];
  const numTexts = queries.shape[0];
  // All tokens of all pictures in one product a head.
  const flat = tf.reshape(keys, [numImages * numTokens, width]);
  const products = tf.matMul(headsOf(queries, numHeads), headsOf(flat, numHeads), false, true); // [A, T, I K]
  const scores = tf.reshape(tf.div(products, temperature), [
    ...[numHeads, numTexts, numImages, numTokens],
  ]);
  return tf.softmax(tf.transpose(scores, [0, 2, 1, 3]));
}

/**
 * Every picture as each text asks for it, [I, T, M]: the values of its tokens, mixed by the softmax of their keys with
 * the text's query, [T, M].
 * Source: Lavoie et al. 2024, arXiv:2405.00740, sec. 3.
 */
export function contextualMix(
  { keys, values }: MixtureTokens,
  queries: tf.Tensor,
  sizes: MixtureSizes,
): tf.Tensor {
  const { numHeads } = sizes;
  const [numImages, numTokens, width] = values.shape as [number, number, number];
  const cut = tf.reshape(values, [numImages, numTokens, numHeads, width / numHeads]);
  const weights = mixtureWeights(keys, queries, sizes);
  const mixed = tf.matMul(weights, tf.transpose(cut, [2, 0, 1, 3])); // [A, I, T, M/A]
  return tf.reshape(tf.transpose(mixed, [1, 2, 0, 3]), [numImages, -1, width]);
}

/** [R, M] to [A, R, M/A]. */
function headsOf(x: tf.Tensor, numHeads: number): tf.Tensor {
  const [rows, width] = x.shape as [number, number];
  return tf.transpose(tf.reshape(x, [rows, numHeads, width / numHeads]), [1, 0, 2]);
}
