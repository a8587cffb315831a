/**
 * What NormFormer adds to a transformer block whose norms stand in front: a norm behind attention, one within the MLP, and
 * a factor of each head. Source: Shleifer et al. 2021, arXiv:2110.09456, sec. 2.1.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { ACTIVATIONS, type Activation } from './activations.ts';
import { dense, initDense, type DenseParams } from './dense.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from './norm.ts';

/** Norms in front of and behind one attention of a block, and a factor of each head. */
export type AttentionNorms = {
  readonly before: LayerNormParams;
  readonly headScale: tf.Tensor; // [A]
  readonly after: LayerNormParams;
};

export function initAttentionNorms(
  init: Initializer,
  path: string,
  { width, numHeads }: { readonly width: number; readonly numHeads: number },
): AttentionNorms {
  return {
    before: initLayerNorm(init, `${path}/before`, width),
    headScale: init.fill(`${path}/headScale`, [numHeads], 1),
    after: initLayerNorm(init, `${path}/after`, width),
  };
}

/**
 * The map behind attention, [D, D], of heads that have a factor [A] each. The factor goes into the kernel's rows, which
 * are fewer than the batch's states.
 */
export function withHeadScale({ kernel, bias }: DenseParams, headScale: tf.Tensor): DenseParams {
  const byHead = tf.reshape(kernel, [headScale.size, -1, kernel.shape[1]!]);
  const scaled = tf.reshape(tf.mul(byHead, tf.reshape(headScale, [-1, 1, 1])), kernel.shape);
  return bias === undefined ? { kernel: scaled } : { kernel: scaled, bias };
}

/** The MLP of a block, beside what else the block has. */
export type NormedMlpParams = {
  readonly mlpNorm: LayerNormParams;
  readonly mlpIn: DenseParams;
  readonly mlpInnerNorm: LayerNormParams;
  readonly mlpOut: DenseParams;
};

/** @param path of the block */
export function initNormedMlp(
  init: Initializer,
  path: string,
  { width, mlpWidth }: { readonly width: number; readonly mlpWidth: number },
): NormedMlpParams {
  return {
    mlpNorm: initLayerNorm(init, `${path}/mlpNorm`, width),
    mlpIn: initDense(init, `${path}/mlpIn`, width, mlpWidth),
    mlpInnerNorm: initLayerNorm(init, `${path}/mlpInnerNorm`, mlpWidth),
    mlpOut: initDense(init, `${path}/mlpOut`, mlpWidth, width),
  };
}

/** States [B, L, D] with what the MLP makes of them added. */
export function addNormedMlp(
  { mlpNorm, mlpIn, mlpInnerNorm, mlpOut }: NormedMlpParams,
  x: tf.Tensor,
  { activation, epsilon }: { readonly activation: Activation; readonly epsilon: number },
): tf.Tensor {
  const hidden = ACTIVATIONS[activation](dense(mlpIn, layerNorm(mlpNorm, x, epsilon)));
  return tf.add(x, dense(mlpOut, layerNorm(mlpInnerNorm, hidden, epsilon)));
}
