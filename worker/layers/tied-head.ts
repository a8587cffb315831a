import * as tf from '@tensorflow/tfjs-core';

/** States [..., D] to logits over the rows of a table of embeddings [V, D]. */
export function tiedLogits(table: tf.Tensor, states: tf.Tensor): tf.Tensor {
  const [numWords, width] = table.shape as [number, number];
  const flat = tf.matMul(tf.reshape(states, [-1, width]), table, false, true);
  return tf.reshape(flat, [...states.shape.slice(0, -1), numWords]);
}
