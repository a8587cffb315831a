/**
 * Vector-based random matrix adaptation: W + diag(b) B diag(d) A, where A and B are drawn once from a key, the same for
 * all kernels, which take as much of them as they are large; trained are the two vectors. b begins as zero, so that a
 * model begins as it was, d as 0.1. R + out parameters a kernel. Source: Kopiczko et al. 2023, arXiv:2310.11454, sec. 3.
 */
import * as tf from '@tensorflow/tfjs-core';
import { drawnNormal, type Initializer } from '../initializer.ts';
import type { LowRank } from '../layers/dense.ts';
import type { TensorTree } from '../tree.ts';
import { initByLayer, namedLayers, withLayers, type ByLayer } from './dense-layers.ts';
import { DEFAULT_TARGETS } from './lora.ts';
import type { FixedArray, TunedModel, Tuning } from './tuning.ts';

export interface VeraConfig {
  readonly rank: number;
  /** That the shared matrices are drawn from. */
  readonly key: number;
  /** As LoRA's. */
  readonly targets?: readonly string[];
}

export type VeraParams = ByLayer<{
  readonly d: tf.Tensor; // [R]
  readonly b: tf.Tensor; // [out]
}>;

const INITIAL_D = 0.1;

/** @throws VideoloomError `TUNING_NO_TARGET` */
export function initVera(
  init: Initializer,
  params: TensorTree,
  { rank, targets = DEFAULT_TARGETS }: VeraConfig,
): VeraParams {
  return initByLayer(init, namedLayers(params, targets), (own, { path, numOut }) => ({
    d: own.fill(`${path}/d`, [rank], INITIAL_D),
    b: own.fill(`${path}/b`, [numOut], 0),
  }));
}

/** A, [most in, R], and B, [R, most out]: of He's deviation, as in the paper, and cut at two of it. */
export function sharedMatrices(
  params: TensorTree,
  { rank, key, targets = DEFAULT_TARGETS }: VeraConfig,
): { readonly a: FixedArray; readonly b: FixedArray } {
  const layers = namedLayers(params, targets);
  const mostIn = Math.max(...layers.map(({ numIn }) => numIn));
  const mostOut = Math.max(...layers.map(({ numOut }) => numOut));
  const drawn = (name: string, shape: [number, number], fanIn: number): FixedArray => ({
    data: drawnNormal(key, `vera/${name}`, {
      size: shape[0] * shape[1],
      std: Math.sqrt(2 / fanIn),
    }),
    shape,
  });
  return { a: drawn('a', [mostIn, rank], mostIn), b: drawn('b', [rank, mostOut], rank) };
}

/** @param shared A and B */
export function withVera<T extends TensorTree>(params: T, vera: VeraParams, shared: LowRank): T {
  const rank = shared.a.shape[1]!;
  return withLayers(params, vera, (layer, { d, b }) => {
    const [numIn, numOut] = layer.kernel.shape.slice(-2) as [number, number];
    const a = tf.slice(shared.a, [0, 0], [numIn, rank]);
    const out = tf.slice(shared.b, [0, 0], [rank, numOut]);
    const lora = { a: tf.mul(a, tf.expandDims(d, -2)), b: tf.mul(out, tf.expandDims(b, -2)) };
    return { ...layer, lora };
  });
}

export function vera(config: VeraConfig, { form, decoder }: TunedModel): Tuning<VeraParams> {
  const { a, b } = sharedMatrices(form, config);
  return {
    init: (init) => initVera(init, form, config),
    fixed: { 'vera/a': a, 'vera/b': b },
    adapted(params, own, fixed) {
      const arrays = fixed as Readonly<Record<string, tf.Tensor>>;
      return withVera(params, own, { a: arrays['vera/a']!, b: arrays['vera/b']! });
    },
    decoder,
    kind: { tuning: 'vera', key: config.key },
  };
}
