import * as tf from '@tensorflow/tfjs-core';
import { repeatLayers } from '../layer-loop.ts';
import { gatherTokens } from '../tokens/gather-tokens.ts';
import type { Stacked } from '../tree.ts';
import {
  binaryCrossEntropySums,
  crossEntropySums,
  type ObjectiveSums,
} from '../losses/cross-entropy.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { ACTIVATIONS } from '../layers/activations.ts';
import {
  initBlock,
  transformerBlock,
  type BlockOptions,
  type BlockParams,
} from '../layers/transformer-block.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import { type Initializer } from '../initializer.ts';

/** Sizes of the model; everything else follows from them. */
export interface VideoBertSizes {
  readonly width: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly mlpRatio: number;
  /** Word pieces, special tokens included. */
  readonly textVocabulary: number;
  /** Visual words, the visual mask not included. */
  readonly visualVocabulary: number;
  /** Width of a visual word's centroid. */
  readonly centroidWidth: number;
  /** Length of a sequence `[CLS] w1..wn [>] v1..vm [SEP]`. */
  readonly length: number;
  /** `pre-norm` unless given. */
  readonly blocks?: VideoBertBlocks;
}

/** Norms before each part and one at the end, as trains best from scratch; or BERT's own, to begin from its weights. */
export type VideoBertBlocks = 'pre-norm' | 'bert';

/** How each kind of block computes. BERT's: Devlin et al. 2019, arXiv:1810.04805, as its released weights want it. */
export const VIDEOBERT_BLOCKS = {
  'pre-norm': { norm: 'pre', activation: 'gelu-tanh', epsilon: 1e-5 },
  bert: { norm: 'post', activation: 'gelu', epsilon: 1e-12 },
} as const satisfies Record<VideoBertBlocks, Omit<BlockOptions, 'numHeads'>>;

export type VideoBertParams = {
  readonly text: tf.Tensor; // [V, D]
  readonly visualMask: tf.Tensor; // [1, D]
  readonly visualProjection: DenseParams; // centroid to D
  readonly position: tf.Tensor; // [L, D]
  readonly segment: tf.Tensor; // [2, D]
  readonly embeddingNorm: LayerNormParams;
  readonly blocks: Stacked<BlockParams>;
  /** Not of BERT's blocks, which end with one. */
  readonly finalNorm?: LayerNormParams;
  readonly textHead: HeadParams;
  readonly visualHead: HeadParams;
  readonly alignmentHead: DenseParams; // D to 1
};

/** BERT's prediction head: dense, GELU, norm, then the embedding table itself and a bias a word. */
type HeadParams = {
  readonly dense: DenseParams;
  readonly norm: LayerNormParams;
  readonly bias: tf.Tensor; // [classes]
};

/** A microbatch on the device; see `videobert-batch.ts` for how it is made. */
export type VideoBertBatch = {
  readonly ids: tf.Tensor; // [B, L] int32: word pieces, then the visual mask, then visual words
  readonly segments: tf.Tensor; // [B, L] float32: 0 text, 1 video
  readonly present: tf.Tensor; // [B, L] float32: 0 at padding
  readonly textPositions: tf.Tensor; // [B, P] int32, as the labels
  readonly textLabels: tf.Tensor;
  readonly textWeights: tf.Tensor; // [B, P] float32: 0 where there is nothing to predict
  /** [B, V] float32: 1 for the word pieces that are to choose among, where not all are. */
  readonly textChoices?: tf.Tensor;
  readonly visualPositions: tf.Tensor; // [B, Q]
  readonly visualLabels: tf.Tensor;
  readonly visualWeights: tf.Tensor;
  readonly matched: tf.Tensor; // [B] float32: 1 where the text belongs to the video
  readonly alignmentWeights: tf.Tensor; // [B]
};

/** Source: Sun et al. 2019, arXiv:1904.01766, sec. 3.2; pre-norm blocks where it trains without BERT's weights. */
export function initVideoBert(sizes: VideoBertSizes, init: Initializer): VideoBertParams {
  const { width, numLayers, mlpRatio, textVocabulary, visualVocabulary, centroidWidth, length } =
    sizes;
  const head = (path: string, numClasses: number): HeadParams => ({
    dense: initDense(init, `${path}/dense`, width, width),
    norm: initLayerNorm(init, `${path}/norm`, width),
    bias: init.fill(`${path}/bias`, [numClasses], 0),
  });
  return {
    text: init.normal('text', [textVocabulary, width], 0.02),
    visualMask: init.normal('visualMask', [1, width], 0.02),
    visualProjection: initDense(init, 'visualProjection', centroidWidth, width),
    position: init.normal('position', [length, width], 0.02),
    segment: init.normal('segment', [2, width], 0.02),
    embeddingNorm: initLayerNorm(init, 'embeddingNorm', width),
    blocks: { '*': initBlock(init.layers(numLayers), 'blocks/*', width, mlpRatio) },
    ...(sizes.blocks !== 'bert' && { finalNorm: initLayerNorm(init, 'finalNorm', width) }),
    textHead: head('textHead', textVocabulary),
    visualHead: head('visualHead', visualVocabulary),
    alignmentHead: initDense(init, 'alignmentHead', width, 1),
  };
}

