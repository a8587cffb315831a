import * as tf from '@tensorflow/tfjs-core';
import { applyPasses } from '../traced-passes.ts';

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

/**
 * The tanh form. Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, sec. 2.
 *
 * Its gradient has a sigmoid in place of the tanh, (1 + tanh u) / 2 being sigmoid(2u): a compiler that found the same
 * tanh in both passes would keep it, a third array beside x and the result.
 */
export function gelu(x: tf.Tensor): tf.Tensor {
  return applyPasses(
    {
      forward: () => ({
        output: tf.mul(tf.mul(x, 0.5), tf.add(tf.tanh(geluInner(x)), 1)),
        residuals: [x],
      }),
      backward: (dy, [saved]) => [tf.mul(dy, geluSlope(saved!))],
    },
    [x],
  );
}

const [GELU_SCALE, GELU_CUBE] = [Math.sqrt(2 / Math.PI), 0.044715];

/** u in x (1 + tanh u) / 2. */
function geluInner(x: tf.Tensor): tf.Tensor {
  return tf.mul(tf.add(x, tf.mul(tf.mul(tf.square(x), x), GELU_CUBE)), GELU_SCALE);
}

/** s + x s (1 - s) 2u', with s = sigmoid(2u). */
function geluSlope(x: tf.Tensor): tf.Tensor {
  const share = tf.sigmoid(tf.mul(geluInner(x), 2));
  const inner = tf.mul(tf.add(tf.mul(tf.square(x), 3 * GELU_CUBE), 1), 2 * GELU_SCALE);
  return tf.add(share, tf.mul(tf.mul(x, inner), tf.mul(share, tf.sub(1, share))));
}
