import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { ACTIVATIONS } from './activations.ts';
import { attend, type AttentionParams } from './attention.ts';
import { dense, initDense, type DenseParams } from './dense.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from './norm.ts';
import type { BlockOptions } from './transformer-block.ts';

export type AttentionPoolParams = {
  readonly probe: tf.Tensor; // [D], the one query
  readonly attention: AttentionParams;
  readonly mlpNorm: LayerNormParams;
  readonly mlpIn: DenseParams;
  readonly mlpOut: DenseParams;
};

export function initAttentionPool(
  init: Initializer,
  path: string,
  { width, mlpWidth }: { readonly width: number; readonly mlpWidth: number },
): AttentionPoolParams {
  return {
    probe: init.normal(`${path}/probe`, [width], 1 / Math.sqrt(width)),
    attention: {
      qkv: initDense(init, `${path}/attention/qkv`, width, 3 * width),
      output: initDense(init, `${path}/attention/output`, width, width),
    },
    mlpNorm: initLayerNorm(init, `${path}/mlpNorm`, width),
    mlpIn: initDense(init, `${path}/mlpIn`, width, mlpWidth),
    mlpOut: initDense(init, `${path}/mlpOut`, mlpWidth, width),
  };
}

/**
 * Tokens [B, N, D] as one, [B, D]: a learned query looks at them, then a residual MLP. Source: Zhai et al. 2022,
 * arXiv:2106.04560, the MAP head; Lee et al. 2019, arXiv:1810.00825, sec. 3.2.
 */
export function attentionPool(
  params: AttentionPoolParams,
  x: tf.Tensor,
  {
    numHeads,
    activation = 'gelu-tanh',
    epsilon,
  }: Pick<BlockOptions, 'numHeads' | 'activation' | 'epsilon'>,
): tf.Tensor {
  const [batch, , width] = x.shape as [number, number, number];
  const { kernel, bias } = params.attention.qkv as Required<DenseParams>;
  const [queryKernel, keyValueKernel] = tf.split(kernel, [width, 2 * width], 1) as [
    tf.Tensor,
    tf.Tensor,
  ];
  const [queryBias, keyValueBias] = tf.split(bias, [width, 2 * width]) as [tf.Tensor, tf.Tensor];
  const probe = tf.reshape(params.probe, [1, 1, width]);
  const query = dense({ kernel: queryKernel, bias: queryBias }, probe); // [1, 1, D]
  const keyValue = dense({ kernel: keyValueKernel, bias: keyValueBias }, x);
  const [key, value] = tf.split(keyValue, 2, -1) as [tf.Tensor, tf.Tensor];
  const mixed = attend(tf.tile(query, [batch, 1, 1]), key, value, { numHeads });
  const pooled = dense(params.attention.output, mixed); // [B, 1, D]
  const hidden = dense(params.mlpIn, layerNorm(params.mlpNorm, pooled, epsilon));
  const sum = tf.add(pooled, dense(params.mlpOut, ACTIVATIONS[activation](hidden)));
  return tf.reshape(sum, [batch, width]);
}
