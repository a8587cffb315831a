import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { repeatLayers } from '../layer-loop.ts';
import { ACTIVATIONS } from '../layers/activations.ts';
import { selfAttention, type AttentionParams } from '../layers/attention.ts';
import { keyBias, lookBias } from '../layers/attention-mask.ts';
import {
  crossAttention,
  initCrossAttention,
  type CrossAttentionParams,
} from '../layers/cross-attention.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import type { EncoderSizes } from '../layers/encoder.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import type { Stacked } from '../tree.ts';

export interface QFormerSizes extends EncoderSizes {
  /** Width of what the queries look at. */
  readonly contextWidth: number;
  /** Every so many layers, from the first on, the queries look at the context. */
  readonly crossEvery: number;
  /** Whether texts go through as well as queries. */
  readonly hasText: boolean;
}

/** A residual part of a post-norm layer. */
type FeedForwardParams = {
  readonly in: DenseParams;
  readonly out: DenseParams;
  readonly norm: LayerNormParams;
};

type QFormerLayerParams = {
  readonly attention: AttentionParams;
  readonly attentionNorm: LayerNormParams;
  readonly cross?: CrossAttentionParams;
  readonly crossNorm?: LayerNormParams;
  /** Queries and texts share the attention, not this. */
  readonly queries: FeedForwardParams;
  readonly text?: FeedForwardParams;
};

export type QFormerParams = {
  readonly norm: LayerNormParams;
  /** Equal groups of layers, the first of each with cross-attention. */
  readonly groups: Stacked<readonly QFormerLayerParams[]>;
  /** The layers that make no whole group. */
  readonly rest: readonly QFormerLayerParams[];
};

/** Source: Li et al. 2023, arXiv:2301.12597, sec. 3.1; the layers are BERT's. */
export function initQFormer(sizes: QFormerSizes, init: Initializer, path = ''): QFormerParams {
  const { width, numLayers, crossEvery } = sizes;
  const numGroups = Math.floor(numLayers / crossEvery);
  const group = (own: Initializer, at: string, count: number): QFormerLayerParams[] =>
    Array.from({ length: count }, (_, i) => initLayer(sizes, own, `${path}${at}/${i}`, i === 0));
  return {
    norm: initLayerNorm(init, `${path}norm`, width),
    groups: { '*': group(init.layers(numGroups), 'groups/*', crossEvery) },
    rest: group(init, 'rest', numLayers % crossEvery),
  };
}

function initLayer(
  { width, mlpWidth, contextWidth, hasText }: QFormerSizes,
  init: Initializer,
  path: string,
  isCrossing: boolean,
): QFormerLayerParams {
  const feedForward = (at: string): FeedForwardParams => ({
    in: initDense(init, `${path}/${at}/in`, width, mlpWidth),
    out: initDense(init, `${path}/${at}/out`, mlpWidth, width),
    norm: initLayerNorm(init, `${path}/${at}/norm`, width),
  });
  return {
    attention: {
      qkv: initDense(init, `${path}/attention/qkv`, width, 3 * width),
      output: initDense(init, `${path}/attention/output`, width, width),
    },
    attentionNorm: initLayerNorm(init, `${path}/attentionNorm`, width),
    ...(isCrossing && {
      cross: initCrossAttention(init, `${path}/cross`, { width, contextWidth }),
      crossNorm: initLayerNorm(init, `${path}/crossNorm`, width),
    }),
    queries: feedForward('queries'),
    ...(hasText && { text: feedForward('text') }),
  };
}

export interface QFormerInput {
  /** Learned queries, [B, Q, D]; without them a text goes through alone. */
  readonly queries?: tf.Tensor;
  /** Embedded words, [B, L, D], after the queries. */
  readonly text?: tf.Tensor;
  /** What the queries look at, [B, N, C]. */
  readonly context?: tf.Tensor;
  /** Who may look at whom, added to the scores of queries and words; see {@link queryTextBias}. */
  readonly bias?: tf.Tensor;
}

/** The states of queries and words, [B, Q + L, D]. */
export function qFormer(
  params: QFormerParams,
  { queries, text, context, bias }: QFormerInput,
  sizes: QFormerSizes,
): tf.Tensor {
  const numQueries = queries?.shape[1] ?? 0;
  const x = tf.concat(
    [queries, text].filter((part) => part !== undefined),
    1,
  );
  const shared = [bias, numQueries > 0 ? context : undefined];
  const given = shared.filter((tensor) => tensor !== undefined);
  const group = (
    layers: readonly QFormerLayerParams[],
    states: tf.Tensor,
    tensors: readonly tf.Tensor[],
  ): tf.Tensor => {
    const rest = [...tensors];
    const [seen, looked] = shared.map((tensor) =>
      tensor === undefined ? undefined : rest.shift(),
    );
    return layers.reduce(
      (state, layer) =>
        qFormerLayer(layer, state, { numQueries, bias: seen, context: looked }, sizes),
      states,
    );
  };
  const normed = layerNorm(params.norm, x, sizes.epsilon);
  const grouped = repeatLayers(params.groups, normed, group, { shared: given });
  return group(params.rest, grouped, given);
}

function qFormerLayer(
  params: QFormerLayerParams,
  x: tf.Tensor,
  {
    numQueries,
    bias,
    context,
  }: {
    readonly numQueries: number;
    readonly bias: tf.Tensor | undefined;
    readonly context: tf.Tensor | undefined;
  },
  { numHeads, activation, epsilon }: QFormerSizes,
): tf.Tensor {
  const feedForward = (own: FeedForwardParams, states: tf.Tensor): tf.Tensor => {
    const hidden = ACTIVATIONS[activation](dense(own.in, states));
    return layerNorm(own.norm, tf.add(dense(own.out, hidden), states), epsilon);
  };
  const options = bias === undefined ? { numHeads } : { numHeads, bias };
  const mixed = tf.add(x, selfAttention(params.attention, x, options));
  const attended = layerNorm(params.attentionNorm, mixed, epsilon);
  const length = attended.shape[1]!;
  if (numQueries === 0) return feedForward(params.text!, attended);
  let queries = tf.slice(attended, [0, 0, 0], [-1, numQueries, -1]);
  if (params.cross !== undefined && context !== undefined) {
    const looked = crossAttention(params.cross, queries, context, { numHeads });
    queries = layerNorm(params.crossNorm!, tf.add(queries, looked), epsilon);
  }
  const seen = feedForward(params.queries, queries);
  if (length === numQueries) return seen;
  const words = tf.slice(attended, [0, numQueries, 0], [-1, -1, -1]);
  return tf.concat([seen, feedForward(params.text!, words)], 1);
}

/**
 * Who may look at whom among Q queries and L words, [B, 1, Q + L, Q + L] (or broadcast to it). `match`: everybody at
 * everybody; `write`: queries at queries, words at queries and the words before them, so that no word leaks into the
 * queries. For contrast, queries and words go through apart. Source: arXiv:2301.12597, fig. 2.
 * @param present [B, L] float32, 0 at padding
 */
export function queryTextBias(
  mode: 'match' | 'write',
  present: tf.Tensor,
  numQueries: number,
): tf.Tensor {
  const [batch, length] = present.shape as [number, number];
  const keys = keyBias(tf.concat([tf.ones([batch, numQueries]), present], 1));
  if (mode === 'match') return keys;
  const mayLook = (from: number, to: number): boolean =>
    to < numQueries || (from >= numQueries && to <= from);
  return tf.add(keys, lookBias(numQueries + length, mayLook));
}
