import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';

export type LayerNormParams = {
  readonly scale: tf.Tensor; // [D]
  readonly offset: tf.Tensor; // [D]
};

export function initLayerNorm(init: Initializer, path: string, width: number): LayerNormParams {
  return {
    scale: init.fill(`${path}/scale`, [width], 1),
    offset: init.fill(`${path}/offset`, [width], 0),
  };
}

/** Over the last axis. Source: Ba et al. 2016, arXiv:1607.06450, sec. 3. */
export function layerNorm(params: LayerNormParams, x: tf.Tensor, epsilon = 1e-5): tf.Tensor {
  const centred = tf.sub(x, tf.mean(x, -1, true));
  const variance = tf.mean(tf.square(centred), -1, true);
  const normal = tf.mul(centred, tf.rsqrt(tf.add(variance, epsilon)));
  return tf.add(tf.mul(normal, params.scale), params.offset);
}
