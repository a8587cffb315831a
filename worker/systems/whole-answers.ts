import * as tf from '@tensorflow/tfjs-core';

/**
 * 1 for rows that the model writes up to their end word for word, [B]. By itself it writes what it is given here as long
 * as each of its words is the right one, so that one pass tells.
 * @param logits of the token after each, [B, A, V]
 * @param answers ids, each with its start and its end, [B, A] int32
 */
export function wholeAnswers(logits: tf.Tensor, answers: tf.Tensor, endId: number): tf.Tensor {
  const length = answers.shape[1]!;
  const next = tf.slice(answers, [0, 1], [-1, length - 1]);
  const guessed = tf.cast(tf.argMax(tf.slice(logits, 0, [-1, length - 1, -1]), -1), 'int32');
  const isEqual = tf.cast(tf.equal(guessed, next), 'float32');
  const isEnd = tf.cast(tf.equal(next, tf.scalar(endId, 'int32')), 'float32');
  const isBehind = tf.cumsum(isEnd, 1, true); // exclusive: the end itself counts
  return tf.min(tf.maximum(isEqual, isBehind), 1);
}
