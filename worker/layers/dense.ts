import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';

export type DenseParams = {
  readonly kernel: tf.Tensor; // [in, out]
  readonly bias?: tf.Tensor; // [out]
  /** What is added to the kernel, as a product of two thin matrices; see tuning/lora.ts. */
  readonly lora?: LowRank;
  /** What each column of the kernel is multiplied with; see tuning/dora.ts. */
  readonly scale?: tf.Tensor; // [out]
  /** What changes the output; see tuning/adapters.ts. */
  readonly adapter?: Bottleneck;
};

export type LowRank = {
  readonly a: tf.Tensor; // [in, R]
  readonly b: tf.Tensor; // [R, out]
};

export type Bottleneck = {
  readonly down: DenseParams; // out to M
  readonly up: DenseParams; // M to out
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
  const { kernel, bias, lora, scale, adapter } = params;
  const [numIn, numOut] = kernel.shape as [number, number];
  const flat = tf.reshape<tf.Rank.R2>(x, [-1, numIn]);
  let y: tf.Tensor = tf.matMul(flat, kernel);
  if (lora !== undefined) {
    const thin = tf.matMul(flat, lora.a); // [N, R]
    y = tf.add(y, tf.matMul(thin, lora.b as tf.Tensor2D));
  }
  if (scale !== undefined) y = tf.mul(y, scale);
  if (bias !== undefined) y = tf.add(y, bias);
  if (adapter !== undefined) y = tf.add(y, dense(adapter.up, tf.relu(dense(adapter.down, y))));
  return tf.reshape(y, [...x.shape.slice(0, -1), numOut]);
}
