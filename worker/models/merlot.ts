/**
 * MERLOT: a vision tower for single frames, and one encoder that reads transcripts alone and frames and words together.
 * Source: Zellers et al. 2021, arXiv:2106.02636, and its released code; the blocks have their norms in front, since
 * they train without RoBERTa's weights.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { keyBias } from '../layers/attention-mask.ts';
import { ACTIVATIONS } from '../layers/activations.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { addPositions, embed } from '../layers/embedding.ts';
import { attentionReceived, encoder, initEncoder, type EncoderSizes } from '../layers/encoder.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import { l2Normalize } from '../layers/normalize.ts';
import type { BlockParams } from '../layers/transformer-block.ts';
import { constantOf } from '../tokens/constant.ts';
import { gatherTokens } from '../tokens/gather-tokens.ts';
import { poolSpace } from '../tokens/pool-merge.ts';
import type { Stacked } from '../tree.ts';
import { initPredictionHead, predictionLogits, type PredictionHeadParams } from './bert.ts';
import {
  initPictureTokens,
  pictureTokens,
  type PictureTokenParams,
  type PictureTokenSizes,
} from './picture-tokens.ts';

export interface MerlotSizes {
  readonly picture: PictureTokenSizes;
  readonly vision: EncoderSizes;
  /** As wide as `vision`. */
  readonly joint: EncoderSizes;
  readonly vocabulary: number;
  /** Frames, each with its transcript, that one example has. */
  readonly numSegments: number;
  /** Segments that are encoded together; divides `numSegments`. */
  readonly groupSize: number;
  /** Word pieces of a segment, the one that starts it included. */
  readonly segmentLength: number;
  readonly embedding: number;
}

/** A frame's place and order: another's, itself, or the frame before or behind a segment. */
export const PAIR_CLASSES = { same: 0, before: 1, after: 2 } as const;
const NUM_PAIR_CLASSES = 3;
/** Of the vision tower: one for the joint encoder, one to be contrasted. */
const NUM_CLASS_TOKENS = 2;

export type MerlotParams = {
  readonly picture: PictureTokenParams;
  readonly vision: {
    readonly classTokens: tf.Tensor; // [2, D]
    readonly position: tf.Tensor; // [2 + N, D]
    readonly blocks: Stacked<BlockParams>;
    readonly finalNorm: LayerNormParams;
  };
  readonly joint: {
    readonly words: tf.Tensor; // [V, D]
    /** Of words beside frames, and of words alone, [S L, D]. */
    readonly position: tf.Tensor;
    readonly alonePosition: tf.Tensor;
    /** Of frames: their places, then as many that say nothing of the place, [2 S, D]. */
    readonly moment: tf.Tensor;
    readonly embeddingNorm: LayerNormParams;
    readonly blocks: Stacked<BlockParams>;
    readonly finalNorm: LayerNormParams;
  };
  readonly wordHead: PredictionHeadParams;
  readonly pairHead: {
    readonly dense: DenseParams; // 2 D to D
    readonly norm: LayerNormParams;
    readonly classes: DenseParams; // D to 3
  };
  readonly frameHead: EmbeddingHeadParams;
  readonly textHead: EmbeddingHeadParams;
};

type EmbeddingHeadParams = { readonly hidden: DenseParams; readonly output: DenseParams };

