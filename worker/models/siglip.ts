import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { keyBias } from '../layers/attention-mask.ts';
import {
  attentionPool,
  initAttentionPool,
  type AttentionPoolParams,
} from '../layers/attention-pool.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { tokenAt } from '../layers/embedding.ts';
import { l2Normalize } from '../layers/normalize.ts';
import type { TextInput } from './clip.ts';
import {
  initTextTower,
  textTower,
  type TextTowerParams,
  type TextTowerSizes,
} from './text-tower.ts';
import { initVit, vit, type VitParams, type VitParts, type VitSizes } from './vit.ts';

export interface SiglipSizes {
  readonly vision: VitSizes;
  readonly text: TextTowerSizes;
}

export const SIGLIP_VISION: VitParts = {
  hasClassToken: false,
  hasPatchBias: true,
  hasInputNorm: false,
};

export type SiglipParams = {
  readonly vision: VitParams;
  readonly visionHead: AttentionPoolParams;
  readonly text: TextTowerParams;
  readonly textHead: DenseParams; // D to the vision's D
  readonly logitScale: tf.Tensor; // [1], the logarithm of the factor
  readonly logitBias: tf.Tensor; // [1]
};

/**
 * Source: Zhai et al. 2023, arXiv:2303.15343, sec. 3.2: factor 10 at the start.
 *
 * @param bias at the start; the paper's -10 is the log odds that two of its 32k rows belong together
 */
export function initSiglip(
  { vision, text }: SiglipSizes,
  init: Initializer,
  { bias = -10 }: { readonly bias?: number } = {},
): SiglipParams {
  return {
    vision: initVit(vision, init, { parts: SIGLIP_VISION, path: 'vision/' }),
    visionHead: initAttentionPool(init, 'visionHead', vision),
    text: initTextTower(text, init, 'text'),
    textHead: initDense(init, 'textHead', text.width, vision.width),
    logitScale: init.fill('logitScale', [1], Math.log(10)),
    logitBias: init.fill('logitBias', [1], bias),
  };
}

/** Images [B, H, W, C] to embeddings of length 1, [B, D]. */
export function siglipImages(
  params: SiglipParams,
  images: tf.Tensor,
  { vision }: SiglipSizes,
): tf.Tensor {
  const states = vit(params.vision, images, vision);
  return l2Normalize(attentionPool(params.visionHead, states, vision));
}

/** Texts to embeddings of length 1, [B, D]: the last position's, be it padding, as the released models have it. */
export function siglipTexts(
  params: SiglipParams,
  { ids, present }: TextInput,
  { text }: SiglipSizes,
): tf.Tensor {
  const options = present === undefined ? {} : { bias: keyBias(present) };
  const states = textTower(params.text, ids, text, options);
  return l2Normalize(dense(params.textHead, tokenAt(states, ids.shape[1]! - 1)));
}

/** The logit of each pair of embeddings [I, D] and [T, D]: [I, T]. */
export function siglipLogits(params: SiglipParams, images: tf.Tensor, texts: tf.Tensor): tf.Tensor {
  const similarity = tf.matMul(images, texts, false, true);
  return tf.add(tf.mul(similarity, tf.exp(params.logitScale)), params.logitBias);
}
