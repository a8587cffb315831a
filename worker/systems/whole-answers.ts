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

/**
 * As {@link wholeAnswers}, for answers that stand anywhere in a sequence: 1 for rows all of whose asked tokens are the
 * likeliest behind those before them, [B].
 * @param logits of the token after each, [B, L, V]
 * @param ids [B, L] int32
 * @param asked 1 where a token belongs to the answer or ends it, [B, L]; never the first
 */
export function wholeSpans(logits: tf.Tensor, ids: tf.Tensor, asked: tf.Tensor): tf.Tensor {
  const length = ids.shape[1]!;
  const next = tf.slice(ids, [0, 1], [-1, length - 1]);
  const guessed = tf.cast(tf.argMax(tf.slice(logits, 0, [-1, length - 1, -1]), -1), 'int32');
  const isEqual = tf.cast(tf.equal(guessed, next), 'float32');
  const isGiven = tf.sub(1, tf.slice(asked, [0, 1], [-1, length - 1]));
  return tf.min(tf.maximum(isEqual, isGiven), 1);
}
