/** The sigmoid loss where a picture is seen otherwise by each text: every pair is a mixture of its own. */
import * as tf from '@tensorflow/tfjs-core';
import { repeatLayers, scanLayers } from '../layer-loop.ts';
import type { MixtureSizes, MixtureTokens } from '../layers/contextual-mix.ts';
import { llipSimilarities, type LlipTexts } from '../models/llip.ts';
import { constantOf } from '../tokens/constant.ts';
import type { Stacked } from '../tree.ts';
import type { ObjectiveSums } from './cross-entropy.ts';
import { belongsToOwn, belongTogether, type GroupIds } from './group-ids.ts';

/** All rows of a global batch. */
export interface ContextualPairs extends MixtureTokens, LlipTexts {
  /** Of each row's text, [G, 2]. */
  readonly textIds: GroupIds;
  /** Of all texts that are known to be true of each row's picture, its own among them, [G, C, 2]; one may stand there twice. */
  readonly knownIds: tf.Tensor;
}

/** What a comparison has beside the rows. */
export interface Comparison {
  /** From the mixed values to what is compared, [M, E]. */
  readonly output: tf.Tensor;
  /** Exp of the learned t'; a scalar. */
  readonly scale: tf.Tensor;
  readonly bias: tf.Tensor; // a scalar
}

type ImageRows = {
  readonly keys: tf.Tensor;
  readonly values: tf.Tensor;
  readonly known: tf.Tensor;
};

/**
 * SigLIP's loss over all pairs, where each picture is mixed as the text of the pair asks for, be it its own or not; to be
 * divided by the number of rows. `correct` counts the pictures whose nearest text is known to be true of them.
 * Source: Lavoie et al. 2024, arXiv:2405.00740, sec. 3; Zhai et al. 2023, arXiv:2303.15343, algorithm 1.
 *
 * @param chunk pictures that are mixed at a time, for all texts: memory is that of so many times G mixtures, and the
 *   backward pass mixes again. All by default.
 */
export function contextualSigmoidSums(
  { keys, values, queries, texts, textIds, knownIds }: ContextualPairs,
  { output, scale, bias }: Comparison,
  sizes: MixtureSizes,
  chunk = keys.shape[0],
): ObjectiveSums {
  const shared = [queries, texts, textIds, output];
  const similaritiesOf = (rows: ImageRows, [ask, are, , kernel]: readonly tf.Tensor[]): tf.Tensor =>
    llipSimilarities({ kernel: kernel! }, rows, { queries: ask!, texts: are! }, sizes);
  const lossOf = (rows: ImageRows, given: readonly tf.Tensor[]): tf.Tensor => {
    const [, , ids, , scale_, bias_] = given;
    const logits = tf.add(tf.mul(similaritiesOf(rows, given), scale_!), bias_!);
    const sign = tf.sub(tf.mul(knownTogether(rows.known, ids!), 2), 1);
    return tf.sum(tf.softplus(tf.neg(tf.mul(sign, logits))));
  };
  const rightOf = (rows: ImageRows, given: readonly tf.Tensor[]): tf.Tensor => {
    const nearest = tf.gather(given[2]!, tf.argMax(similaritiesOf(rows, given), -1)); // [c, 2]
    const isKnown = knownOf(rows.known).map((ids) => belongsToOwn(nearest, ids));
    return tf.sum(isKnown.reduce((a, b) => tf.maximum(a, b)));
  };
  let [lossSum, correct]: [tf.Tensor, tf.Tensor] = [tf.scalar(0), tf.scalar(0)];
  for (const rows of chunked({ keys, values, known: knownIds }, chunk)) {
    lossSum = repeatLayers(rows, lossSum, (own, sum, given) => tf.add(sum, lossOf(own, given)), {
      shared: [...shared, scale, bias],
      remat: true,
    });
    correct = scanLayers(
      rows,
      correct,
      (own, sum, given) => ({ output: tf.add(sum, rightOf(own, given)), made: {} }),
      { shared },
    ).output;
  }
  return { lossSum, correct };
}

/** 1 where a text is known to be true of a picture, [c, G]; no gradient. */
function knownTogether(known: tf.Tensor, textIds: GroupIds): tf.Tensor {
  return constantOf(() =>
    knownOf(known)
      .map((ids) => belongTogether(ids, textIds))
      .reduce((a, b) => tf.maximum(a, b)),
  );
}

/** [c, C, 2] as C times [c, 2]. */
function knownOf(known: tf.Tensor): GroupIds[] {
  return tf.unstack(known, 1);
}

/** Rows as equal chunks, in one loop, and what is left over as another. */
function chunked(all: ImageRows, size: number): Stacked<ImageRows>[] {
  const rows = all.keys.shape[0];
  const whole = Math.floor(rows / size);
  const cut = (tensor: tf.Tensor, start: number, count: number, each: number): tf.Tensor => {
    const [, ...rest] = tensor.shape;
    return tf.reshape(tf.slice(tensor, start, count * each), [count, each, ...rest]);
  };
  const part = (start: number, count: number, each: number): Stacked<ImageRows> => ({
    '*': {
      keys: cut(all.keys, start, count, each),
      values: cut(all.values, start, count, each),
      known: cut(all.known, start, count, each),
    },
  });
  const left = rows - whole * size;
  return [
    ...(whole === 0 ? [] : [part(0, whole, size)]),
    ...(left === 0 ? [] : [part(whole * size, 1, left)]),
  ];
}
