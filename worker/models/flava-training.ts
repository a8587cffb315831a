/**
 * What FLAVA is trained by: hidden patches and words of one modality alone, pairs that are told apart, and hidden patches
 * and words of pairs that both encoders' states tell together.
 * Source: Singh et al. 2022, arXiv:2112.04482, sec. 3; transformers, FlavaForPreTraining.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { tokenAt } from '../layers/embedding.ts';
import type { EncoderSizes } from '../layers/encoder.ts';
import { l2Normalize } from '../layers/normalize.ts';
import { layerNorm } from '../layers/norm.ts';
import { crossEntropySums, type ObjectiveSums } from '../losses/cross-entropy.ts';
import { gatherTokens } from '../tokens/gather-tokens.ts';
import {
  initPredictionHead,
  pooled,
  predictionLogits,
  type BertInput,
  type PredictionHeadParams,
} from './bert.ts';
import {
  flavaImageStates,
  flavaJointStates,
  flavaTextStates,
  initFlavaEncoders,
  type FlavaEncoders,
  type FlavaSizes,
} from './flava.ts';

export interface FlavaTrainingSizes extends FlavaSizes {
  /** Visual words, which a hidden patch is one of. */
  readonly codes: number;
}

/** BERT's prediction head with a table of its own. */
type HeadParams = PredictionHeadParams & {
  readonly table: tf.Tensor; // [classes, D]
};

export type FlavaTrainingParams = FlavaEncoders & {
  /** Heads for hidden patches and words of one modality alone, and of pairs; what pairs are told apart by. */
  readonly heads: Readonly<Record<'image' | 'text' | 'jointImage' | 'jointText', HeadParams>> & {
    readonly match: DenseParams; // D to 2
  };
};

/** What is hidden of rows of tokens, and what stood there. */
export interface HiddenTokens {
  readonly positions: tf.Tensor; // [B, K] int32, among the patches or the words, [CLS] of words included
  readonly labels: tf.Tensor; // [B, K] int32
  readonly weights: tf.Tensor; // [B, K], 0 where nothing is asked
}

export function initFlavaTraining(
  sizes: FlavaTrainingSizes,
  init: Initializer,
): FlavaTrainingParams {
  const { image, text, joint, codes } = sizes;
  const head = ({ width }: EncoderSizes, name: string, classes: number): HeadParams => ({
    ...initPredictionHead({ width, vocabulary: classes }, init, `heads/${name}`),
    table: init.normal(`heads/${name}/table`, [classes, width], 0.02),
  });
  return {
    ...initFlavaEncoders(sizes, init),
    heads: {
      image: head(image, 'image', codes),
      text: head(text, 'text', text.vocabulary),
      jointImage: head(joint, 'jointImage', codes),
      jointText: head(joint, 'jointText', text.vocabulary),
      match: initDense(init, 'heads/match', joint.width, 2),
    },
  };
}

/** Unit vectors of whole pictures [B, H, W, C] and whole texts, [B, E] each: of the normed states of both [CLS]. */
export function flavaImageEmbedding(
  params: FlavaEncoders,
  images: tf.Tensor,
  sizes: FlavaSizes,
): tf.Tensor {
  const first = tokenAt(flavaImageStates(params, images, sizes), 0);
  const normed = layerNorm(params.image.finalNorm, first, sizes.image.epsilon);
  return l2Normalize(dense(params.imageProjection, normed));
}

/** As {@link flavaImageEmbedding}. */
export function flavaTextEmbedding(
  params: FlavaEncoders,
  input: BertInput,
  sizes: FlavaSizes,
): tf.Tensor {
  const first = tokenAt(flavaTextStates(params, input, sizes), 0);
  const normed = layerNorm(params.text.finalNorm, first, sizes.text.epsilon);
  return l2Normalize(dense(params.textProjection, normed));
}

/** Logits of the hidden patches of pictures by themselves, [B K, codes], of their states before the final norm. */
export function flavaPatchLogits(
  { image, heads }: FlavaTrainingParams,
  states: tf.Tensor,
  positions: tf.Tensor,
  sizes: FlavaSizes,
): tf.Tensor {
  const hidden = statesAt(states, positions, PATCHES_OF_IMAGE);
  const normed = layerNorm(image.finalNorm, hidden, sizes.image.epsilon);
  return predictionLogits(heads.image, normed, heads.image.table, sizes.image);
}

/** As {@link flavaPatchLogits} of the hidden words of texts by themselves, [B K, V]. */
export function flavaWordLogits(
  { text, heads }: FlavaTrainingParams,
  states: tf.Tensor,
  positions: tf.Tensor,
  sizes: FlavaSizes,
): tf.Tensor {
  const normed = layerNorm(text.finalNorm, statesAt(states, positions), sizes.text.epsilon);
  return predictionLogits(heads.text, normed, heads.text.table, sizes.text);
}

