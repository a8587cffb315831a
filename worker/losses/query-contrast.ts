/** BLIP-2's contrast: a picture is several queries, and the one that is nearest to a text counts. */
import * as tf from '@tensorflow/tfjs-core';
import type { ObjectiveSums } from './cross-entropy.ts';
import { belongsToOwn, belongTogether, type GroupIds } from './group-ids.ts';

export interface QueryPairs {
  /** [G, Q, E], each of length 1 */
  readonly images: tf.Tensor;
  /** [G, E], each of length 1 */
  readonly texts: tf.Tensor;
  /** Rows with equal ids belong together too; no gradient. */
  readonly groupIds: GroupIds;
  /** [G], 0 for rows whose answer does not count in `correct`. */
  readonly counted: tf.Tensor;
}

/** Similarities of all pictures with all texts, [I, T]: that of the best query. */
export function querySimilarities(images: tf.Tensor, texts: tf.Tensor): tf.Tensor {
  const [count, queries, width] = images.shape as [number, number, number];
  const flat = tf.matMul(tf.reshape(images, [count * queries, width]), texts, false, true);
  return tf.max(tf.reshape(flat, [count, queries, -1]), 1);
}

/**
 * InfoNCE in both directions, 1/2 each, with smoothed labels, summed over the rows; the target is spread evenly over
 * the rows that belong together. `correct` counts pictures whose nearest text belongs to them. The gradient goes to
 * both sides of every pair of the global batch; the released code gathers the other workers' side without one.
 * Source: Li et al. 2023, arXiv:2301.12597, sec. 3.2; salesforce/LAVIS, blip2_qformer.py: smoothing 0.1.
 *
 * @param scale 1 / temperature
 */
export function queryContrastSums(
  { images, texts, groupIds, counted }: QueryPairs,
  scale: tf.Tensor,
  smoothing = 0.1,
): ObjectiveSums {
  const count = texts.shape[0];
  const similarities = querySimilarities(images, texts);
  const logits = tf.mul(similarities, scale);
  const together = belongTogether(groupIds, groupIds);
  const even = tf.div(together, tf.sum(together, -1, true));
  const targets = tf.add(tf.mul(even, 1 - smoothing), smoothing / count);
  const oneWay = (from: tf.Tensor): tf.Tensor =>
    tf.neg(tf.sum(tf.mul(tf.logSoftmax(from), targets)));
  const nearest = tf.gather(groupIds, tf.argMax(similarities, -1));
  const isRight = belongsToOwn(nearest, groupIds);
  return {
    lossSum: tf.mul(tf.add(oneWay(logits), oneWay(tf.transpose(logits))), 0.5),
    correct: tf.sum(tf.mul(isRight, counted)),
  };
}

/**
 * For each row the number of one that does not belong to it, [G] int32: drawn by the similarities, as often as the
 * softmax of a row says. `noise` [G, G] is of Gumbel's distribution, so that the largest sum is such a draw; a constant
 * to the gradient. Where all rows belong together, any.
 */
export function hardNegatives(logits: tf.Tensor, groupIds: GroupIds, noise: tf.Tensor): tf.Tensor {
  const allowed = tf.add(tf.add(logits, noise), tf.mul(belongTogether(groupIds, groupIds), -1e9));
  return tf.cast(tf.argMax(allowed, -1), 'int32');
}