export function initMerlot(sizes: MerlotSizes, init: Initializer): MerlotParams {
  const { picture, vision, joint, vocabulary, numSegments, segmentLength, embedding } = sizes;
  const { width } = joint;
  const table = (path: string, rows: number): tf.Tensor => init.normal(path, [rows, width], 0.02);
  const head = (path: string): EmbeddingHeadParams => ({
    hidden: initDense(init, `${path}/hidden`, width, width),
    output: initDense(init, `${path}/output`, width, embedding),
  });
  return {
    picture: initPictureTokens(picture, init, 'picture'),
    vision: {
      classTokens: table('vision/classTokens', NUM_CLASS_TOKENS),
      position: table('vision/position', NUM_CLASS_TOKENS + picture.gridSize ** 2),
      blocks: initEncoder(init, 'vision/blocks', vision),
      finalNorm: initLayerNorm(init, 'vision/finalNorm', width),
    },
    joint: {
      words: table('joint/words', vocabulary),
      position: table('joint/position', sizes.groupSize * segmentLength),
      alonePosition: table('joint/alonePosition', numSegments * segmentLength),
      moment: table('joint/moment', 2 * numSegments),
      embeddingNorm: initLayerNorm(init, 'joint/embeddingNorm', width),
      blocks: initEncoder(init, 'joint/blocks', joint),
      finalNorm: initLayerNorm(init, 'joint/finalNorm', width),
    },
    wordHead: initPredictionHead({ width, vocabulary }, init, 'wordHead'),
    pairHead: {
      dense: initDense(init, 'pairHead/dense', 2 * width, width),
      norm: initLayerNorm(init, 'pairHead/norm', width),
      classes: initDense(init, 'pairHead/classes', width, NUM_PAIR_CLASSES),
    },
    frameHead: head('frameHead'),
    textHead: head('textHead'),
  };
}

/**
 * Frames [N, H, W, 3], each by itself: what the joint encoder gets of each, [N, 1 + M, D] (a class token and patches
 * averaged two by two), and the vector to be contrasted, [N, E].
 */
export function merlotFrames(
  params: MerlotParams,
  frames: tf.Tensor,
  { picture, vision }: MerlotSizes,
): { tokens: tf.Tensor; embeddings: tf.Tensor } {
  const { classTokens, position, blocks, finalNorm } = params.vision;
  const count = frames.shape[0];
  const patches = pictureTokens(params.picture, frames, picture);
  const classes = tf.tile(tf.expandDims(classTokens, 0), [count, 1, 1]);
  const x = addPositions(tf.concat([classes, patches], 1), position);
  const states = layerNorm(finalNorm, encoder(blocks, x, vision), vision.epsilon);
  const [first, second, seen] = tf.split(states, [1, 1, picture.gridSize ** 2], 1) as [
    tf.Tensor,
    tf.Tensor,
    tf.Tensor,
  ];
  const grid = { frames: 1, height: picture.gridSize, width: picture.gridSize };
  const pooled = poolSpace(seen, grid, { height: 2, width: 2 });
  return {
    tokens: tf.concat([first, pooled], 1),
    embeddings: embeddingOf(params.frameHead, tf.reshape(second, [count, -1])),
  };
}

/** Transcripts of words alone, [B, S L]. */
export interface Transcripts {
  readonly ids: tf.Tensor; // int32
  readonly present: tf.Tensor; // float32: 0 at padding
}

/** The vector of each segment to be contrasted, [B, S, E]: the state of its start, which reads the whole transcript. */
export function merlotTexts(
  params: MerlotParams,
  { ids, present }: Transcripts,
  { joint, numSegments, segmentLength }: MerlotSizes,
): tf.Tensor {
  const { blocks, finalNorm } = params.joint;
  const x = wordsAlone(params, ids, joint);
  const states = layerNorm(
    finalNorm,
    encoder(blocks, x, joint, { bias: keyBias(present) }),
    joint.epsilon,
  );
  const starts = startsOf(states, numSegments, segmentLength);
  return embeddingOf(params.textHead, starts);
}

/** How much each word is looked at where words stand alone, [B, S L]; no gradient. */
export function merlotAttention(
  params: MerlotParams,
  { ids, present }: Transcripts,
  { joint }: MerlotSizes,
): tf.Tensor {
  return constantOf(() =>
    attentionReceived(params.joint.blocks, wordsAlone(params, ids, joint), joint, {
      bias: keyBias(present),
      present,
    }),
  );
}

/** Frames and words of groups of g segments. */
export interface JointInput {
  /** [G, g, 1 + M, D] */
  readonly tokens: tf.Tensor;
  /** Rows of the table of moments, [G, g] int32. */
  readonly moments: tf.Tensor;
  readonly ids: tf.Tensor; // [G, g L] int32
  readonly present: tf.Tensor; // [G, g L] float32
}

