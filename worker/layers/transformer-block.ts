import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { gelu } from './activations.ts';
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
  return {
    attentionNorm: initLayerNorm(init, `${path}/attentionNorm`, width),
    attention: {
      qkv: initDense(init, `${path}/attention/qkv`, width, 3 * width),
      output: initDense(init, `${path}/attention/output`, width, width),
    },
    mlpNorm: initLayerNorm(init, `${path}/mlpNorm`, width),
    mlpIn: initDense(init, `${path}/mlpIn`, width, mlpRatio * width),
    mlpOut: initDense(init, `${path}/mlpOut`, mlpRatio * width, width),
  };
}

/** A pre-norm transformer block, [B, L, D] to [B, L, D]. */
export function transformerBlock(
  params: BlockParams,
  x: tf.Tensor,
  options: AttentionOptions,
): tf.Tensor {
  const attended = tf.add(
    x,
    selfAttention(params.attention, layerNorm(params.attentionNorm, x), options),
  );
  const hidden = gelu(dense(params.mlpIn, layerNorm(params.mlpNorm, attended)));
  return tf.add(attended, dense(params.mlpOut, hidden));
}