/** The states of all positions, [B, L, D], and the embeddings of the visual words, [K, D]. */
function encode(
  params: VideoBertParams,
  centroids: tf.Tensor,
  { ids, segments, present }: VideoBertBatch,
  { numHeads, blocks = 'pre-norm' }: VideoBertForm,
): { states: tf.Tensor; visualTable: tf.Tensor } {
  const [batch, length] = ids.shape as [number, number];
  const visualTable = dense(params.visualProjection, centroids); // [K, D]
  const table = tf.concat([params.text, params.visualMask, visualTable], 0);
  const words = tf.reshape(tf.gather(table, tf.reshape(ids, [-1])), [batch, length, -1]);
  const [textSegment, videoSegment] = tf.split(params.segment, 2); // each [1, D]
  const segment = tf.add(
    textSegment!,
    tf.mul(tf.expandDims(segments, -1), tf.sub(videoSegment!, textSegment!)),
  ); // [B, L, D]
  const embedded = tf.add(tf.add(words, segment), params.position);
  const bias = tf.mul(tf.sub(tf.reshape(present, [batch, 1, 1, length]), 1), 1e9);
  const form = VIDEOBERT_BLOCKS[blocks];
  const { finalNorm } = params;
  const states = repeatLayers(
    params.blocks,
    layerNorm(params.embeddingNorm, embedded, form.epsilon),
    (block, x, [seen]) => transformerBlock(block, x, { ...form, numHeads, bias: seen! }),
    { shared: [bias] },
  );
  return {
    states: finalNorm === undefined ? states : layerNorm(finalNorm, states, form.epsilon),
    visualTable,
  };
}

/** States [N, D] to logits over the rows of a table [K, D]. */
function headLogits(
  params: HeadParams,
  states: tf.Tensor,
  table: tf.Tensor,
  blocks: VideoBertBlocks = 'pre-norm',
): tf.Tensor {
  const { activation, epsilon } = VIDEOBERT_BLOCKS[blocks];
  const hidden = layerNorm(
    params.norm,
    ACTIVATIONS[activation](dense(params.dense, states)),
    epsilon,
  );
  return tf.add(tf.matMul(hidden as tf.Tensor2D, table as tf.Tensor2D, false, true), params.bias);
}

/** What of the sizes the computation needs. */
export type VideoBertForm = Pick<VideoBertSizes, 'numHeads' | 'blocks'>;

/** Logits of the hidden positions, [B P, V] and [B Q, K], and of the alignment, [B]. */
export interface VideoBertLogits {
  readonly text: tf.Tensor;
  readonly visual: tf.Tensor;
  readonly alignment: tf.Tensor;
}

export function videoBertLogits(
  params: VideoBertParams,
  centroids: tf.Tensor,
  batch: VideoBertBatch,
  form: VideoBertForm,
): VideoBertLogits {
  const { states, visualTable } = encode(params, centroids, batch, form);
  const width = states.shape[2]!;
  const chosen = (positions: tf.Tensor): tf.Tensor =>
    tf.reshape(gatherTokens(states, positions), [-1, width]);
  const first = tf.reshape(tf.slice(states, [0, 0, 0], [-1, 1, -1]), [-1, width]);
  return {
    text: headLogits(params.textHead, chosen(batch.textPositions), params.text, form.blocks),
    visual: headLogits(params.visualHead, chosen(batch.visualPositions), visualTable, form.blocks),
    alignment: tf.reshape(dense(params.alignmentHead, first), [-1]),
  };
}

/**
 * Masked language modelling, masked frame modelling (both cross entropy over the chosen positions) and
 * linguistic-visual alignment (binary, on the state of `[CLS]`). Source: arXiv:1904.01766, sec. 3.2-3.3.
 */
export function videoBertSums(
  logits: VideoBertLogits,
  batch: VideoBertBatch,
): Record<'masked-token' | 'masked-frame' | 'alignment', ObjectiveSums> {
  const flat = (x: tf.Tensor): tf.Tensor => tf.reshape(x, [-1]);
  const { textLabels, textWeights, textChoices } = batch;
  const text = textChoices === undefined ? logits.text : among(textChoices, logits.text);
  return {
    'masked-token': crossEntropySums(text, flat(textLabels), flat(textWeights)),
    'masked-frame': crossEntropySums(
      logits.visual,
      flat(batch.visualLabels),
      flat(batch.visualWeights),
    ),
    alignment: binaryCrossEntropySums(logits.alignment, batch.matched, batch.alignmentWeights),
  };
}

/** Logits [B P, V] with those of words that a row's `choices` [B, V] leave out far below all others. */
function among(choices: tf.Tensor, logits: tf.Tensor): tf.Tensor {
  const [batch, size] = choices.shape as [number, number];
  const bias = tf.mul(tf.sub(tf.reshape(choices, [batch, 1, size]), 1), 1e9);
  return tf.reshape(tf.add(tf.reshape(logits, [batch, -1, size]), bias), [-1, size]);
}
