/**
 * CoCa: one model that is contrasted and captions. Its text decoder is cut in two: the first half reads words alone, with
 * a learned token at their end that speaks for the text; the second half looks at what a pooler makes of the pictures,
 * and writes. Source: Yu et al. 2022, arXiv:2205.01917, sec. 3.2 and its pseudocode, in which the two poolers stand side by
 * side.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { repeatLayers } from '../layer-loop.ts';
import { ACTIVATIONS } from '../layers/activations.ts';
import { causalBias, keyBias } from '../layers/attention-mask.ts';
import {
  crossAttention,
  initCrossAttention,
  type CrossAttentionParams,
} from '../layers/cross-attention.ts';
import {
  decoderAttention,
  type BlockContext,
  type BlockResult,
  type DecoderAttentionParams,
} from '../layers/decoder-block.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { addPositions, appendToken, embed, tokenAt } from '../layers/embedding.ts';
import type { EncoderSizes } from '../layers/encoder.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import { l2Normalize } from '../layers/normalize.ts';
import { initQueryPool, queryPool, type QueryPoolParams } from '../layers/query-pool.ts';
import type { Stacked } from '../tree.ts';
import { initVit, vit, type VitParams, type VitParts, type VitSizes } from './vit.ts';

export interface CocaSizes {
  readonly vision: VitSizes;
  /** Of the half that reads words alone. */
  readonly text: EncoderSizes;
  /** Of the half that looks at pictures; as wide as `text`. */
  readonly decoder: EncoderSizes;
  readonly vocabulary: number;
  /** The longest text; the token at its end has a place of its own behind it. */
  readonly length: number;
  /** Queries of the pooler whose output the decoder looks at. */
  readonly captionQueries: number;
  /** Width of what is contrasted. */
  readonly embedding: number;
}

export const COCA_VISION: VitParts = {
  hasClassToken: false,
  hasPatchBias: true,
  hasInputNorm: false,
};

export type CocaBlockParams = {
  readonly attentionNorm: LayerNormParams;
  readonly attention: DecoderAttentionParams;
  /** Of the decoder's second half alone. */
  readonly crossNorm?: LayerNormParams;
  readonly cross?: CrossAttentionParams;
  readonly mlpNorm: LayerNormParams;
  readonly mlpIn: DenseParams;
  readonly mlpOut: DenseParams;
};

export type CocaParams = {
  readonly vision: VitParams;
  /** Its one query speaks for the picture. */
  readonly contrastPool: QueryPoolParams;
  readonly captionPool: QueryPoolParams;
  readonly visionProjection: DenseParams; // D of vision to E, no bias
  readonly text: {
    readonly words: tf.Tensor; // [V, D]
    readonly position: tf.Tensor; // [L + 1, D]
    readonly classToken: tf.Tensor; // [D]
    readonly blocks: Stacked<CocaBlockParams>;
    /** Of the state that speaks for the text. */
    readonly norm: LayerNormParams;
  };
  readonly textProjection: DenseParams; // D to E, no bias
  readonly decoder: {
    readonly blocks: Stacked<CocaBlockParams>;
    readonly finalNorm: LayerNormParams;
    readonly head: DenseParams; // D to V, no bias
  };
  /** ln(1 / temperature), a scalar. */
  readonly logitScale: tf.Tensor;
};

/**
 * Source: arXiv:2205.01917, sec. 3.2; temperature 0.07 at the start. Both sides are projected before they are compared,
 * as CLIP's and open_clip's are, so that vision and text may differ in width.
 */
export function initCoca(sizes: CocaSizes, init: Initializer): CocaParams {
  const { vision, text, decoder, vocabulary, length, captionQueries, embedding } = sizes;
  const projection = (path: string, numIn: number, numOut: number): DenseParams => ({
    kernel: init.normal(`${path}/kernel`, [numIn, numOut], 1 / Math.sqrt(numIn)),
  });
  const pool = (path: string, numQueries: number): QueryPoolParams =>
    initQueryPool(init, path, { width: vision.width, numQueries });
  const blocks = (path: string, half: EncoderSizes, contextWidth?: number) => ({
    '*': initCocaBlock(init.layers(half.numLayers), `${path}/*`, half, contextWidth),
  });
  return {
    vision: initVit(vision, init, { parts: COCA_VISION, path: 'vision/' }),
    contrastPool: pool('contrastPool', 1),
    captionPool: pool('captionPool', captionQueries),
    visionProjection: projection('visionProjection', vision.width, embedding),
    text: {
      words: init.normal('text/words', [vocabulary, text.width], 0.02),
      position: init.normal('text/position', [length + 1, text.width], 0.01),
      classToken: init.normal('text/classToken', [text.width], 0.02),
      blocks: blocks('text/blocks', text),
      norm: initLayerNorm(init, 'text/norm', text.width),
    },
    textProjection: projection('textProjection', text.width, embedding),
    decoder: {
      blocks: blocks('decoder/blocks', decoder, vision.width),
      finalNorm: initLayerNorm(init, 'decoder/finalNorm', decoder.width),
      head: projection('decoder/head', decoder.width, vocabulary),
    },
    logitScale: init.fill('logitScale', [], Math.log(1 / 0.07)),
  };
}

