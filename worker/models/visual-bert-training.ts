/** What VisualBERT is trained by: hidden words, and whether a sentence is about the picture. */
import * as tf from '@tensorflow/tfjs-core';
import { dense } from '../layers/dense.ts';
import { crossEntropySums, type ObjectiveSums } from '../losses/cross-entropy.ts';
import { gatherTokens } from '../tokens/gather-tokens.ts';
import { pooled, predictionLogits } from './bert.ts';
import {
  visualBertStates,
  type VisualBertInput,
  type VisualBertParams,
  type VisualBertSizes,
} from './visual-bert.ts';

export type VisualBertBatch = VisualBertInput & {
  readonly wordPositions: tf.Tensor; // [B, K] int32
  readonly wordLabels: tf.Tensor; // [B, K] int32
  readonly wordWeights: tf.Tensor; // [B, K], 0 where nothing is asked
  readonly matchLabels: tf.Tensor; // [B] int32, 1 where the (second) sentence is about the picture
  readonly matchWeights: tf.Tensor; // [B]
};

/** Logits of the hidden words, [B K, V], and of whether the sentence is about the picture, [B, 2]. */
export function visualBertHiddenLogits(
  { bert, wordHead, pairHead, regions }: VisualBertParams,
  batch: Omit<VisualBertBatch, 'wordLabels' | 'wordWeights' | 'matchLabels' | 'matchWeights'>,
  sizes: VisualBertSizes,
): { words: tf.Tensor; match: tf.Tensor } {
  const states = visualBertStates({ bert, regions }, batch, sizes);
  const hidden = tf.reshape(gatherTokens(states, batch.wordPositions), [-1, sizes.width]);
  return {
    words: predictionLogits(wordHead, hidden, bert.embedding.words, sizes),
    match: dense(pairHead, pooled(bert.pooler, states)),
  };
}

/** Source: Li et al. 2019, arXiv:1908.03557, sec. 3.2: a softmax of two for the sentence, the sum of both losses. */
export function visualBertSums(
  params: VisualBertParams,
  batch: VisualBertBatch,
  sizes: VisualBertSizes,
): Record<'mlm' | 'match', ObjectiveSums> {
  const { words, match } = visualBertHiddenLogits(params, batch, sizes);
  return {
    mlm: crossEntropySums(
      words,
      tf.reshape(batch.wordLabels, [-1]),
      tf.reshape(batch.wordWeights, [-1]),
    ),
    match: crossEntropySums(match, batch.matchLabels, batch.matchWeights),
  };
}
