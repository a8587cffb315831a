import * as tf from '@tensorflow/tfjs-core';
import { openRng } from '../proto/random.ts';
import { partsOf } from './tree.ts';

/** Source of initial weights: named by path, so that they do not depend on the order of creation. */
export interface Initializer {
  /** Normal of the given standard deviation, cut at two of them unless given. */
  normal(path: string, shape: readonly number[], std: number, cut?: number): tf.Tensor;
  fill(path: string, shape: readonly number[], value: number): tf.Tensor;
  /** For the tensors of that many equal layers at once: paths have `*` for the layer's number, see `Stacked`. */
  layers(numLayers: number): Initializer;
}

/**
 * Initial weights as a function of (seed, path): the same on every worker, whatever else the model has.
 * Normals are redrawn beyond two standard deviations unless told, as BERT's are (Devlin et al. 2019, appendix A.2).
 */
export function openInitializer(seed: number): Initializer {
  return initializerOf(seed);
}

/** Tensors of the right shapes without values: the form of a model whose weights come from elsewhere. */
export function shapesOnly(numLayers?: number): Initializer {
  const make = (_path: string, shape: readonly number[]): tf.Tensor =>
    new tf.Tensor(stacked(shape, numLayers), 'float32', {}, -1);
  return { normal: make, fill: make, layers: (count) => shapesOnly(count) };
}

/** Zeros in place of drawn weights: what has the form of a model and is computed with, though nobody reads the result. */
export function blank(numLayers?: number): Initializer {
  return {
    normal: (_path, shape) => tf.zeros(stacked(shape, numLayers)),
    fill: (_path, shape, value) => tf.fill(stacked(shape, numLayers), value),
    layers: blank,
  };
}

/** The shape of a tensor, or of those of so many equal layers at once. */
function stacked(shape: readonly number[], numLayers: number | undefined): number[] {
  return numLayers === undefined ? [...shape] : [numLayers, ...shape];
}

/** As {@link Initializer} draws them. @param purpose tells these numbers from others of the same seed */
export function drawnNormal(
  seed: number,
  purpose: string,
  { size, std, cut = 2 }: { readonly size: number; readonly std: number; readonly cut?: number },
): Float32Array {
  const rng = openRng(seed, purpose);
  const values = new Float32Array(size);
  for (let i = 0; i < values.length; i++) {
    let value = rng.normal();
    while (Math.abs(value) > cut) value = rng.normal();
    values[i] = value * std;
  }
  return values;
}

function initializerOf(seed: number, numLayers?: number): Initializer {
  return {
    normal(path, shape, std, cut = 2) {
      const whole = stacked(shape, numLayers);
      const parts = partsOf(path, whole).map(({ name, shape: own }) => {
        const size = own.reduce((a, b) => a * b, 1);
        return drawnNormal(seed, `init/${name}`, { size, std, cut });
      });
      const values = new Float32Array(whole.reduce((a, b) => a * b, 1));
      for (const [k, part] of parts.entries()) values.set(part, k * part.length);
      return tf.tensor(values, whole);
    },
    fill: (_path, shape, value) => tf.fill(stacked(shape, numLayers), value),
    layers: (count) => initializerOf(seed, count),
  };
}

/** An initializer for a part of a model, whose paths begin with `prefix` there. */
export function under(prefix: string, init: Initializer): Initializer {
  return {
    normal: (path, shape, std, cut) => init.normal(`${prefix}/${path}`, shape, std, cut),
    fill: (path, shape, value) => init.fill(`${prefix}/${path}`, shape, value),
    layers: (count) => under(prefix, init.layers(count)),
  };
}
