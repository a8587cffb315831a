/** Losses that tell the right pair from all others of the global batch. */
import * as tf from '@tensorflow/tfjs-core';
import { rematerialized } from '../layer-loop.ts';
import type { ObjectiveSums } from './cross-entropy.ts';
import { belongsToOwn, belongTogether, type GroupIds } from './group-ids.ts';

/**
 * Of CLIP's learned logarithm of the scale: similarities are multiplied by 100 at most. It is the parameter that is
 * bounded, behind each step: clipped in the loss it would have no gradient beyond, and never come back.
 * Source: Radford et al. 2021, arXiv:2103.00020, sec. 2.5; mlfoundations/open_clip, train.py, which has the 0 too.
 */
export const LOGIT_SCALE_BOUNDS = [0, Math.log(100)] as const;

/** Rows that belong together: one embedding each, L2-normalised. */
export interface Pairs {
  /** [G, D] */
  readonly left: tf.Tensor;
  /** [G, D] */
  readonly right: tf.Tensor;
  /** Rows with equal ids belong together too, as pictures of one caption do. */
  readonly groupIds: GroupIds;
  /** [G], 0 for rows whose answer does not count in `correct`; all count unless given. */
  readonly counted?: tf.Tensor;
  /**
   * [G], 0 for rows that have one side alone: of {@link infoNceSums}, they are neither compared nor compared with, and
   * loss, answers and gradients are those of the others alone. All have both unless given; no gradient.
   */
  readonly paired?: tf.Tensor;
}

/** What is added to a similarity so that its share of a softmax is 0 in float32. */
const UNPAIRED = -1e9;

/**
 * InfoNCE in both directions, 1/2 each, summed over the rows; where several rows belong together the target is spread
 * evenly over them. `correct` counts the rows of `left` whose nearest of `right` belongs to them.
 * Source: Radford et al. 2021, arXiv:2103.00020, fig. 3; several positives: Khosla et al. 2020, arXiv:2004.11362, eq. 2.
 *
 * @param scale what similarities are multiplied by: exp of a learned scalar, or 1 / temperature
 * @param chunk rows compared at a time, whose similarities are computed again in the backward pass; all by default
 */
export function infoNceSums(pairs: Pairs, scale: tf.Tensor, chunk?: number): ObjectiveSums {
  const { left, right, groupIds, paired } = pairs;
  const rows = left.shape[0];
  const oneWay = (from: tf.Tensor, to: tf.Tensor, start: number, size: number): tf.Tensor => {
    const own = tf.slice(from, [start, 0], [size, -1]);
    const ids = rowsOf(groupIds, start, size);
    return rematerialized(
      ([some, all, own_, ids_, scale_, ownPaired, allPaired]) => {
        const logits = similarities(some!, all!, scale_!);
        const together = belongTogether(own_!, ids_!);
        if (ownPaired === undefined || allPaired === undefined) {
          const targets = tf.div(together, tf.sum(together, -1, true));
          return tf.neg(tf.sum(tf.mul(tf.logSoftmax(logits), targets)));
        }
        const across = tf.reshape(allPaired, [1, -1]);
        const wanted = tf.mul(together, tf.mul(tf.reshape(ownPaired, [-1, 1]), across));
        // A row without the other side wants nothing.
        const targets = tf.div(wanted, tf.maximum(tf.sum(wanted, -1, true), 1));
        const shown = tf.add(logits, unpairedBias(across));
        return tf.neg(tf.sum(tf.mul(tf.logSoftmax(shown), targets)));
      },
      [
        ...[own, to, ids, groupIds, scale],
        ...(paired === undefined ? [] : [tf.slice(paired, [start], [size]), paired]),
      ],
    );
  };
  const parts = chunks(rows, chunk).flatMap(({ start, size }) => [
    oneWay(left, right, start, size),
    oneWay(right, left, start, size),
  ]);
  return {
    lossSum: tf.mul(tf.addN(parts), 0.5),
    correct: nearestBelongs(pairs, chunk),
  };
}

/**
 * The sigmoid loss: every pair of rows by itself is one that belongs together or not; summed over all pairs. It is to be
 * divided by the number of rows. Source: Zhai et al. 2023, arXiv:2303.15343, algorithm 1.
 *
 * @param scale exp of the learned t'
 * @param bias the learned b, -10 at the start
 */
export function sigmoidSums(
  pairs: Pairs,
  scale: tf.Tensor,
  bias: tf.Tensor,
  chunk?: number,
): ObjectiveSums {
  const { left, right, groupIds } = pairs;
  const parts = chunks(left.shape[0], chunk).map(({ start, size }) =>
    rematerialized(
      ([some, all, own, ids, scale_, bias_]) => {
        const logits = tf.add(similarities(some!, all!, scale_!), bias_!);
        const sign = tf.sub(tf.mul(belongTogether(own!, ids!), 2), 1);
        return tf.sum(tf.softplus(tf.neg(tf.mul(sign, logits))));
      },
      [
        tf.slice(left, [start, 0], [size, -1]),
        right,
        rowsOf(groupIds, start, size),
        groupIds,
        scale,
        bias,
      ],
    ),
  );
  return { lossSum: tf.addN(parts), correct: nearestBelongs(pairs, chunk) };
}

function nearestBelongs(
  { left, right, groupIds, counted, paired }: Pairs,
  chunk: number | undefined,
): tf.Tensor {
  const asked = [counted, paired].filter((rows) => rows !== undefined);
  const parts = chunks(left.shape[0], chunk).map(({ start, size }) => {
    const logits = tf.matMul(tf.slice(left, [start, 0], [size, -1]), right, false, true);
    const shown =
      paired === undefined ? logits : tf.add(logits, unpairedBias(tf.reshape(paired, [1, -1])));
    const found = tf.gather(groupIds, tf.argMax(shown, -1));
    const isRight = belongsToOwn(found, rowsOf(groupIds, start, size));
    return tf.sum(
      asked.reduce((right_, rows) => tf.mul(right_, tf.slice(rows, [start], [size])), isRight),
    );
  });
  return tf.addN(parts);
}

/** Hides the rows without both sides from those that are compared, [1, G]. */
function unpairedBias(paired: tf.Tensor): tf.Tensor {
  return tf.mul(tf.sub(1, paired), UNPAIRED);
}

/** [c, D] and [G, D] to [c, G]. */
function similarities(some: tf.Tensor, all: tf.Tensor, scale: tf.Tensor): tf.Tensor {
  return tf.mul(tf.matMul(some, all, false, true), scale);
}

function rowsOf(ids: GroupIds, start: number, size: number): GroupIds {
  return tf.slice(ids, start, size);
}

function chunks(rows: number, chunk = rows): { start: number; size: number }[] {
  return Array.from({ length: Math.ceil(rows / chunk) }, (_, k) => ({
    start: k * chunk,
    size: Math.min(chunk, rows - k * chunk),
  }));
}
