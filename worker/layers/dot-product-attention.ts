import * as tf from '@tensorflow/tfjs-core';
import { applyPasses, type TracedPasses } from '../traced-passes.ts';

/** What attention is computed of, cut into heads. Each of the K heads of keys and values serves A/K of the queries'. */
export interface AttentionHeads {
  readonly query: tf.Tensor; // [B, A, Lq, W]
  readonly key: tf.Tensor; // [B, K, Lk, W]
  readonly value: tf.Tensor; // [B, K, Lk, W]
  /** Added to the scores, each axis 1 or that of [B, A, Lq, Lk]: a mask, to which no gradient goes. */
  readonly bias?: tf.Tensor | undefined;
  /**
   * Scores for where queries and keys stand, each axis 1 or that of [B, A, Lq, Lk]; they have a gradient. The products of
   * queries and keys are added to them scaled by 1/sqrt(2 W), so that both sums together have the size of one alone.
   */
  readonly positions?: tf.Tensor | undefined;
}

/** What a tfjs backend may have beside its kernels. */
interface AttentionTracingBackend {
  /** Differentiable by [query, key, value]; undefined where the library has no kernel for them. */
  traceAttention?(heads: Omit<AttentionHeads, 'positions'>): TracedPasses | undefined;
  /**
   * The same tensors as new ones: the compiler computes of them again what it has computed before. Without a gradient.
   * Undefined where that is of no use.
   */
  optimizationBarrier?(tensors: readonly tf.Tensor[]): tf.Tensor[] | undefined;
}

/**
 * softmax(query key^T / sqrt(W) + bias) value, [B, A, Lq, W]; one fused kernel where the device has it, unless there are
 * scores of positions, of which such kernels give no gradient.
 * Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2.1; groups: Ainslie et al. 2023, arXiv:2305.13245, sec. 2.2;
 * positions: Ke et al. 2021, arXiv:2006.15595, sec. 3.1, eq. 7.
 */
export function dotProductAttention(heads: AttentionHeads): tf.Tensor {
  const { query, key, value, positions } = heads;
  const fused =
    positions === undefined
      ? (tf.backend() as AttentionTracingBackend).traceAttention?.(heads)
      : undefined;
  if (fused !== undefined) return applyPasses(fused, [query, key, value]);
  return positions === undefined && areWeightsLarge(heads)
    ? recomputedAttention(heads)
    : plainAttention(heads);
}

function plainAttention(heads: AttentionHeads): tf.Tensor {
  const { grouped, single } = groupsOf(heads);
  return single(tf.matMul(grouped(weightsOf(heads)), heads.value));
}

/** [B, A, Lq, Lk] */
function weightsOf(heads: AttentionHeads): tf.Tensor {
  const { query, key, bias, positions } = heads;
  const { grouped, single } = groupsOf(heads);
  const scaled = grouped(tf.mul(query, attentionScale(query.shape[3]!, positions)));
  const products = single(tf.matMul(scaled, key, false, true));
  const scores = positions === undefined ? products : tf.add(products, positions);
  return tf.softmax(bias === undefined ? scores : tf.add(scores, bias));
}

/** [B, A, Lq, X] to [B, K, A/K Lq, X], where the queries' heads of a group are rows of one product, and back. */
function groupsOf({ query, key }: AttentionHeads): {
  readonly grouped: (x: tf.Tensor) => tf.Tensor;
  readonly single: (x: tf.Tensor) => tf.Tensor;
} {
  const [batch, numHeads, length] = query.shape as [number, number, number, number];
  const numGroups = key.shape[1]!;
  if (numGroups === numHeads) return { grouped: (x) => x, single: (x) => x };
  const rows = (numHeads / numGroups) * length;
  return {
    grouped: (x) => tf.reshape(x, [batch, numGroups, rows, -1]),
    single: (x) => tf.reshape(x, [batch, numHeads, length, -1]),
  };
}

/** Of weights; fewer are not worth the time that computing them again takes. */
const LEAST_RECOMPUTED = 2 ** 21;

/** Whether the weights are many, and many more than what they are computed from. */
function areWeightsLarge({ query, key }: AttentionHeads): boolean {
  const numWeights = (query.size / query.shape[3]!) * key.shape[2]!;
  return numWeights >= LEAST_RECOMPUTED && numWeights > 2 * (query.size + key.size);
}

/**
 * {@link plainAttention}, whose backward pass computes the weights again, so that not those of all layers are kept: one
 * product more beside six. It has first derivatives alone.
 * Source: Dao et al. 2022, arXiv:2205.14135, sec. 3.1 and app. B.2.
 */
function recomputedAttention(heads: AttentionHeads): tf.Tensor {
  const backend = tf.backend() as AttentionTracingBackend;
  const { query, key, value, bias } = heads;
  return applyPasses(
    {
      forward: () => ({
        output: plainAttention(heads),
        residuals: [query, key, value, ...(bias === undefined ? [] : [bias])],
      }),
      backward(cotangent, residuals) {
        const [early, key, value, bias] = residuals as [
          tf.Tensor,
          tf.Tensor,
          tf.Tensor,
          tf.Tensor?,
        ];
        const [dy, query] = (backend.optimizationBarrier?.([cotangent, early]) ?? [
          cotangent,
          early,
        ]) as [tf.Tensor, tf.Tensor];
        const again = { query, key, value, bias };
        const { grouped, single } = groupsOf(again);
        const scale = attentionScale(query.shape[3]!, undefined);
        const weights = grouped(weightsOf(again));
        const dOutput = grouped(dy);
        const products = tf.mul(tf.matMul(dOutput, value, false, true), weights);
        const dScores = tf.sub(products, tf.mul(tf.sum(products, -1, true), weights));
        return [
          tf.mul(single(tf.matMul(dScores, key)), scale),
          tf.matMul(dScores, grouped(tf.mul(query, scale)), true),
          tf.matMul(weights, dOutput, true),
        ];
      },
    },
    [query, key, value],
  );
}

/** Of the products of queries and keys of that width. */
export function attentionScale(width: number, positions: tf.Tensor | undefined): number {
  return 1 / Math.sqrt(positions === undefined ? width : 2 * width);
}
