/**
 * A vision transformer that sees all frames of a clip: each block looks along time, place by place, before it looks
 * across its frame. Source: LanguageBind, Zhu et al. 2023, arXiv:2310.01852, sec. 3.2, and its released code
 * (PKU-YuanGroup/LanguageBind, modeling_video.py): temporal embedding, norm and attention in front of each of CLIP's
 * blocks.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { repeatLayers } from '../layer-loop.ts';
import { selfAttention, type AttentionParams } from '../layers/attention.ts';
import { initDense } from '../layers/dense.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import { transformerBlock, type BlockParams } from '../layers/transformer-block.ts';
import type { Stacked } from '../tree.ts';
import { CLIP_VISION } from './clip.ts';
import { initVit, vitTokens, type VitParams, type VitParts, type VitSizes } from './vit.ts';

type TemporalParams = {
  readonly position: tf.Tensor; // [F, D]
  readonly norm: LayerNormParams;
  readonly attention: AttentionParams;
};

export type VideoTowerParams = VitParams & { readonly temporal: Stacked<TemporalParams> };

export function initVideoTower(
  sizes: VitSizes,
  init: Initializer,
  {
    numFrames,
    parts = CLIP_VISION,
    path = '',
  }: { readonly numFrames: number; readonly parts?: VitParts; readonly path?: string },
): VideoTowerParams {
  const { width, numLayers } = sizes;
  const layer = init.layers(numLayers);
  const at = `${path}temporal/*`;
  return {
    ...initVit(sizes, init, { parts, path }),
    temporal: {
      '*': {
        position: layer.normal(`${at}/position`, [numFrames, width], 0.02),
        norm: initLayerNorm(layer, `${at}/norm`, width),
        attention: {
          qkv: initDense(layer, `${at}/attention/qkv`, width, 3 * width),
          output: initDense(layer, `${at}/attention/output`, width, width),
        },
      },
    },
  };
}

/** The states of all tokens of all frames, [B, F N, D], before the final norm, of frames [B F, H, W, C]. */
export function videoTowerStates(
  params: VideoTowerParams,
  frames: tf.Tensor,
  sizes: VitSizes,
  numFrames: number,
): tf.Tensor {
  const x = vitTokens(params, frames, sizes); // [B F, N, D]
  const [rows, numTokens, width] = x.shape as [number, number, number];
  const batch = rows / numFrames;
  const { numHeads, activation, epsilon } = sizes;
  const layers: Stacked<{ readonly block: BlockParams; readonly temporal: TemporalParams }> = {
    '*': { block: params.blocks['*'], temporal: params.temporal['*'] },
  };
  const states = repeatLayers(layers, x, ({ block, temporal }, state) => {
    const alongTime = tf.reshape(
      tf.transpose(tf.reshape(state, [batch, numFrames, numTokens, width]), [0, 2, 1, 3]),
      [batch * numTokens, numFrames, width],
    );
    const placed = tf.add(alongTime, temporal.position);
    const looked = tf.add(
      placed,
      selfAttention(temporal.attention, layerNorm(temporal.norm, placed, epsilon), { numHeads }),
    );
    const inFrames = tf.reshape(
      tf.transpose(tf.reshape(looked, [batch, numTokens, numFrames, width]), [0, 2, 1, 3]),
      [rows, numTokens, width],
    );
    return transformerBlock(block, inFrames, { numHeads, activation, epsilon });
  });
  return tf.reshape(states, [batch, numFrames * numTokens, width]);
}
