import * as tf from '@tensorflow/tfjs-core';

/** Rows of length 1, over the last axis. `floor`: shorter ones are divided by it instead. */
export function l2Normalize(x: tf.Tensor, floor = 0): tf.Tensor {
  const square = tf.sum(tf.square(x), -1, true);
  // Before the root, whose gradient at 0 is none.
  return tf.div(x, tf.sqrt(floor === 0 ? square : tf.maximum(square, floor ** 2)));
}