/** The joint states' own {@link flavaPatchLogits}. */
export function flavaJointPatchLogits(
  { heads }: FlavaTrainingParams,
  joint: tf.Tensor,
  positions: tf.Tensor,
  sizes: FlavaSizes,
): tf.Tensor {
  const hidden = statesAt(joint, positions, 1 + PATCHES_OF_IMAGE);
  return predictionLogits(heads.jointImage, hidden, heads.jointImage.table, sizes.joint);
}

/** The joint states' own {@link flavaWordLogits}. @param length tokens of a text, which stand at the end */
export function flavaJointWordLogits(
  { heads }: FlavaTrainingParams,
  joint: tf.Tensor,
  { positions, length }: { readonly positions: tf.Tensor; readonly length: number },
  sizes: FlavaSizes,
): tf.Tensor {
  const hidden = statesAt(joint, positions, joint.shape[1]! - length);
  return predictionLogits(heads.jointText, hidden, heads.jointText.table, sizes.joint);
}

/** Logits of whether picture and text belong together, [B, 2]: the joint [CLS] through its pooler. */
export function flavaMatchLogits(
  { joint: { pooler }, heads }: FlavaTrainingParams,
  joint: tf.Tensor,
): tf.Tensor {
  return dense(heads.match, pooled(pooler, joint));
}

/** A microbatch: what is masked of it, and what the rows are. */
export type FlavaBatch = {
  readonly images: tf.Tensor; // [B, H, W, C]
  readonly hiddenPatches: tf.Tensor; // [B, N] float32, 1 at hidden ones
  /** Of the words with [MASK] in place; in some rows of another sample's text. */
  readonly masked: BertInput;
  readonly patches: Omit<HiddenTokens, 'weights'>;
  readonly words: Omit<HiddenTokens, 'weights'>;
  /** Of the rows that have one modality alone, and of the pairs that match. */
  readonly patchWeights: Readonly<Record<'alone' | 'joint', tf.Tensor>>; // [B, K]
  readonly wordWeights: Readonly<Record<'alone' | 'joint', tf.Tensor>>;
  readonly matchLabels: tf.Tensor; // [B] int32, 1 where the text belongs to the picture
  readonly matchWeights: tf.Tensor; // [B]
};

export type FlavaObjective = 'mim' | 'mlm' | 'mmm-image' | 'mmm-text' | 'itm';

/**
 * The losses of a microbatch, but for the contrast. The joint encoder gets the masked picture and the masked text, for
 * matching too; rows of one modality go through all modules and count in none of the joint losses, so that these have
 * a gradient of exactly zero by them.
 * Source: arXiv:2112.04482, sec. 3.2 and 3.3; transformers, FlavaForPreTraining.forward.
 */
export function flavaSums(
  params: FlavaTrainingParams,
  batch: FlavaBatch,
  sizes: FlavaSizes,
): Record<FlavaObjective, ObjectiveSums> {
  const { masked, patches, words, patchWeights, wordWeights } = batch;
  const seen = flavaImageStates(params, batch.images, sizes, { hidden: batch.hiddenPatches });
  const read = flavaTextStates(params, masked, sizes);
  const joint = flavaJointStates(params, seen, read, masked.present, sizes);
  const place = { positions: words.positions, length: masked.ids.shape[1]! };
  const sums = (logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor): ObjectiveSums =>
    crossEntropySums(logits, tf.reshape(labels, [-1]), tf.reshape(weights, [-1]));
  return {
    mim: sums(
      flavaPatchLogits(params, seen, patches.positions, sizes),
      patches.labels,
      patchWeights.alone,
    ),
    mlm: sums(
      flavaWordLogits(params, read, words.positions, sizes),
      words.labels,
      wordWeights.alone,
    ),
    'mmm-image': sums(
      flavaJointPatchLogits(params, joint, patches.positions, sizes),
      patches.labels,
      patchWeights.joint,
    ),
    'mmm-text': sums(
      flavaJointWordLogits(params, joint, place, sizes),
      words.labels,
      wordWeights.joint,
    ),
    itm: sums(flavaMatchLogits(params, joint), batch.matchLabels, batch.matchWeights),
  };
}

/** Patches stand behind the picture's [CLS]. */
const PATCHES_OF_IMAGE = 1;

/** States of positions [B, K] that are counted from `first` on, [B K, D]. */
function statesAt(states: tf.Tensor, positions: tf.Tensor, first = 0): tf.Tensor {
  const places = first === 0 ? positions : tf.add(positions, tf.scalar(first, 'int32'));
  return tf.reshape(gatherTokens(states, places), [-1, states.shape[2]!]);
}
