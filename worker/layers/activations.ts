import * as tf from '@tensorflow/tfjs-core';

/** As configs name them. */
export type Activation = 'gelu' | 'gelu-tanh' | 'quick-gelu' | 'relu' | 'silu';

export const ACTIVATIONS: Readonly<Record<Activation, (x: tf.Tensor) => tf.Tensor>> = {
  gelu: exactGelu,
  'gelu-tanh': gelu,
  'quick-gelu': quickGelu,
  relu: (x) => tf.relu(x),
  silu: (x) => tf.mul(x, tf.sigmoid(x)),
};

/** x times the normal distribution's share below x. Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, sec. 2. */
export function exactGelu(x: tf.Tensor): tf.Tensor {
  return tf.mul(tf.mul(x, 0.5), tf.add(tf.erf(tf.mul(x, Math.SQRT1_2)), 1));
}

/** What CLIP's released weights were trained with. Source: arXiv:1606.08415, sec. 2, the sigmoid form. */
export function quickGelu(x: tf.Tensor): tf.Tensor {
  return tf.mul(x, tf.sigmoid(tf.mul(x, 1.702)));
}

/** The tanh form. Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, sec. 2. */
export function gelu(x: tf.Tensor): tf.Tensor {
  const inner = tf.mul(
    tf.add(x, tf.mul(tf.mul(tf.square(x), x), 0.044715)),
    Math.sqrt(2 / Math.PI),
  );
  return tf.mul(tf.mul(x, 0.5), tf.add(tf.tanh(inner), 1));
}
