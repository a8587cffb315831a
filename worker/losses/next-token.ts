import * as tf from '@tensorflow/tfjs-core';
import { crossEntropySums, type ObjectiveSums } from './cross-entropy.ts';

/** The label of a token that is not to be predicted. Source: PyTorch, CrossEntropyLoss, ignore_index. */
export const NO_LABEL = -100;

/**
 * Cross entropy of each token given those before it: logits [B, L, V] against labels [B, L] (int32), which stand where
 * their tokens do, `NO_LABEL` for those that do not count. The shift by one is made here.
 */
export function nextTokenSums(logits: tf.Tensor, labels: tf.Tensor): ObjectiveSums {
  const [batch, length, numWords] = logits.shape as [number, number, number];
  const before = tf.slice(logits, [0, 0, 0], [batch, length - 1, numWords]);
  const wanted = tf.reshape(tf.slice(labels, [0, 1], [batch, length - 1]), [-1]);
  const counted = tf.greaterEqual(wanted, tf.scalar(0, 'int32'));
  return crossEntropySums(
    tf.reshape(before, [-1, numWords]),
    tf.maximum(wanted, tf.scalar(0, 'int32')),
    tf.cast(counted, 'float32'),
  );
}

/** How many labels [B, L] {@link nextTokenSums} counts: what its sums are to be divided by. */
export function numNextTokens(labels: Int32Array, length: number): number {
  return labels.reduce((sum, label, i) => sum + (i % length > 0 && label >= 0 ? 1 : 0), 0);
}
