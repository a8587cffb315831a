/**
 * Low-rank adaptation: kernels stay, and each gets A B added, scaled by alpha / rank, where A is [in, R] and drawn, B is
 * [R, out] and begins as zero, so that a model begins as it was. R (in + out) parameters a kernel. Source: Hu et al.
 * 2021, arXiv:2106.09685, sec. 4.1.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import type { LowRank } from '../layers/dense.ts';
import type { TensorTree } from '../tree.ts';
import {
  initByLayer,
  namedLayers,
  withLayers,
  type ByLayer,
  type DenseLayer,
} from './dense-layers.ts';
import type { TunedModel, Tuning } from './tuning.ts';

export interface LoraConfig {
  readonly rank: number;
  /** The change is scaled by alpha / rank. */
  readonly alpha: number;
  /** Ends of paths of dense layers, `attention/query` or `query`. Queries and values unless given, as in the paper. */
  readonly targets?: readonly string[];
}

/** By the path of the adapted dense layer, `blocks/*\/attention/query`. */
export type LoraParams = ByLayer<LowRank>;

export const DEFAULT_TARGETS = ['attention/query', 'attention/value'];

/** Factors for the dense layers of `params` that the config names. @throws VideoloomError `TUNING_NO_TARGET` */
export function initLora(
  init: Initializer,
  params: TensorTree,
  { rank, targets = DEFAULT_TARGETS }: LoraConfig,
): LoraParams {
  return initByLayer(init, namedLayers(params, targets), (own, layer) =>
    initLowRank(own, layer, rank),
  );
}

export function initLowRank(
  init: Initializer,
  { path, numIn, numOut }: DenseLayer,
  rank: number,
): LowRank {
  return {
    // The variance of peft's (He, for the slope sqrt(5)): uniform there, a normal here as everywhere in this project.
    a: init.normal(`${path}/lora/a`, [numIn, rank], 1 / Math.sqrt(3 * numIn)),
    b: init.fill(`${path}/lora/b`, [rank, numOut], 0),
  };
}

/** The factors of what is added to a kernel. */
export function scaledLowRank({ a, b }: LowRank, { rank, alpha }: LoraConfig): LowRank {
  return { a, b: tf.mul(b, alpha / rank) };
}

/** The model with the factors beside its kernels: `dense` adds what they make of its input. */
export function withLora<T extends TensorTree>(params: T, lora: LoraParams, config: LoraConfig): T {
  return withLayers(params, lora, (layer, { a, b }) => ({
    ...layer,
    lora: scaledLowRank({ a, b }, config),
  }));
}

export function lora(config: LoraConfig, { form, decoder }: TunedModel): Tuning<LoraParams> {
  return {
    init: (init) => initLora(init, form, config),
    fixed: {},
    adapted: (params, own) => withLora(params, own, config),
    decoder,
    kind: { tuning: 'lora', alpha: config.alpha },
  };
}
