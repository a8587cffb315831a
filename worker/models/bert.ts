import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { ACTIVATIONS, type Activation } from '../layers/activations.ts';
import { keyBias } from '../layers/attention-mask.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { addPositions, embed, tokenAt } from '../layers/embedding.ts';
import { encoder, initEncoder, type EncoderSizes } from '../layers/encoder.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import type { BlockParams } from '../layers/transformer-block.ts';
import type { Stacked } from '../tree.ts';

export interface BertSizes extends EncoderSizes {
  readonly vocabulary: number;
  /** The longest text. */
  readonly length: number;
  readonly numSegments: number;
}

export type BertEmbeddingParams = {
  readonly words: tf.Tensor; // [V, D]
  readonly position: tf.Tensor; // [L, D]
  readonly segment: tf.Tensor; // [S, D]
  readonly norm: LayerNormParams;
};

export type BertParams = {
  readonly embedding: BertEmbeddingParams;
  readonly blocks: Stacked<BlockParams>;
  readonly pooler: DenseParams;
};

/** Dense, activation, norm, then the embedding table itself and a bias a word. */
export type PredictionHeadParams = {
  readonly dense: DenseParams;
  readonly norm: LayerNormParams;
  readonly bias: tf.Tensor; // [V]
};

/** BERT with what it is trained by: hidden words, and whether the second sentence follows. */
export type BertPretrainingParams = {
  readonly bert: BertParams;
  readonly wordHead: PredictionHeadParams;
  readonly pairHead: DenseParams; // D to 2
};

export interface BertInput {
  readonly ids: tf.Tensor; // [B, L] int32
  readonly segments: tf.Tensor; // [B, L] int32
  readonly present: tf.Tensor; // [B, L] float32: 0 at padding
}

/** Source: Devlin et al. 2019, arXiv:1810.04805, sec. 3; its initial weights: appendix A.2. */
export function initBert(sizes: BertSizes, init: Initializer): BertParams {
  return {
    embedding: initBertEmbedding(sizes, init, 'embedding'),
    blocks: initEncoder(init, 'blocks', sizes),
    pooler: initDense(init, 'pooler', sizes.width, sizes.width),
  };
}

export function initBertEmbedding(
  { width, vocabulary, length, numSegments }: BertSizes,
  init: Initializer,
  path: string,
): BertEmbeddingParams {
  return {
    words: init.normal(`${path}/words`, [vocabulary, width], 0.02),
    position: init.normal(`${path}/position`, [length, width], 0.02),
    segment: init.normal(`${path}/segment`, [numSegments, width], 0.02),
    norm: initLayerNorm(init, `${path}/norm`, width),
  };
}

export function initBertPretraining(sizes: BertSizes, init: Initializer): BertPretrainingParams {
  return {
    bert: initBert(sizes, init),
    wordHead: initPredictionHead(sizes, init, 'wordHead'),
    pairHead: initDense(init, 'pairHead', sizes.width, 2),
  };
}

export function initPredictionHead(
  { width, vocabulary }: Pick<BertSizes, 'width' | 'vocabulary'>,
  init: Initializer,
  path: string,
): PredictionHeadParams {
  return {
    dense: initDense(init, `${path}/dense`, width, width),
    norm: initLayerNorm(init, `${path}/norm`, width),
    bias: init.fill(`${path}/bias`, [vocabulary], 0),
  };
}

/** Words, positions and segments, not yet normed: [B, L, D]. */
export function bertWords(
  { words, position, segment }: BertEmbeddingParams,
  { ids, segments }: Pick<BertInput, 'ids' | 'segments'>,
): tf.Tensor {
  return addPositions(tf.add(embed(words, ids), embed(segment, segments)), position);
}

/** The states of all positions, [B, L, D]. */
export function bertStates(params: BertParams, input: BertInput, sizes: BertSizes): tf.Tensor {
  const { embedding, blocks } = params;
  const x = layerNorm(embedding.norm, bertWords(embedding, input), sizes.epsilon);
  return encoder(blocks, x, sizes, { bias: keyBias(input.present), norm: 'post' });
}

/** The first position's state through a dense layer and tanh: [B, D]. */
export function pooled(params: DenseParams, states: tf.Tensor): tf.Tensor {
  return tf.tanh(dense(params, tokenAt(states, 0)));
}

/** States [..., D] to logits over the rows of a table, [..., V]. */
export function predictionLogits(
  params: PredictionHeadParams,
  states: tf.Tensor,
  table: tf.Tensor,
  { activation, epsilon }: { readonly activation: Activation; readonly epsilon: number },
): tf.Tensor {
  const hidden = ACTIVATIONS[activation](dense(params.dense, states));
  const normed = layerNorm(params.norm, hidden, epsilon);
  return dense({ kernel: tf.transpose(table), bias: params.bias }, normed);
}

/** Logits of the word at each position, [B, L, V], and of the pair of sentences, [B, 2]. */
export function bertLogits(
  { bert, wordHead, pairHead }: BertPretrainingParams,
  input: BertInput,
  sizes: BertSizes,
): { words: tf.Tensor; pair: tf.Tensor } {
  const states = bertStates(bert, input, sizes);
  return {
    words: predictionLogits(wordHead, states, bert.embedding.words, sizes),
    pair: dense(pairHead, pooled(bert.pooler, states)),
  };
}
