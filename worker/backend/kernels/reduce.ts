import * as tf from '@tensorflow/tfjs-core';

import { highest, lowest } from '../../stablehlo/ops.ts';
import type { Combiner, HloBuilder } from '../../stablehlo/ops.ts';
import { isFloat } from '../../stablehlo/types.ts';
import type { ElementType, Region, Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { axesOf, constantLike, keepDims } from '../broadcast.ts';

interface ReduceAttrs {
  readonly axis?: number | number[];
  /** What `Max` and `Min` call their axis. */
  readonly reductionIndices?: number | number[];
  readonly keepDims?: boolean;
}

interface ReduceInputs {
  readonly x: tf.TensorInfo;
}

/** Where a combination starts: the value that changes nothing. */
const NEUTRAL: Record<Combiner, (type: ElementType) => number> = {
  add: () => 0,
  multiply: () => 1,
  maximum: lowest,
  minimum: highest,
  and: () => 1,
  or: () => 0,
};

function reduction(
  name: string,
  combiner: Combiner,
  prepare: (hlo: HloBuilder, x: Value) => Value = (_, x) => x,
): tf.KernelConfig {
  return kernel<ReduceInputs, ReduceAttrs>(name, (hlo, { x }, attrs) => {
    const axes = axesOf(attrs.axis, x.shape.length);
    const reduced = reduceBy(hlo, prepare(hlo, x), axes, combiner);
    return attrs.keepDims === true ? hlo.reshape(reduced, keepDims(x.shape, axes)) : reduced;
  });
}

/** The greatest or smallest value; NaN where there is one. */
function extreme(name: string, combiner: 'maximum' | 'minimum'): tf.KernelConfig {
  return kernel<ReduceInputs, ReduceAttrs>(name, (hlo, { x }, attrs) => {
    const axes = axesOf(attrs.axis ?? attrs.reductionIndices, x.shape.length);
    if (axes.length === 0) return x;
    const reduced = reduceExtreme(hlo, x, axes, combiner);
    return attrs.keepDims === true ? hlo.reshape(reduced, keepDims(x.shape, axes)) : reduced;
  });
}

/** XLA's own maximum and minimum may pass over NaN where they are vectorized. */
function reduceExtreme(
  hlo: HloBuilder,
  x: Value,
  axes: readonly number[],
  combiner: 'maximum' | 'minimum',
): Value {
  const type = x.elementType;
  if (!isFloat(type)) return reduceBy(hlo, x, axes, combiner);
  if (hlo.isPartitioned) {
    // Along an axis that is cut, the devices' results are combined by a collective, and there is one for plain bodies alone.
    const reduced = reduceBy(hlo, x, axes, combiner);
    const hasNaN = reduceBy(hlo, hlo.compare(x, x, 'NE'), axes, 'or');
    return hlo.select(hasNaN, constantLike(hlo, reduced, NaN), reduced);
  }
  const scalar = { shape: [], elementType: type };
  const body = hlo.region([scalar, scalar], (inner, [a, b]) => {
    const isBetter = inner.compare(a!, b!, combiner === 'maximum' ? 'GT' : 'LT');
    return [inner.select(inner.or(isBetter, inner.compare(a!, a!, 'NE')), a!, b!)];
  });
  return hlo.reduceWith([x], [neutral(hlo, x, combiner)], axes, body)[0]!;
}

/** Booleans are counted. */
const countable = (hlo: HloBuilder, x: Value): Value =>
  x.elementType === 'i1' ? hlo.convert(x, 'i32') : x;

export const sum = reduction(tf.Sum, 'add', countable);
export const prod = reduction(tf.Prod, 'multiply', countable);
export const max = extreme(tf.Max, 'maximum');
export const min = extreme(tf.Min, 'minimum');
export const all = reduction(tf.All, 'and', (hlo, x) => hlo.convert(x, 'i1'));
export const any = reduction(tf.Any, 'or', (hlo, x) => hlo.convert(x, 'i1'));

export const mean = kernel<ReduceInputs, ReduceAttrs>(tf.Mean, (hlo, { x }, attrs) => {
  const axes = axesOf(attrs.axis, x.shape.length);
  const count = axes.reduce((product, axis) => product * x.shape[axis]!, 1);
  const total = reduceBy(hlo, isFloat(x.elementType) ? x : hlo.convert(x, 'f32'), axes, 'add');
  const average = hlo.multiply(total, constantLike(hlo, total, 1 / count));
  return attrs.keepDims === true ? hlo.reshape(average, keepDims(x.shape, axes)) : average;
});

export const argMax = argReduction(tf.ArgMax, 'GT', lowest);
export const argMin = argReduction(tf.ArgMin, 'LT', highest);

/** The index of the extreme value; of equal ones the first. */
function argReduction(
  name: string,
  better: 'GT' | 'LT',
  worst: (type: ElementType) => number,
): tf.KernelConfig {
  return kernel<ReduceInputs, ReduceAttrs>(name, (hlo, { x }, { axis }) => {
    const [dimension = 0] = axesOf(axis, x.shape.length);
    const type = x.elementType;
    const [, position] = hlo.reduceWith(
      [x, hlo.iota(x.shape, dimension, 'i32')],
      // Nothing but NaN leaves the start as it is, which so has to be a place of the axis.
      [hlo.constant(worst(type), type), hlo.constant(0, 'i32')],
      [dimension],
      betterEntry(hlo, type, better),
    );
    return position!;
  });
}

/** The body that keeps the better of two (value, index) pairs, of equal values the one with the smaller index. */
export function betterEntry(hlo: HloBuilder, type: ElementType, better: 'GT' | 'LT'): Region {
  const value = { shape: [], elementType: type };
  const index = { shape: [], elementType: 'i32' as const };
  return hlo.region([value, index, value, index], (inner, [a, i, b, j]) => {
    const wins = inner.compare(b!, a!, better);
    const ties = inner.and(inner.compare(b!, a!, 'EQ'), inner.compare(j!, i!, 'LT'));
    const takesSecond = inner.or(wins, ties);
    return [inner.select(takesSecond, b!, a!), inner.select(takesSecond, j!, i!)];
  });
}

export const cumsum = scan(tf.Cumsum, 'add');
export const cumprod = scan(tf.Cumprod, 'multiply');

/** Running combination along an axis: entry i combines 0..i, without i if exclusive, from the end if reverse. */
function scan(name: string, combiner: 'add' | 'multiply'): tf.KernelConfig {
  return kernel<tf.CumsumInputs, tf.CumsumAttrs>(name, (hlo, { x }, { axis, ...order }) => {
    const [dimension] = axesOf(axis, x.shape.length) as [number];
    return cumulative(hlo, countable(hlo, x), dimension, combiner, order);
  });
}

export function cumulative(
  hlo: HloBuilder,
  x: Value,
  dimension: number,
  combiner: 'add' | 'multiply',
  { exclusive = false, reverse = false }: Partial<Omit<tf.CumsumAttrs, 'axis'>> = {},
): Value {
  const size = x.shape[dimension]!;
  if (size === 0) return x; // a window of size 0 is none
  // An exclusive scan is the inclusive one of everything but the last entry, a neutral one put before it.
  const reach = exclusive ? size : size - 1;
  const window = (value: number) => x.shape.map((_, a) => (a === dimension ? value : 1));
  return hlo.reduceWindow(x, neutral(hlo, x, combiner), combiner, {
    dimensions: window(size),
    strides: window(1),
    padding: x.shape.map((_, a): [number, number] => {
      if (a !== dimension) return [0, 0];
      const rest = size - 1 - reach;
      return reverse ? [rest, reach] : [reach, rest];
    }),
  });
}

export function reduceBy(
  hlo: HloBuilder,
  x: Value,
  axes: readonly number[],
  combiner: Combiner,
): Value {
  return hlo.reduce(x, neutral(hlo, x, combiner), axes, combiner);
}

function neutral(hlo: HloBuilder, x: Value, combiner: Combiner): Value {
  return hlo.constant(NEUTRAL[combiner](x.elementType), x.elementType);
}
