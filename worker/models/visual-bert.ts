import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { keyBias } from '../layers/attention-mask.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { encoder } from '../layers/encoder.ts';
import { layerNorm } from '../layers/norm.ts';
import {
  bertWords,
  initBertPretraining,
  pooled,
  predictionLogits,
  type BertInput,
  type BertPretrainingParams,
  type BertSizes,
} from './bert.ts';

export interface VisualBertSizes extends BertSizes {
  /** Width of a region's features. */
  readonly regionWidth: number;
}

export type VisualBertParams = BertPretrainingParams & {
  readonly regions: {
    readonly projection: DenseParams;
    readonly position: tf.Tensor; // [L, D]
    readonly segment: tf.Tensor; // [S, D]
  };
};

export interface VisualBertInput extends BertInput {
  readonly regions: tf.Tensor; // [B, R, F]
  readonly regionsPresent: tf.Tensor; // [B, R] float32
}

/** Source: Li et al. 2019, arXiv:1908.03557, sec. 3.2: the tables of regions begin as the text's. */
export function initVisualBert(sizes: VisualBertSizes, init: Initializer): VisualBertParams {
  const text = initBertPretraining(sizes, init);
  return {
    ...text,
    regions: {
      projection: initDense(init, 'regions/projection', sizes.regionWidth, sizes.width),
      // Drawn by the same name, as values of their own: two parameters are no one buffer.
      position: init.normal('embedding/position', [sizes.length, sizes.width], 0.02),
      segment: init.normal('embedding/segment', [sizes.numSegments, sizes.width], 0.02),
    },
  };
}

/**
 * What the first block gets of text and regions, [B, L + R, D]. A region has the first position and the second
 * segment, as in the released models.
 */
export function visualBertTokens(
  { bert: { embedding }, regions }: Pick<VisualBertParams, 'bert' | 'regions'>,
  input: VisualBertInput,
  { epsilon }: VisualBertSizes,
): tf.Tensor {
  const row = (table: tf.Tensor, index: number): tf.Tensor => tf.slice(table, [index, 0], [1, -1]);
  const place = tf.add(row(regions.position, 0), row(regions.segment, 1)); // [1, D]
  const seen = tf.add(dense(regions.projection, input.regions), place);
  return layerNorm(embedding.norm, tf.concat([bertWords(embedding, input), seen], 1), epsilon);
}

/** The states of text and regions, [B, L + R, D]. */
export function visualBertStates(
  params: Pick<VisualBertParams, 'bert' | 'regions'>,
  input: VisualBertInput,
  sizes: VisualBertSizes,
): tf.Tensor {
  const present = tf.concat([input.present, input.regionsPresent], 1);
  const x = visualBertTokens(params, input, sizes);
  return encoder(params.bert.blocks, x, sizes, { bias: keyBias(present), norm: 'post' });
}

/** Logits of the word at each position, [B, L + R, V], and of whether text and image belong together, [B, 2]. */
export function visualBertLogits(
  params: VisualBertParams,
  input: VisualBertInput,
  sizes: VisualBertSizes,
): { words: tf.Tensor; pair: tf.Tensor } {
  const { bert, wordHead, pairHead } = params;
  const states = visualBertStates(params, input, sizes);
  return {
    words: predictionLogits(wordHead, states, bert.embedding.words, sizes),
    pair: dense(pairHead, pooled(bert.pooler, states)),
  };
}
