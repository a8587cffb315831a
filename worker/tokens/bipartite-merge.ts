/**
 * ToMe: of each layer's tokens the most similar pairs become one. Tokens at even places may merge into tokens at odd
 * ones, so one matching needs no search. A matching is a map from each token to the merged token that it becomes part
 * of; merging is a sum along it, unmerging its inverse a gather, and the two are each other's gradients.
 *
 * Source: Bolya et al. 2023, "Token Merging: Your ViT But Faster", arXiv:2210.09461, sec. 3. Differences from its code:
 * the tokens that stay keep their order also where no [CLS] is protected; equal similarities are settled by place, the
 * first one merging first; any number of tokens in front can be protected.
 */
import * as tf from '@tensorflow/tfjs-core';

import { constantOf } from './constant.ts';
import { gatherTokens, rowsOfAll } from './gather-tokens.ts';
import { checkBetween, checkCount } from './token-error.ts';

/** Which merged token each token is part of. Indices, so without a gradient. */
export interface TokenMap {
  /** [B, N] int32, each in 0, ..., numMerged - 1. */
  readonly target: tf.Tensor;
  readonly numMerged: number;
}

/** Tokens that stand for several each. */
export interface SizedTokens {
  readonly tokens: tf.Tensor; // [B, N, D]
  /** How many of the first tokens each stands for, [B, N, 1]; one each where undefined. */
  readonly sizes: tf.Tensor | undefined;
}

export interface MatchOptions {
  /** r: how many tokens there are to be fewer, at most half of those not protected; more are cut to that. */
  readonly numMerges: number;
  /** The first tokens, e.g. [CLS] and a distillation token, neither merge nor are merged into. */
  readonly numProtected?: number;
}

/**
 * Matches tokens by the cosine of `metric` [B, N, C], e.g. keys averaged over the heads. Merged tokens are in this order:
 * those protected, then the even ones that stay, then the odd ones, each kind as before.
 *
 * @throws TokenError `TOKENS_BAD_SETTING`
 */
export function matchTokens(
  metric: tf.Tensor,
  { numMerges, numProtected = 0 }: MatchOptions,
): TokenMap {
  const [batch, numTokens] = metric.shape as [number, number, number];
  checkCount('numMerges', numMerges);
  checkCount('numProtected', numProtected);
  const numFree = numTokens - numProtected;
  const r = Math.max(0, Math.min(numMerges, Math.floor(numFree / 2)));
  const numMerged = numTokens - r;
  const everywhere = (from: number, to: number): tf.Tensor =>
    tf.tile(tf.expandDims(tf.range(from, to, 1, 'int32'), 0), [batch, 1]);
  if (r === 0) return { target: everywhere(0, numTokens), numMerged };

  // Places count from the start of the sequence: behind an odd number of protected tokens the first free one is odd.
  const isFirstEven = numProtected % 2 === 0;
  const numEven = isFirstEven ? Math.ceil(numFree / 2) : Math.floor(numFree / 2);
  const firstOdd = numMerged - (numFree - numEven);
  const target = constantOf(() => {
    const unit = unitVectors(tf.slice(metric, [0, numProtected, 0], [-1, -1, -1]));
    const everySecond = (from: number): tf.Tensor =>
      tf.stridedSlice(unit, [0, from, 0], unit.shape, [1, 2, 1]);
    const similarity = tf.matMul(
      everySecond(isFirstEven ? 0 : 1),
      everySecond(isFirstEven ? 1 : 0),
      false,
      true,
    ); // [B, even, odd]
    const isMerged = tf.less(rankOf(tf.max(similarity, -1)), tf.scalar(r, 'int32'));
    const stays = tf.sub(tf.scalar(1, 'int32'), tf.cast(isMerged, 'int32'));
    const partner = tf.argMax(similarity, -1);
    const even = tf.where(
      isMerged,
      tf.add(partner, tf.scalar(firstOdd, 'int32')),
      tf.add(tf.cumsum(stays, 1, true), tf.scalar(numProtected, 'int32')),
    );
    const odd = everywhere(firstOdd, numMerged);
    const free = isFirstEven ? alternate(even, odd) : alternate(odd, even);
    return numProtected === 0 ? free : tf.concat([everywhere(0, numProtected), free], 1);
  });
  return { target, numMerged };
}

/**
 * Merged tokens are means weighted by size, sizes are sums: so `sum(tokens * sizes)` stays what it was. Where nothing
 * merges, the very same tensors.
 */