/** @param contextWidth of what the block looks at beside the words; undefined: nothing */
function initCocaBlock(
  init: Initializer,
  at: string,
  { width, mlpWidth }: EncoderSizes,
  contextWidth: number | undefined,
): CocaBlockParams {
  const map = (name: string): DenseParams =>
    initDense(init, `${at}/attention/${name}`, width, width);
  const norm = (name: string): LayerNormParams => initLayerNorm(init, `${at}/${name}`, width);
  return {
    attentionNorm: norm('attentionNorm'),
    attention: {
      ...{ query: map('query'), key: map('key'), value: map('value'), output: map('output') },
    },
    ...(contextWidth !== undefined && {
      crossNorm: norm('crossNorm'),
      cross: initCrossAttention(init, `${at}/cross`, { width, contextWidth }),
    }),
    mlpNorm: norm('mlpNorm'),
    mlpIn: initDense(init, `${at}/mlpIn`, width, mlpWidth),
    mlpOut: initDense(init, `${at}/mlpOut`, mlpWidth, width),
  };
}

/** A pre-norm block of either half: attention to the words so far, to `context` [B, N, C] if any, and an MLP. */
export function cocaBlock(
  params: CocaBlockParams,
  x: tf.Tensor,
  { context, ...seen }: Pick<BlockContext, 'bias' | 'past'> & { readonly context?: tf.Tensor },
  { numHeads, activation, epsilon }: EncoderSizes,
): BlockResult {
  const { attentionNorm, attention, crossNorm, cross, mlpNorm, mlpIn, mlpOut } = params;
  const { output, made } = decoderAttention(attention, layerNorm(attentionNorm, x, epsilon), {
    ...{ ...seen, numHeads, numKeyValueHeads: numHeads },
  });
  let state = tf.add(x, output);
  if (cross !== undefined && crossNorm !== undefined && context !== undefined) {
    const normed = layerNorm(crossNorm, state, epsilon);
    state = tf.add(state, crossAttention(cross, normed, context, { numHeads }));
  }
  const hidden = ACTIVATIONS[activation](dense(mlpIn, layerNorm(mlpNorm, state, epsilon)));
  return { output: tf.add(state, dense(mlpOut, hidden)), made };
}

/**
 * The normed states of all patches of each clip, [B, F N, D].
 * @param pictures [B F, H, W, C]: of one clip F, one after another, each seen by itself
 */
export function cocaStates(
  params: CocaParams,
  pictures: tf.Tensor,
  perClip: number,
  { vision }: CocaSizes,
): tf.Tensor {
  const states = vit(params.vision, pictures, vision);
  const [count, length, width] = states.shape as [number, number, number];
  return perClip === 1 ? states : tf.reshape(states, [count / perClip, perClip * length, width]);
}

/** Patches' states to embeddings of length 1, [B, E]. */
export function cocaImages(
  params: CocaParams,
  states: tf.Tensor,
  { vision }: CocaSizes,
): tf.Tensor {
  const pooled = tokenAt(queryPool(params.contrastPool, states, vision), 0);
  return l2Normalize(dense(params.visionProjection, pooled));
}

/** What the decoder looks at, [B, Q, D]. */
export function cocaContext(
  params: CocaParams,
  states: tf.Tensor,
  { vision }: CocaSizes,
): tf.Tensor {
  return queryPool(params.captionPool, states, vision);
}

/** What the half that sees no picture makes of texts. */
export interface CocaTexts {
  /** Of each word, which sees those before it, [B, L, D]. */
  readonly words: tf.Tensor;
  /** Of each text, by the token at its end, which sees all of its words and no padding; of length 1, [B, E]. */
  readonly texts: tf.Tensor;
}

/**
 * Ids [B, L] (int32) through the first half.
 * @param present [B, L] float32, 0 at padding
 */
export function cocaTexts(
  params: CocaParams,
  { ids, present }: { readonly ids: tf.Tensor; readonly present: tf.Tensor },
  { text: sizes }: CocaSizes,
): CocaTexts {
  const { words, position, classToken, blocks, norm } = params.text;
  const [batch, length] = ids.shape as [number, number];
  const tokens = appendToken(classToken, embed(words, ids));
  // The token at the end stands at the same place whatever there is of the text.
  const placed = addPositions(tokens, placesWithEnd(position, length));
  const there = tf.concat([present, tf.ones([batch, 1])], 1);
  const bias = tf.add(causalBias(length + 1), keyBias(there));
  const states = repeatLayers(
    blocks,
    placed,
    (block, state, [seen]) => cocaBlock(block, state, { bias: seen! }, sizes).output,
    { shared: [bias] },
  );
  const end = layerNorm(norm, tokenAt(states, length), sizes.epsilon);
  return {
    words: tf.slice(states, [0, 0, 0], [-1, length, -1]),
    texts: l2Normalize(dense(params.textProjection, end)),
  };
}

/** The first `length` rows of a table of positions, and its last. */
function placesWithEnd(position: tf.Tensor, length: number): tf.Tensor {
  const last = position.shape[0] - 1;
  if (length === last) return position;
  return tf.concat([tf.slice(position, 0, length), tf.slice(position, last, 1)]);
}

/**
 * Logits of the token after each word, [B, L, V]: the second half, in which each word sees those before it and what was
 * pooled of the pictures, [B, Q, C]. The token at the end is not among the words. Padding comes behind, where nobody
 * looks.
 */
export function cocaLogits(
  params: CocaParams,
  words: tf.Tensor,
  context: tf.Tensor,
  { decoder: sizes }: CocaSizes,
): tf.Tensor {
  const { blocks, finalNorm, head } = params.decoder;
  const states = repeatLayers(
    blocks,
    words,
    (block, state, [bias, seen]) =>
      cocaBlock(block, state, { bias: bias!, context: seen! }, sizes).output,
    { shared: [causalBias(words.shape[1]!), context] },
  );
  return dense(head, layerNorm(finalNorm, states, sizes.epsilon));
}
