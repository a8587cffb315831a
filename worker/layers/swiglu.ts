import * as tf from '@tensorflow/tfjs-core';
import { dense, type DenseParams } from './dense.ts';

export type SwigluParams = {
  readonly gate: DenseParams; // D to M
  readonly up: DenseParams; // D to M
  readonly down: DenseParams; // M to D
};

/** A gated MLP, [..., D] to [..., D]. Source: Shazeer 2020, arXiv:2002.05202, sec. 2, eq. 6. */
export function swiglu(params: SwigluParams, x: tf.Tensor): tf.Tensor {
  const gate = dense(params.gate, x);
  return dense(params.down, tf.mul(tf.mul(gate, tf.sigmoid(gate)), dense(params.up, x)));
}
