import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { keyBias } from '../layers/attention-mask.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { addPositions, embed, tokenAt } from '../layers/embedding.ts';
import { l2Normalize } from '../layers/normalize.ts';
import {
  initQFormer,
  qFormer,
  queryTextBias,
  type QFormerParams,
  type QFormerSizes,
} from './q-former.ts';
import { initVit, VIT, type VitParams, type VitSizes } from './vit.ts';

export interface Blip2Sizes {
  readonly vision: VitSizes;
  readonly qFormer: QFormerSizes;
  readonly numQueries: number;
  readonly vocabulary: number;
  /** The longest text. */
  readonly length: number;
  /** Width of the embeddings that are contrasted. */
  readonly embedding: number;
}

/** BLIP-2's first stage: what is seen, the queries that read it, and the heads for contrast and matching. */
export type Blip2Params = {
  readonly vision: VitParams;
  readonly queries: tf.Tensor; // [Q, D]
  readonly text: { readonly words: tf.Tensor; readonly position: tf.Tensor }; // [V, D], [L, D]
  readonly qFormer: QFormerParams;
  readonly visionProjection: DenseParams; // D to E
  readonly textProjection: DenseParams;
  readonly matchHead: DenseParams; // D to 2
};

export interface Blip2Text {
  readonly ids: tf.Tensor; // [B, L] int32
  readonly present: tf.Tensor; // [B, L] float32: 0 at padding
}

/** Source: Li et al. 2023, arXiv:2301.12597, sec. 3. */
export function initBlip2(sizes: Blip2Sizes, init: Initializer): Blip2Params {
  const { width } = sizes.qFormer;
  return {
    vision: initVit(sizes.vision, init, { parts: VIT, path: 'vision/' }),
    queries: init.normal('queries', [sizes.numQueries, width], 0.02),
    text: {
      words: init.normal('text/words', [sizes.vocabulary, width], 0.02),
      position: init.normal('text/position', [sizes.length, width], 0.02),
    },
    qFormer: initQFormer(sizes.qFormer, init, 'qFormer/'),
    visionProjection: initDense(init, 'visionProjection', width, sizes.embedding),
    textProjection: initDense(init, 'textProjection', width, sizes.embedding),
    matchHead: initDense(init, 'matchHead', width, 2),
  };
}

/** What the queries make of seen states [B, N, C]: [B, Q, D]. */
export function blip2Queries(params: Blip2Params, seen: tf.Tensor, sizes: Blip2Sizes): tf.Tensor {
  const queries = queriesFor(params, seen.shape[0]);
  return qFormer(params.qFormer, { queries, context: seen }, sizes.qFormer);
}

/**
 * Embeddings to contrast, each of length 1: of every query [B, Q, E] and of the text [B, E]. The similarity of image
 * and text is that of the best query.
 */
export function blip2Contrast(
  params: Blip2Params,
  seen: tf.Tensor,
  { ids, present }: Blip2Text,
  sizes: Blip2Sizes,
): { images: tf.Tensor; texts: tf.Tensor } {
  const queries = blip2Queries(params, seen, sizes);
  const states = textStates(params, { ids, present }, sizes);
  return {
    images: unit(dense(params.visionProjection, queries)),
    texts: unit(dense(params.textProjection, tokenAt(states, 0))),
  };
}

/** As {@link blip2Contrast} has those of images, [B, Q, E]. */
export function blip2ImageEmbeddings(
  params: Blip2Params,
  seen: tf.Tensor,
  sizes: Blip2Sizes,
): tf.Tensor {
  return unit(dense(params.visionProjection, blip2Queries(params, seen, sizes)));
}

/** As {@link blip2Contrast} has those of texts, [B, E]. */
export function blip2TextEmbeddings(
  params: Blip2Params,
  text: Blip2Text,
  sizes: Blip2Sizes,
): tf.Tensor {
  return unit(dense(params.textProjection, tokenAt(textStates(params, text, sizes), 0)));
}

function textStates(
  params: Blip2Params,
  { ids, present }: Blip2Text,
  sizes: Blip2Sizes,
): tf.Tensor {
  const text = { text: wordsOf(params, ids), bias: keyBias(present) };
  return qFormer(params.qFormer, text, sizes.qFormer);
}

/** Logits of whether image and text belong together, [B, 2]: the mean of what each query says. */
export function blip2Match(
  params: Blip2Params,
  seen: tf.Tensor,
  text: Blip2Text,
  sizes: Blip2Sizes,
): tf.Tensor {
  const states = blip2Joint(params, seen, text, sizes, 'match');
  const queries = tf.slice(states, [0, 0, 0], [-1, sizes.numQueries, -1]);
  return tf.mean(dense(params.matchHead, queries), 1);
}

/** The states of queries and words together, [B, Q + L, D]; `write` hides from each word those after it. */
export function blip2Joint(
  params: Blip2Params,
  seen: tf.Tensor,
  { ids, present }: Blip2Text,
  sizes: Blip2Sizes,
  mode: 'match' | 'write',
): tf.Tensor {
  const input = {
    queries: queriesFor(params, ids.shape[0]),
    text: wordsOf(params, ids),
    context: seen,
    bias: queryTextBias(mode, present, sizes.numQueries),
  };
  return qFormer(params.qFormer, input, sizes.qFormer);
}

function queriesFor({ queries }: Blip2Params, batch: number): tf.Tensor {
  return tf.tile(tf.expandDims(queries, 0), [batch, 1, 1]);
}

function wordsOf({ text }: Blip2Params, ids: tf.Tensor): tf.Tensor {
  return addPositions(embed(text.words, ids), text.position);
}

function unit(x: tf.Tensor): tf.Tensor {
  return l2Normalize(x, 1e-12);
}
