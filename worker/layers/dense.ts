import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';

export type DenseParams = {
  readonly kernel: tf.Tensor; // [in, out]
  readonly bias: tf.Tensor; // [out]
};

export function initDense(
  init: Initializer,
  path: string,
  numIn: number,
  numOut: number,
): DenseParams {
  return {
    // BERT's 0.02 is for a width of 768; at this scale the outputs have the same size at every width.
    kernel: init.normal(`${path}/kernel`, [numIn, numOut], 1 / Math.sqrt(numIn)),
    bias: init.fill(`${path}/bias`, [numOut], 0),
  };
}

/** [..., in] to [..., out]; the leading axes are folded so that the product is one matrix product. */
export function dense(params: DenseParams, x: tf.Tensor): tf.Tensor {
  const [numIn, numOut] = params.kernel.shape as [number, number];
  const flat = tf.reshape(x, [-1, numIn]);
  const y = tf.add(tf.matMul(flat as tf.Tensor2D, params.kernel as tf.Tensor2D), params.bias);
  return tf.reshape(y, [...x.shape.slice(0, -1), numOut]);
}
