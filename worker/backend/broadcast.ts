import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../stablehlo/ops.ts';
import type { Value } from '../stablehlo/types.ts';

/** 0, 1, ..., n - 1, or start, ..., end - 1. */
export function range(startOrEnd: number, end?: number): number[] {
  const start = end === undefined ? 0 : startOrEnd;
  return Array.from({ length: (end ?? startOrEnd) - start }, (_, i) => start + i);
}

/** NumPy broadcasting: axes are aligned from the last. */
export function broadcastTo(hlo: HloBuilder, value: Value, shape: readonly number[]): Value {
  const offset = shape.length - value.shape.length;
  const kept = range(value.shape.length).filter(
    (axis) => value.shape[axis] === shape[axis + offset],
  );
  if (kept.length === value.shape.length) {
    return hlo.broadcastInDim(
      value,
      shape,
      kept.map((axis) => axis + offset),
    );
  }
  // StableHLO would take the axes of size 1 as they are; XLA is faster without them.
  const squeezed = hlo.reshape(
    value,
    kept.map((axis) => value.shape[axis]!),
  );
  return hlo.broadcastInDim(
    squeezed,
    shape,
    kept.map((axis) => axis + offset),
  );
}

/** Values broadcast to their common shape. */
export function broadcastAll(hlo: HloBuilder, values: readonly Value[]): Value[] {
  const shape = values
    .map((value) => [...value.shape])
    .reduce((a, b) => tf.broadcast_util.assertAndGetBroadcastShape(a, b));
  return values.map((value) => broadcastTo(hlo, value, shape));
}

/** A constant of the value's element type and shape. */
export function constantLike(hlo: HloBuilder, value: Value, number: number): Value {
  return hlo.constant(number, value.elementType, value.shape);
}

/** Non-negative axes. No axis means all of them. */
export function axesOf(
  axis: number | readonly number[] | null | undefined,
  rank: number,
): number[] {
  if (axis === undefined || axis === null) return range(rank);
  return (typeof axis === 'number' ? [axis] : [...axis]).map((a) => (a < 0 ? a + rank : a));
}

/** `shape` with the given axes set to 1. */
export function keepDims(shape: readonly number[], axes: readonly number[]): number[] {
  return shape.map((size, axis) => (axes.includes(axis) ? 1 : size));
}
