import * as tf from '@tensorflow/tfjs-core';

/** Rows of length 1, over the last axis. `floor`: shorter ones are divided by it instead. */
export function l2Normalize(x: tf.Tensor, floor = 0): tf.Tensor {
  const length = tf.sqrt(tf.sum(tf.square(x), -1, true));
  return tf.div(x, floor === 0 ? length : tf.maximum(length, floor));
}
