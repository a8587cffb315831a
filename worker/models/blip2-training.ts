/** The three losses that BLIP-2's Q-Former is trained by before it meets a language model. */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { crossEntropySums, type ObjectiveSums } from '../losses/cross-entropy.ts';
import type { GroupIds } from '../losses/group-ids.ts';
import { nextTokenSums } from '../losses/next-token.ts';
import { hardNegatives, querySimilarities } from '../losses/query-contrast.ts';
import { constantOf } from '../tokens/constant.ts';
import { initPredictionHead, predictionLogits, type PredictionHeadParams } from './bert.ts';
import {
  blip2Contrast,
  blip2Joint,
  blip2Match,
  initBlip2,
  type Blip2Params,
  type Blip2Sizes,
} from './blip2.ts';
import { vit } from './vit.ts';

export type Blip2TrainingParams = Blip2Params & {
  readonly wordHead: PredictionHeadParams;
  /** ln(1 / temperature), a scalar. */
  readonly logitScale: tf.Tensor;
};

export type Blip2Batch = {
  readonly images: tf.Tensor; // [B, H, W, 3]
  readonly ids: tf.Tensor; // [B, L] int32: [CLS] words [SEP]
  readonly present: tf.Tensor; // [B, L], of `writeIds` too
  readonly writeIds: tf.Tensor; // [B, L] int32: `ids` with the token that begins writing in place of [CLS]
  readonly writeLabels: tf.Tensor; // [B, L] int32
  readonly textIds: GroupIds;
  /** Gumbel noise, or what makes the draw regardless of the similarity. */
  readonly textNoise: tf.Tensor; // [B, B]
  readonly imageNoise: tf.Tensor;
  /** Of [the pair itself, with another text, with another picture], 0 or 1, [3 B] */
  readonly matchWeights: tf.Tensor;
};

export function initBlip2Training(sizes: Blip2Sizes, init: Initializer): Blip2TrainingParams {
  const head = { width: sizes.qFormer.width, vocabulary: sizes.vocabulary };
  return {
    ...initBlip2(sizes, init),
    wordHead: initPredictionHead(head, init, 'wordHead'),
    logitScale: init.fill('logitScale', [], Math.log(1 / 0.07)),
  };
}

/** What is contrasted over the global batch: queries [B, Q, E] and texts [B, E]. */
export function blip2Embeddings(
  params: Blip2TrainingParams,
  { images, ids, present }: Pick<Blip2Batch, 'images' | 'ids' | 'present'>,
  sizes: Blip2Sizes,
): { images: tf.Tensor; texts: tf.Tensor } {
  return blip2Contrast(params, vit(params.vision, images, sizes.vision), { ids, present }, sizes);
}

/**
 * Matching and writing. Pairs that do not match are drawn within the microbatch by their similarity (LAVIS: within the
 * global batch), so that no picture goes from worker to worker. Source: arXiv:2301.12597, sec. 3.2.
 */
export function blip2Sums(
  params: Blip2TrainingParams,
  batch: Blip2Batch,
  sizes: Blip2Sizes,
  { isHard }: { readonly isHard: boolean },
): { match: ObjectiveSums; write: ObjectiveSums } {
  const { ids, present, textIds } = batch;
  const count = ids.shape[0];
  const seen = vit(params.vision, batch.images, sizes.vision);
  const drawn = constantOf(() => {
    const { images, texts } = blip2Contrast(params, seen, { ids, present }, sizes);
    const own = tf.mul(querySimilarities(images, texts), tf.exp(params.logitScale));
    const logits = isHard ? own : tf.zerosLike(own);
    return tf.stack([
      hardNegatives(logits, textIds, batch.textNoise),
      hardNegatives(tf.transpose(logits), textIds, batch.imageNoise),
    ]);
  });
  const [otherTexts, otherImages] = tf.unstack(drawn) as [tf.Tensor1D, tf.Tensor1D];
  const matched = blip2Match(
    params,
    tf.concat([seen, seen, tf.gather(seen, otherImages)], 0),
    {
      ids: tf.concat([ids, tf.gather(ids, otherTexts), ids], 0),
      present: tf.concat([present, tf.gather(present, otherTexts), present], 0),
    },
    sizes,
  );
  const labels = tf.concat([tf.ones([count], 'int32'), tf.zeros([2 * count], 'int32')], 0);
  return {
    match: crossEntropySums(matched, labels, batch.matchWeights),
    write: writeSums(params, seen, batch, sizes),
  };
}

/** Whether given texts belong to the pictures. */
export function blip2PairSums(
  params: Blip2TrainingParams,
  {
    images,
    ids,
    present,
    pairLabels,
    pairWeights,
  }: Pick<Blip2Batch, 'images' | 'ids' | 'present'> & {
    readonly pairLabels: tf.Tensor;
    readonly pairWeights: tf.Tensor;
  },
  sizes: Blip2Sizes,
): ObjectiveSums {
  const seen = vit(params.vision, images, sizes.vision);
  return crossEntropySums(
    blip2Match(params, seen, { ids, present }, sizes),
    pairLabels,
    pairWeights,
  );
}

/** Each word by the words before it and the queries, which do not see the words. */
export function writeSums(
  params: Blip2TrainingParams,
  seen: tf.Tensor,
  { writeIds, present, writeLabels }: Pick<Blip2Batch, 'writeIds' | 'present' | 'writeLabels'>,
  sizes: Blip2Sizes,
): ObjectiveSums {
  const states = blip2Joint(params, seen, { ids: writeIds, present }, sizes, 'write');
  const words = tf.slice(states, [0, sizes.numQueries, 0], [-1, -1, -1]);
  const logits = predictionLogits(params.wordHead, words, params.text.words, sizes.qFormer);
  return nextTokenSums(logits, writeLabels);
}
