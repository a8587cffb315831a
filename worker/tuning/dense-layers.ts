/** The dense layers of a model that a tuning changes, by their paths: `blocks/*\/attention/query`. */
import * as tf from '@tensorflow/tfjs-core';
import { VideoloomError } from '../../proto/errors.ts';
import type { Initializer } from '../initializer.ts';
import type { DenseParams } from '../layers/dense.ts';
import { leavesOf, type TensorTree } from '../tree.ts';

export interface DenseLayer {
  readonly path: string;
  readonly numIn: number;
  readonly numOut: number;
  /** Of stacked ones; undefined: it is one. */
  readonly numLayers: number | undefined;
}

/** What a tuning has for each of some layers. */
export type ByLayer<P extends TensorTree> = { readonly [path: string]: P };

/** All dense layers of a model, or of its form. */
export function denseLayers(params: TensorTree): DenseLayer[] {
  return leavesOf(params).flatMap(([path, { shape }]) => {
    if (path.split('/').at(-1) !== 'kernel') return [];
    const [numIn, numOut] = shape.slice(-2) as [number, number];
    const numLayers = shape.length === 3 ? shape[0] : undefined;
    return [{ path: path.slice(0, -'/kernel'.length), numIn, numOut, numLayers }];
  });
}

export function isNamed(path: string, target: string): boolean {
  return `/${path}`.endsWith(`/${target}`);
}

/**
 * Those that `targets` name.
 * @param targets ends of paths, `attention/query` or `query`
 * @throws VideoloomError `TUNING_NO_TARGET`
 */
export function namedLayers(params: TensorTree, targets: readonly string[]): DenseLayer[] {
  const layers = denseLayers(params);
  for (const target of targets) {
    if (layers.some(({ path }) => isNamed(path, target))) continue;
    throw new VideoloomError(
      'TUNING_NO_TARGET',
      `${target} is to be adapted, and the model has no dense layer of that name. It has ` +
        `${[...new Set(layers.map(({ path }) => path))].join(', ')}: name the end of one of these paths`,
    );
  }
  return layers.filter(({ path }) => targets.some((target) => isNamed(path, target)));
}

/** What `make` gives for each layer; its initializer is for as many of it as are stacked. */
export function initByLayer<P extends TensorTree>(
  init: Initializer,
  layers: readonly DenseLayer[],
  make: (own: Initializer, layer: DenseLayer) => P,
): ByLayer<P> {
  return Object.fromEntries(
    layers.map((layer) => {
      const own = layer.numLayers === undefined ? init : init.layers(layer.numLayers);
      return [layer.path, make(own, layer)];
    }),
  );
}

/** The model with the layers that `own` has something for changed. */
export function withLayers<T extends TensorTree, P extends TensorTree>(
  params: T,
  own: ByLayer<P>,
  change: (layer: DenseParams, own: P) => DenseParams,
): T {
  const changed = (tree: TensorTree, path: string): TensorTree => {
    if (tree instanceof tf.Tensor || Array.isArray(tree)) return tree;
    const children = Object.entries(tree as Readonly<Record<string, TensorTree>>).map(
      ([key, child]) => [key, changed(child, path === '' ? key : `${path}/${key}`)] as const,
    );
    const layer = Object.fromEntries(children);
    const found = own[path];
    return found === undefined ? layer : change(layer as DenseParams, found);
  };
  return changed(params, '') as T;
}
