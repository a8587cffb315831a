/**
 * Low-rank adaptation: kernels stay, and each gets A B added, scaled by alpha / rank, where A is [in, R] and drawn, B is
 * [R, out] and begins as zero, so that a model begins as it was. Source: Hu et al. 2021, arXiv:2106.09685, sec. 4.1.
 */
import * as tf from '@tensorflow/tfjs-core';
import { VideoloomError } from '../../proto/errors.ts';
import type { Initializer } from '../initializer.ts';
import { leavesOf, mapTree, type TensorTree } from '../tree.ts';
import type { LowRank } from './dense.ts';

export interface LoraConfig {
  readonly rank: number;
  /** The change is scaled by alpha / rank. */
  readonly alpha: number;
  /** Ends of paths of dense layers, `attention/query` or `query`. Queries and values unless given, as in the paper. */
  readonly targets?: readonly string[];
}

/** By the path of the adapted dense layer, `blocks/*\/attention/query`. */
export type LoraParams = { readonly [path: string]: LowRank };

const DEFAULT_TARGETS = ['attention/query', 'attention/value'];

/** Factors for the dense layers of `params` that the config names. @throws VideoloomError `LORA_NO_TARGET` */
export function initLora(
  init: Initializer,
  params: TensorTree,
  { rank, targets = DEFAULT_TARGETS }: LoraConfig,
): LoraParams {
  const kernels = leavesOf(params).filter(([path]) => path.split('/').at(-1) === 'kernel');
  const layers = kernels.map(
    ([path, { shape }]) => [path.slice(0, -'/kernel'.length), shape] as const,
  );
  const isNamed = (path: string, target: string): boolean => `/${path}`.endsWith(`/${target}`);
  for (const target of targets) {
    if (layers.some(([path]) => isNamed(path, target))) continue;
    throw new VideoloomError(
      'LORA_NO_TARGET',
      `LoRA is to adapt ${target}, and the model has no dense layer of that name. It has ` +
        `${[...new Set(layers.map(([path]) => path))].join(', ')}: name the end of one of these paths`,
    );
  }
  const adapted = layers.filter(([path]) => targets.some((target) => isNamed(path, target)));
  return Object.fromEntries(
    adapted.map(([path, shape]) => {
      const [numIn, numOut] = shape.slice(-2) as [number, number];
      const own = shape.length === 3 ? init.layers(shape[0]) : init;
      return [
        path,
        {
          // The variance of peft's (He, for the slope sqrt(5)): uniform there, a normal here as everywhere in this project.
          a: own.normal(`${path}/lora/a`, [numIn, rank], 1 / Math.sqrt(3 * numIn)),
          b: own.fill(`${path}/lora/b`, [rank, numOut], 0),
        },
      ];
    }),
  );
}

/** The model with the factors beside its kernels: `dense` adds what they make of its input. For training. */
export function withLora<T extends TensorTree>(
  params: T,
  lora: LoraParams,
  { rank, alpha }: LoraConfig,
): T {
  const attach = (tree: TensorTree, path: string): TensorTree => {
    if (tree instanceof tf.Tensor || Array.isArray(tree)) return tree;
    const found = lora[path];
    const children = Object.entries(tree as Readonly<Record<string, TensorTree>>).map(
      ([key, child]) => [key, attach(child, path === '' ? key : `${path}/${key}`)] as const,
    );
    const own = Object.fromEntries(children) as Readonly<Record<string, TensorTree>>;
    if (found === undefined) return own;
    return { ...own, lora: { a: found.a, b: tf.mul(found.b, alpha / rank) } };
  };
  return attach(params, '') as T;
}

/** The model with the change added to its kernels: of the same form as without. For generation and export. */
export function mergeLora<T extends TensorTree>(
  params: T,
  lora: LoraParams,
  { rank, alpha }: LoraConfig,
): T {
  return mapTree(params, (kernel, path) => {
    const found = lora[path.slice(0, -'/kernel'.length)];
    if (found === undefined || !path.endsWith('/kernel')) return kernel;
    return tf.add(kernel, tf.mul(tf.matMul(found.a, found.b), alpha / rank));
  });
}
