import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';

export type RmsNormParams = {
  readonly scale: tf.Tensor; // [D]
};

export function initRmsNorm(init: Initializer, path: string, width: number): RmsNormParams {
  return { scale: init.fill(`${path}/scale`, [width], 1) };
}

/** Over the last axis: sizes are made equal, means are left. Source: Zhang & Sennrich 2019, arXiv:1910.07467, sec. 4. */
export function rmsNorm(params: RmsNormParams, x: tf.Tensor, epsilon: number): tf.Tensor {
  const meanSquare = tf.mean(tf.square(x), -1, true);
  return tf.mul(tf.mul(x, tf.rsqrt(tf.add(meanSquare, epsilon))), params.scale);
}
