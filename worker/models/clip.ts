import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { causalBias, keyBias } from '../layers/attention-mask.ts';
import { dense, type DenseParams } from '../layers/dense.ts';
import { tokenAt } from '../layers/embedding.ts';
import { layerNorm } from '../layers/norm.ts';
import { l2Normalize } from '../layers/normalize.ts';
import { constantOf } from '../tokens/constant.ts';
import { gatherTokens } from '../tokens/gather-tokens.ts';
import {
  initTextTower,
  textTower,
  type TextTowerParams,
  type TextTowerSizes,
} from './text-tower.ts';
import { initVit, vitStates, type VitParams, type VitParts, type VitSizes } from './vit.ts';

export interface ClipSizes {
  readonly vision: VitSizes;
  readonly text: TextTowerSizes;
  /** Width of the embeddings. */
  readonly embedding: number;
  /** Whose first place in a text is its end. Undefined: the place of the largest id, as the first release had it. */
  readonly endId: number | undefined;
}

export const CLIP_VISION: VitParts = {
  hasClassToken: true,
  hasPatchBias: false,
  hasInputNorm: true,
};

export type ClipParams = {
  readonly vision: VitParams;
  readonly text: TextTowerParams;
  readonly visionProjection: DenseParams; // D to E, no bias
  readonly textProjection: DenseParams;
  /** ln(1 / temperature), a scalar. */
  readonly logitScale: tf.Tensor;
};

export interface TextInput {
  readonly ids: tf.Tensor; // [B, L] int32
  /** [B, L] float32, 0 at padding; all are there unless given: padding comes after the end, which cannot see it. */
  readonly present?: tf.Tensor;
}

/** Source: Radford et al. 2021, arXiv:2103.00020, sec. 2.4-2.5; temperature 0.07 at the start. */
export function initClip(sizes: ClipSizes, init: Initializer): ClipParams {
  const { vision, text, embedding } = sizes;
  const projection = (path: string, width: number): DenseParams => ({
    kernel: init.normal(`${path}/kernel`, [width, embedding], 1 / Math.sqrt(width)),
  });
  return {
    vision: initVit(vision, init, { parts: CLIP_VISION, path: 'vision/' }),
    text: initTextTower(text, init, 'text'),
    visionProjection: projection('visionProjection', vision.width),
    textProjection: projection('textProjection', text.width),
    logitScale: init.fill('logitScale', [], Math.log(1 / 0.07)),
  };
}

/** Images [B, H, W, C] to embeddings of length 1, [B, E]. */
export function clipImages(
  params: ClipParams,
  images: tf.Tensor,
  { vision }: ClipSizes,
): tf.Tensor {
  const state = tokenAt(vitStates(params.vision, images, vision), 0);
  const normed = layerNorm(params.vision.finalNorm, state, vision.epsilon);
  return l2Normalize(dense(params.visionProjection, normed));
}

/** The normed states of all words, [B, L, D]; each sees those before it. */
export function clipTextStates(
  params: Pick<ClipParams, 'text'>,
  { ids, present }: TextInput,
  { text }: Pick<ClipSizes, 'text'>,
): tf.Tensor {
  const causal = causalBias(ids.shape[1]!);
  const bias = present === undefined ? causal : tf.add(causal, keyBias(present));
  return textTower(params.text, ids, text, { bias });
}

/** The normed state of each text's end, [B, D]. */
export function clipTextEnds(
  params: Pick<ClipParams, 'text'>,
  input: TextInput,
  sizes: Pick<ClipSizes, 'text' | 'endId'>,
): tf.Tensor {
  const states = clipTextStates(params, input, sizes);
  const end = constantOf(() => endsOf(input.ids, sizes.endId)); // [B, 1]
  return tf.reshape(gatherTokens(states, end), [-1, sizes.text.width]);
}

/** Texts to embeddings of length 1, [B, E]. */
export function clipTexts(params: ClipParams, input: TextInput, sizes: ClipSizes): tf.Tensor {
  return l2Normalize(dense(params.textProjection, clipTextEnds(params, input, sizes)));
}

/** The logit of each pair of embeddings [I, E] and [T, E]: [I, T]. */
export function clipLogits(params: ClipParams, images: tf.Tensor, texts: tf.Tensor): tf.Tensor {
  const similarity = tf.matMul(images, texts, false, true);
  return tf.mul(similarity, tf.exp(params.logitScale));
}

/** Where each text ends, [B, 1] int32. */
function endsOf(ids: tf.Tensor, endId: number | undefined): tf.Tensor {
  const marked = endId === undefined ? ids : tf.cast(tf.equal(ids, endId), 'int32');
  return tf.expandDims(tf.cast(tf.argMax(marked, 1), 'int32'), 1);
}
