/** Attention by where things stand, beside what they say: scores of positions, and biases by distance. */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { dense, initDense, type DenseParams } from './dense.ts';

/** What makes queries and keys of positions, for all layers. */
export type PositionProjections = {
  readonly query: DenseParams; // D to D
  readonly key: DenseParams; // D to D
};

export function initPositionProjections(
  init: Initializer,
  path: string,
  width: number,
): PositionProjections {
  return {
    query: initDense(init, `${path}/query`, width, width),
    key: initDense(init, `${path}/key`, width, width),
  };
}

/**
 * How much each of the places `from` [Lq, D] looks at each of `to` [Lk, D] for what places they are, [1, A, Lq, Lk]: the
 * same for every row of a batch and for every layer. Scaled by 1/sqrt(2 D/A), as `dotProductAttention` scales what it adds
 * them to. Source: Ke et al. 2021 (TUPE), arXiv:2006.15595, sec. 3.1, eq. 7.
 */
export function positionScores(
  { query, key }: PositionProjections,
  from: tf.Tensor,
  to: tf.Tensor,
  numHeads: number,
): tf.Tensor {
  const headWidth = from.shape[1]! / numHeads;
  const heads = (x: tf.Tensor): tf.Tensor =>
    tf.transpose(tf.reshape(x, [1, -1, numHeads, headWidth]), [0, 2, 1, 3]); // [1, A, L, D/A]
  const scaled = tf.mul(dense(query, from), 1 / Math.sqrt(2 * headWidth));
  return tf.matMul(heads(scaled), heads(dense(key, to)), false, true);
}

/**
 * A layer's biases by distance, [1, A, Lq, Lk]: for each head the rows of a table [R, A] that `index` [Lq, Lk] (int32)
 * names. Source: Raffel et al. 2020, arXiv:1910.10683, sec. 2.1; here each layer has a table of its own.
 */
export function distanceBias(table: tf.Tensor, index: tf.Tensor): tf.Tensor {
  const found = tf.gather(table, tf.reshape(index, [-1])); // [Lq Lk, A]
  return tf.reshape(tf.transpose(found), [1, table.shape[1]!, ...index.shape]);
}

/** Words that are nearer than half of so many are told apart exactly, those further away by the logarithm. */
const WORD_BUCKETS = 256;
/** Words that are this far apart, or further, count alike. */
const FURTHEST_WORDS = 1023;
/** Rows of a table of distances of words. */
export const NUM_WORD_DISTANCES = 2 * WORD_BUCKETS - 1;

/**
 * The row of each distance of words, [length, length] (int32); a constant. Source: Wang et al. 2022 (OFA),
 * arXiv:2202.03052, sec. 3.1, as its released code has it: 511 rows, by sign, exact within 128 words.
 */
export function wordDistances(length: number): tf.Tensor {
  const rows = Int32Array.from({ length: length * length }, (_, i) =>
    wordDistanceRow(Math.floor(i / length) - (i % length)),
  );
  return tf.tensor(rows, [length, length], 'int32');
}

/** Of a word that stands `distance` words behind another. */
export function wordDistanceRow(distance: number): number {
  const exact = WORD_BUCKETS / 2;
  const size = Math.min(Math.abs(distance), FURTHEST_WORDS);
  if (size <= exact) return distance + WORD_BUCKETS - 1;
  const share = Math.log(size / exact) / Math.log(FURTHEST_WORDS / exact);
  const bucket = exact + Math.ceil(share * (exact - 1));
  return Math.sign(distance) * bucket + WORD_BUCKETS - 1;
}

/** Rows of a table of the distances between patches of a grid: of rows and of columns, each with its sign. */
export function numPatchDistances(tableGrid: number): number {
  return (2 * tableGrid - 1) ** 2;
}

/**
 * The row of each distance of patches of a grid, [N, N] (int32), in a table that is made for a grid of `tableGrid`: the
 * same distance has the same row, whatever the grid; a constant. Source: Liu et al. 2021 (Swin), arXiv:2103.14030,
 * sec. 3.2, over the whole picture.
 */
export function patchDistances(gridSize: number, tableGrid: number): tf.Tensor {
  const count = gridSize ** 2;
  const rows = Int32Array.from({ length: count * count }, (_, i) => {
    const [from, to] = [Math.floor(i / count), i % count];
    const down = Math.floor(from / gridSize) - Math.floor(to / gridSize);
    const right = (from % gridSize) - (to % gridSize);
    return (down + tableGrid - 1) * (2 * tableGrid - 1) + right + tableGrid - 1;
  });
  return tf.tensor(rows, [count, count], 'int32');
}
