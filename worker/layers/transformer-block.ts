import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { ACTIVATIONS, type Activation } from './activations.ts';
import { selfAttention, type AttentionOptions, type AttentionParams } from './attention.ts';
import { dense, initDense, type DenseParams } from './dense.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from './norm.ts';

export type BlockParams = {
  readonly attentionNorm: LayerNormParams;
  readonly attention: AttentionParams;
  readonly mlpNorm: LayerNormParams;
  readonly mlpIn: DenseParams;
  readonly mlpOut: DenseParams;
};

export function initBlock(
  init: Initializer,
  path: string,
  width: number,
  mlpRatio: number,
): BlockParams {
  const mlpWidth = Math.round(mlpRatio * width);
  return {
    attentionNorm: initLayerNorm(init, `${path}/attentionNorm`, width),
    attention: {
      qkv: initDense(init, `${path}/attention/qkv`, width, 3 * width),
      output: initDense(init, `${path}/attention/output`, width, width),
    },
    mlpNorm: initLayerNorm(init, `${path}/mlpNorm`, width),
    mlpIn: initDense(init, `${path}/mlpIn`, width, mlpWidth),
    mlpOut: initDense(init, `${path}/mlpOut`, mlpWidth, width),
  };
}

export interface BlockOptions extends AttentionOptions {
  /** Of the MLP; the tanh form of GELU unless given. */
  readonly activation?: Activation;
  /** Norms before attention and MLP, as trains best from scratch, unless it is `post`: after each sum, as BERT has it. */
  readonly norm?: 'pre' | 'post';
  /** Of the norms; 1e-5 unless given. */
  readonly epsilon?: number;
}

/** A transformer block, [B, L, D] to [B, L, D]. Source: arXiv:1706.03762, sec. 3.1; pre-norm: arXiv:2002.04745. */
export function transformerBlock(
  params: BlockParams,
  x: tf.Tensor,
  { activation = 'gelu-tanh', norm = 'pre', epsilon, ...options }: BlockOptions,
): tf.Tensor {
  const { attentionNorm, attention, mlpNorm, mlpIn, mlpOut } = params;
  const mlp = (states: tf.Tensor): tf.Tensor =>
    dense(mlpOut, ACTIVATIONS[activation](dense(mlpIn, states)));
  if (norm === 'post') {
    const sum = tf.add(x, selfAttention(attention, x, options));
    const attended = layerNorm(attentionNorm, sum, epsilon);
    return layerNorm(mlpNorm, tf.add(attended, mlp(attended)), epsilon);
  }
  const attended = tf.add(
    x,
    selfAttention(attention, layerNorm(attentionNorm, x, epsilon), options),
  );
  return tf.add(attended, mlp(layerNorm(mlpNorm, attended, epsilon)));
}