export interface JointStates {
  /** Of the frames' class tokens, [G, g, D]. */
  readonly frames: tf.Tensor;
  /** Of all words, [G, g L, D]. */
  readonly words: tf.Tensor;
  /** Of the segments' starts, [G, g, D]. */
  readonly starts: tf.Tensor;
}

/** Frames and words together. All that tells where a frame stands is its row of the table of moments. */
export function merlotJoint(
  params: MerlotParams,
  { tokens, moments, ids, present }: JointInput,
  { joint, groupSize, segmentLength }: MerlotSizes,
): JointStates {
  const { words, position, moment, embeddingNorm, blocks, finalNorm } = params.joint;
  const [groups, , perFrame, width] = tokens.shape as [number, number, number, number];
  const numSeen = groupSize * perFrame;
  const placed = tf.add(tokens, tf.expandDims(embed(moment, moments), 2));
  const seen = tf.reshape(placed, [groups, numSeen, width]);
  const read = addPositions(embed(words, ids), position);
  const x = layerNorm(embeddingNorm, tf.concat([seen, read], 1), joint.epsilon);
  const bias = keyBias(tf.concat([tf.ones([groups, numSeen]), present], 1));
  const states = layerNorm(finalNorm, encoder(blocks, x, joint, { bias }), joint.epsilon);
  const [ofFrames, ofWords] = tf.split(states, [numSeen, ids.shape[1]!], 1) as [
    tf.Tensor,
    tf.Tensor,
  ];
  return {
    frames: startsOf(ofFrames, groupSize, perFrame),
    words: ofWords,
    starts: startsOf(ofWords, groupSize, segmentLength),
  };
}

/** Logits of the words at positions [G, K] (int32) of {@link JointStates.words}: [G K, V]. */
export function merlotWordLogits(
  params: MerlotParams,
  words: tf.Tensor,
  positions: tf.Tensor,
  { joint }: MerlotSizes,
): tf.Tensor {
  const chosen = tf.reshape(gatherTokens(words, positions), [-1, joint.width]);
  return predictionLogits(params.wordHead, chosen, params.joint.words, joint);
}

/**
 * Logits of how two segments of a group stand, [G, 2, g, g, 3]: first of a frame (rows) to a frame (columns), then of a
 * text to a frame; see {@link PAIR_CLASSES}.
 */
export function merlotPairLogits(
  { pairHead }: MerlotParams,
  { frames, starts }: JointStates,
  { joint: { activation, epsilon, width } }: MerlotSizes,
): tf.Tensor {
  const [groups, size] = frames.shape as [number, number, number];
  const from = tf.reshape(tf.stack([frames, starts], 1), [groups, 2, size, 1, width]);
  const to = tf.reshape(frames, [groups, 1, 1, size, width]);
  const pairs = tf.concat([tf.tile(from, [1, 1, 1, size, 1]), tf.tile(to, [1, 2, size, 1, 1])], -1);
  const hidden = ACTIVATIONS[activation](dense(pairHead.dense, pairs));
  return dense(pairHead.classes, layerNorm(pairHead.norm, hidden, epsilon));
}

function wordsAlone({ joint }: MerlotParams, ids: tf.Tensor, { epsilon }: EncoderSizes): tf.Tensor {
  const { words, alonePosition, embeddingNorm } = joint;
  return layerNorm(embeddingNorm, addPositions(embed(words, ids), alonePosition), epsilon);
}

/** The first of each run of `length` tokens, [B, n length, D] to [B, n, D]. */
function startsOf(states: tf.Tensor, count: number, length: number): tf.Tensor {
  const [batch, , width] = states.shape as [number, number, number];
  const cut = tf.reshape(states, [batch, count, length, width]);
  return tf.reshape(tf.slice(cut, [0, 0, 0, 0], [-1, -1, 1, -1]), [batch, count, width]);
}

function embeddingOf({ hidden, output }: EmbeddingHeadParams, states: tf.Tensor): tf.Tensor {
  return l2Normalize(dense(output, ACTIVATIONS['gelu-tanh'](dense(hidden, states))), 1e-6);
}
