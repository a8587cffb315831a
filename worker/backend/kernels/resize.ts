import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../../stablehlo/ops.ts';
import type { Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { range } from '../broadcast.ts';

/** Images [B, H, W, C] of another size. Where each row and column comes from is known when the program is made. */
interface ResizeAttrs {
  readonly alignCorners: boolean;
  readonly halfPixelCenters: boolean;
}

/** For each position of the result: the two neighbours it lies between, and how far it is from the first. */
interface Neighbours {
  readonly first: number[];
  readonly second: number[];
  readonly fraction: number[];
}

function scaleOf(from: number, to: number, alignCorners: boolean): number {
  return alignCorners && to > 1 ? (from - 1) / (to - 1) : from / to;
}

function neighbours(
  from: number,
  to: number,
  { alignCorners, halfPixelCenters }: ResizeAttrs,
): Neighbours {
  const scale = scaleOf(from, to, alignCorners);
  const sources = range(to).map((at) => (halfPixelCenters ? scale * (at + 0.5) - 0.5 : scale * at));
  const first = sources.map((source) => Math.max(0, Math.floor(source)));
  return {
    first,
    second: sources.map((source) => Math.min(from - 1, Math.max(0, Math.ceil(source)))),
    fraction: sources.map((source, at) => source - first[at]!),
  };
}

function nearest(
  from: number,
  to: number,
  { alignCorners, halfPixelCenters }: ResizeAttrs,
): number[] {
  const scale = scaleOf(from, to, alignCorners);
  const round = alignCorners ? Math.round : Math.floor;
  return range(to).map((at) => {
    const source = scale * (halfPixelCenters ? at + 0.5 : at);
    return Math.max(0, Math.min(from - 1, round(source)));
  });
}

/** Entries of one axis, repeated as `indices` say. */
function take(hlo: HloBuilder, x: Value, axis: number, indices: readonly number[]): Value {
  if (indices.length === x.shape[axis] && indices.every((index, at) => index === at)) return x;
  return hlo.gather(
    x,
    vector(hlo, indices, 'i32'),
    x.shape.map((size, a) => (a === axis ? 1 : size)),
    {
      offsetDims: range(x.shape.length).filter((a) => a !== axis),
      collapsedSliceDims: [axis],
      startIndexMap: [axis],
      indexVectorDim: 1,
    },
  );
}

function vector(hlo: HloBuilder, values: readonly number[], elementType: 'i32' | 'f32'): Value {
  const data = elementType === 'i32' ? Int32Array.from(values) : Float32Array.from(values);
  return hlo.constantArray(data, { shape: [values.length], elementType });
}

function interpolate(
  hlo: HloBuilder,
  x: Value,
  axis: number,
  { first, second, fraction }: Neighbours,
): Value {
  const [a, b] = [take(hlo, x, axis, first), take(hlo, x, axis, second)];
  const weight = hlo.broadcastInDim(vector(hlo, fraction, 'f32'), a.shape, [axis]);
  return hlo.add(a, hlo.multiply(hlo.subtract(b, a), weight));
}

/** [to, from] with 1 (times `weights`) at each row's index, 0 elsewhere. */
function oneHotRows(
  hlo: HloBuilder,
  indices: readonly number[],
  from: number,
  weights?: readonly number[],
): Value {
  const shape = [indices.length, from];
  const index = hlo.broadcastInDim(vector(hlo, indices, 'i32'), shape, [0]);
  const weight =
    weights === undefined
      ? hlo.constant(1, 'f32', shape)
      : hlo.broadcastInDim(vector(hlo, weights, 'f32'), shape, [0]);
  const isThere = hlo.compare(index, hlo.iota(shape, 1, 'i32'), 'EQ');
  return hlo.select(isThere, weight, hlo.constant(0, 'f32', shape));
}

/** dy [B, h, w, C] times the matrices [h, H] and [w, W] that made it from an image [B, H, W, C]. */
function transposed(hlo: HloBuilder, dy: Value, rows: Value, columns: Value): Value {
  // Of an image as it is shown, which is no product of the model.
  const how = { contractingDims: [[1], [0]], isExact: true } as const;
  const overRows = hlo.dotGeneral(dy, rows, how); // [B, w, C, H]
  const overBoth = hlo.dotGeneral(overRows, columns, how); // [B, C, H, W]
  return hlo.transpose(overBoth, [0, 2, 3, 1]);
}

export const resizeBilinear = kernel<tf.ResizeBilinearInputs, tf.ResizeBilinearAttrs>(
  tf.ResizeBilinear,
  (hlo, { images }, { size, ...attrs }) => {
    const [, height, width] = images.shape as [number, number, number, number];
    const x = hlo.convert(images, 'f32');
    const overColumns = interpolate(hlo, x, 2, neighbours(width, size[1], attrs));
    return interpolate(hlo, overColumns, 1, neighbours(height, size[0], attrs));
  },
);

export const resizeBilinearGrad = kernel<tf.ResizeBilinearGradInputs, ResizeAttrs>(
  tf.ResizeBilinearGrad,
  (hlo, { images, dy }, attrs) => {
    const [rows, columns] = [1, 2].map((axis) => {
      const from = images.shape[axis]!;
      const { first, second, fraction } = neighbours(from, dy.shape[axis]!, attrs);
      return hlo.add(
        oneHotRows(
          hlo,
          first,
          from,
          fraction.map((part) => 1 - part),
        ),
        oneHotRows(hlo, second, from, fraction),
      );
    }) as [Value, Value];
    return transposed(hlo, dy, rows, columns);
  },
);

export const resizeNearestNeighbor = kernel<
  tf.ResizeNearestNeighborInputs,
  tf.ResizeNearestNeighborAttrs
>(tf.ResizeNearestNeighbor, (hlo, { images }, { size, ...attrs }) => {
  const [, height, width] = images.shape as [number, number, number, number];
  const overColumns = take(hlo, images, 2, nearest(width, size[1], attrs));
  return take(hlo, overColumns, 1, nearest(height, size[0], attrs));
});

export const resizeNearestNeighborGrad = kernel<tf.ResizeNearestNeighborGradInputs, ResizeAttrs>(
  tf.ResizeNearestNeighborGrad,
  (hlo, { images, dy }, attrs) => {
    const [rows, columns] = [1, 2].map((axis) => {
      const from = images.shape[axis]!;
      return oneHotRows(hlo, nearest(from, dy.shape[axis]!, attrs), from);
    }) as [Value, Value];
    return transposed(hlo, dy, rows, columns);
  },
);
