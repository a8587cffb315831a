/**
 * Llip: what a picture is compared by depends on the text. The tower that sees gives several tokens of each picture, and
 * each text mixes them its own way before the two are compared.
 * Source: Lavoie et al. 2024, arXiv:2405.00740, sec. 3.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { contextualMix, type MixtureSizes, type MixtureTokens } from '../layers/contextual-mix.ts';
import { dense, type DenseParams } from '../layers/dense.ts';
import { layerNorm } from '../layers/norm.ts';
import { l2Normalize } from '../layers/normalize.ts';
import { clipTextEnds, type TextInput } from './clip.ts';
import { initTextTower, type TextTowerParams, type TextTowerSizes } from './text-tower.ts';
import { initVit, vitStates, type VitParams, type VitSizes } from './vit.ts';

export interface LlipSizes {
  readonly vision: VitSizes;
  readonly text: TextTowerSizes;
  /** Learned tokens beside the patches of a picture, whose states are mixed. */
  readonly mixtureTokens: number;
  readonly mixture: MixtureSizes;
  /** Width of queries, keys and values together. */
  readonly mixtureWidth: number;
  /** Width of what is compared. */
  readonly embedding: number;
  /** Whose first place in a text is its end. */
  readonly endId: number;
}

export type LlipParams = {
  readonly vision: VitParams;
  readonly text: TextTowerParams;
  readonly query: DenseParams; // D of text to M, no bias
  /** Key and value in one kernel, D of vision to 2 M, no bias. */
  readonly keyValue: DenseParams;
  readonly output: DenseParams; // M to E, no bias
  readonly textProjection: DenseParams; // D of text to E, no bias
  readonly logitScale: tf.Tensor; // the logarithm of the factor, a scalar
  readonly logitBias: tf.Tensor; // a scalar
};

/** What a text asks with, and what it is compared by. */
export interface LlipTexts {
  readonly queries: tf.Tensor; // [T, M]
  readonly texts: tf.Tensor; // [T, E], each of length 1
}

/** Parameters that a comparison uses itself, by their paths. */
export const LLIP_COMPARISON = ['output/kernel', 'logitScale', 'logitBias'] as const;

/** @param bias what is added to similarities at first; see `initSiglip`, whose factor of 10 it begins with too */
export function initLlip(
  { vision, text, mixtureTokens, mixtureWidth, embedding }: LlipSizes,
  init: Initializer,
  { bias }: { readonly bias: number },
): LlipParams {
  const projection = (path: string, numIn: number, numOut: number): DenseParams => ({
    kernel: init.normal(`${path}/kernel`, [numIn, numOut], 1 / Math.sqrt(numIn)),
  });
  const parts = { hasClassToken: true, hasPatchBias: false, hasInputNorm: true };
  return {
    vision: initVit(vision, init, {
      ...{ parts: { ...parts, numClassTokens: mixtureTokens }, path: 'vision/' },
    }),
    text: initTextTower(text, init, 'text'),
    query: projection('query', text.width, mixtureWidth),
    keyValue: projection('keyValue', vision.width, 2 * mixtureWidth),
    output: projection('output', mixtureWidth, embedding),
    textProjection: projection('textProjection', text.width, embedding),
    logitScale: init.fill('logitScale', [], Math.log(10)),
    logitBias: init.fill('logitBias', [], bias),
  };
}

/**
 * What is mixed of each clip, keys and values [B, F K, M]: of several pictures the tokens of all of them.
 * @param pictures [B F, H, W, C]: of one clip F, one after another, each seen by itself
 */
export function llipImages(
  params: LlipParams,
  pictures: tf.Tensor,
  perClip: number,
  { vision, mixtureTokens, mixtureWidth }: LlipSizes,
): MixtureTokens {
  const states = tf.slice(vitStates(params.vision, pictures, vision), 0, [
    ...[-1, mixtureTokens, vision.width],
  ]);
  const normed = layerNorm(params.vision.finalNorm, states, vision.epsilon);
  const [keys, values] = tf
    .split(dense(params.keyValue, normed), 2, -1)
    .map((each) => tf.reshape(each, [-1, perClip * mixtureTokens, mixtureWidth])) as [
    tf.Tensor,
    tf.Tensor,
  ];
  return { keys, values };
}

/** The end of each text, as a query and as what it is compared by. */
export function llipTexts(params: LlipParams, input: TextInput, sizes: LlipSizes): LlipTexts {
  const ends = clipTextEnds(params, input, sizes);
  return {
    queries: dense(params.query, ends),
    texts: l2Normalize(dense(params.textProjection, ends)),
  };
}

/** The similarity of each picture, as a text sees it, to that text, [I, T]: nothing of a pair is of another text. */
export function llipSimilarities(
  output: DenseParams,
  tokens: MixtureTokens,
  { queries, texts }: LlipTexts,
  sizes: MixtureSizes,
): tf.Tensor {
  const seen = l2Normalize(dense(output, contextualMix(tokens, queries, sizes))); // [I, T, E]
  return tf.sum(tf.mul(seen, tf.expandDims(texts, 0)), -1);
}