export function mergeTokens(map: TokenMap, { tokens, sizes }: SizedTokens): SizedTokens {
  if (tokens.shape[1] === map.numMerged) return { tokens, sizes };
  const weighted = sizes === undefined ? tokens : tf.mul(tokens, sizes);
  const merged = sumInto(map, sizes ?? tf.ones([...tokens.shape.slice(0, 2), 1]));
  return { tokens: tf.div(sumInto(map, weighted), merged), sizes: merged };
}

/** Each token gets what the merged one of which it is part holds: [B, numMerged, ...] to [B, N, ...]. */
export function unmergeTokens({ target }: TokenMap, x: tf.Tensor): tf.Tensor {
  return gatherTokens(x, target);
}

/** The map of a merge and a later one together: the source of each token over several layers. */
export function composeMaps(first: TokenMap, second: TokenMap): TokenMap {
  const target = constantOf(() => gatherTokens(second.target, first.target));
  return { target, numMerged: second.numMerged };
}

/**
 * What proportional attention adds to the scores, [B, 1, 1, N]: a token that stands for several is looked at as if it
 * were there as often. For models that are used without training on merged tokens. Source: arXiv:2210.09461, eq. 1.
 */
export function proportionalBias(sizes: tf.Tensor): tf.Tensor {
  const [batch, numTokens] = sizes.shape as [number, number, number];
  return constantOf(() => tf.reshape(tf.log(sizes), [batch, 1, 1, numTokens]));
}

/**
 * Merges for each layer around `numMerges`: the same for all at `inflection` 0, falling from twice that to nothing at
 * -1, rising at 1. Source: arXiv:2210.09461, sec. 4.1 ("decreasing schedule").
 *
 * @throws TokenError `TOKENS_BAD_SETTING`
 */
export function mergeSchedule(numLayers: number, numMerges: number, inflection = 0): number[] {
  checkCount('numLayers', numLayers, 1);
  checkCount('numMerges', numMerges);
  checkBetween('inflection', inflection, { low: -1, high: 1 });
  const first = Math.trunc(numMerges * (1 - inflection));
  const step = numLayers === 1 ? 0 : (2 * (numMerges - first)) / (numLayers - 1);
  return Array.from({ length: numLayers }, (_, layer) => Math.trunc(first + step * layer));
}

/** Sums of [B, N, D] over the tokens of each merged one, [B, numMerged, D]. */
function sumInto({ target, numMerged }: TokenMap, x: tf.Tensor): tf.Tensor {
  const [batch, numTokens, width] = x.shape as [number, number, number];
  const flat = tf.reshape(x, [batch * numTokens, width]);
  const rows = constantOf(() => rowsOfAll(target, numMerged)) as tf.Tensor1D;
  // A scatter of rows. As a product with a one-hot [N, numMerged] it takes three times as long, and a model whose
  // products are bfloat16 would round tokens and sizes.
  const sums = tf.unsortedSegmentSum(flat, rows, batch * numMerged);
  return tf.reshape(sums, [batch, numMerged, width]);
}

/** The place of each entry of [B, N] if the greatest came first, of equal ones the first: [B, N] int32. */
function rankOf(values: tf.Tensor): tf.Tensor {
  const place = tf.range(0, values.shape[1]!, 1, 'int32');
  const [own, other] = [tf.expandDims(values, 2), tf.expandDims(values, 1)];
  const isEarlier = tf.less(tf.expandDims(place, 0), tf.expandDims(place, 1)); // [N, N]
  const goesBefore = tf.logicalOr(
    tf.greater(other, own),
    tf.logicalAnd(tf.equal(other, own), isEarlier),
  );
  return tf.sum(tf.cast(goesBefore, 'int32'), -1);
}

/** Entries of a and b [B, ...] by turns, a first; it has as many as b, or one more. */
function alternate(a: tf.Tensor, b: tf.Tensor): tf.Tensor {
  const [batch, numA] = a.shape as [number, number];
  const numB = b.shape[1]!;
  const even =
    numA === numB
      ? b
      : tf.pad(b as tf.Tensor2D, [
          [0, 0],
          [0, 1],
        ]);
  const turns = tf.reshape(tf.stack([a, even], 2), [batch, 2 * numA]);
  return tf.slice(turns, [0, 0], [-1, numA + numB]);
}

function unitVectors(x: tf.Tensor): tf.Tensor {
  const norm = tf.sum(tf.square(x), -1, true);
  return tf.mul(x, tf.rsqrt(tf.maximum(norm, 1e-30))); // of nothing, nothing instead of NaN
}
