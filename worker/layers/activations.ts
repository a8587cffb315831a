import * as tf from '@tensorflow/tfjs-core';

/** The tanh form. Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, sec. 2. */
export function gelu(x: tf.Tensor): tf.Tensor {
  const inner = tf.mul(
    tf.add(x, tf.mul(tf.mul(tf.square(x), x), 0.044715)),
    Math.sqrt(2 / Math.PI),
  );
  return tf.mul(tf.mul(x, 0.5), tf.add(tf.tanh(inner), 1));
}
