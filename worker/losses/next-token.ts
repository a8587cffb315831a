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

/**
 * Logarithm of what is thought of each token given those before it, nats, [B, L - 1]: logits [B, L, V] for ids [B, L]
 * (int32), of which the first has nothing before it.
 */
export function nextTokenLogProbabilities(logits: tf.Tensor, ids: tf.Tensor): tf.Tensor {
  const [batch, length, numWords] = logits.shape as [number, number, number];
  const before = tf.slice(logits, [0, 0, 0], [batch, length - 1, numWords]);
  const isToken = tf.oneHot(tf.slice(ids, [0, 1], [batch, length - 1]), numWords, 1, 0, 'bool');
  return tf.sum(tf.where(isToken, tf.logSoftmax(before), 0), -1);
}

/** What is made of each label of {@link nextTokenSums}, [B, L - 1] float32 each; 0 where it does not count. */
export interface TokenScores {
  /** Log-probability, nats. */
  readonly logProbs: tf.Tensor;
  /** 1 where it is the likeliest; no gradient. */
  readonly right: tf.Tensor;
  /** 1. */
  readonly counted: tf.Tensor;
}

/** As {@link nextTokenSums}, by token. */
export function nextTokenScores(logits: tf.Tensor, labels: tf.Tensor): TokenScores {
  const [batch, length, numWords] = logits.shape as [number, number, number];
  const before = tf.slice(logits, [0, 0, 0], [batch, length - 1, numWords]);
  const wanted = tf.slice(labels, [0, 1], [batch, length - 1]);
  const counted = tf.cast(tf.greaterEqual(wanted, tf.scalar(0, 'int32')), 'float32');
  const logProbs = nextTokenLogProbabilities(logits, tf.maximum(labels, tf.scalar(0, 'int32')));
  const right = tf.cast(tf.equal(tf.argMax(before, -1), wanted), 'float32');
  return { logProbs: tf.mul(logProbs, counted), right: tf.mul(right, counted), counted };
}

/** How many labels [B, L] {@link nextTokenSums} counts: what its sums are to be divided by. */
export function numNextTokens(labels: Int32Array, length: number): number {
  return labels.reduce((sum, label, i) => sum + (i % length > 0 && label >= 0 ? 1 : 0), 0);
}
