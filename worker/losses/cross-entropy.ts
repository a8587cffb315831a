import * as tf from '@tensorflow/tfjs-core';

/** What one objective adds up to over a microbatch: its mean over the global batch is made after the exchange. */
export interface ObjectiveSums {
  /** Sum of the losses of the counted predictions, nats; a scalar. */
  readonly lossSum: tf.Tensor;
  /** What the right ones of the counted predictions weigh, that is their number where each weighs 1; a scalar, no gradient. */
  readonly correct: tf.Tensor;
}

/**
 * Cross entropy of logits [N, V] against labels [N] (int32), summed with weights [N]: 0 where nothing is asked, mostly 1
 * elsewhere.
 */
export function crossEntropySums(
  logits: tf.Tensor,
  labels: tf.Tensor,
  weights: tf.Tensor,
): ObjectiveSums {
  const numClasses = logits.shape[1]!;
  const isLabel = tf.oneHot(labels, numClasses, 1, 0, 'bool');
  // No product with 0: a class that is ruled out has -Infinity.
  const losses = tf.neg(tf.sum(tf.where(isLabel, tf.logSoftmax(logits), 0), -1));
  const right = tf.cast(tf.equal(tf.argMax(logits, -1), labels), 'float32');
  return { lossSum: tf.sum(tf.mul(losses, weights)), correct: tf.sum(tf.mul(right, weights)) };
}

/** Binary cross entropy of logits [N] against labels [N] (0 or 1, float32), summed with weights [N]. */
export function binaryCrossEntropySums(
  logits: tf.Tensor,
  labels: tf.Tensor,
  weights: tf.Tensor,
): ObjectiveSums {
  const sign = tf.sub(tf.mul(labels, 2), 1);
  const losses = tf.softplus(tf.neg(tf.mul(sign, logits)));
  const right = tf.cast(tf.greater(tf.mul(sign, logits), 0), 'float32');
  return { lossSum: tf.sum(tf.mul(losses, weights)), correct: tf.sum(tf.mul(right, weights)) };
}
