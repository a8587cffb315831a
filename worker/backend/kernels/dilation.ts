import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../../stablehlo/ops.ts';
import type { Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { constantLike, range } from '../broadcast.ts';
import { axesOf2D, paddingOf } from './conv.ts';
import type { SpatialAxis } from './conv.ts';

/**
 * Greyscale dilation: the greatest of image + filter in each window. Windows are few and small, so each offset in them
 * is a strided slice of the image. Source: tensorflow/core/kernels/dilation_ops.cc
 */
interface Offset {
  readonly row: number;
  readonly column: number;
  /** Image + filter at this offset of every window, [B, out rows, out columns, C]. */
  readonly sums: Value;
}

interface Dilation {
  readonly axes: readonly [SpatialAxis, SpatialAxis];
  readonly offsets: readonly Offset[];
}

function dilationOf(
  hlo: HloBuilder,
  x: Value,
  filter: Value,
  { strides, pad, dilations }: tf.Dilation2DAttrs,
): Dilation {
  const info = tf.backend_util.computeDilation2DInfo(
    x.shape as [number, number, number, number],
    filter.shape as [number, number, number],
    strides,
    pad,
    'NHWC',
    dilations,
  );
  const axes = axesOf2D(info) as [SpatialAxis, SpatialAxis];
  // As JavaScript adds: sums that float32 would round to equal ones stay apart.
  const type = 'f64';
  const edges = axes.map(paddingOf) as [[number, number], [number, number]];
  const image = hlo.pad(
    hlo.convert(x, type),
    hlo.constant(-Infinity, type),
    [0, edges[0][0], edges[1][0], 0],
    [0, edges[0][1], edges[1][1], 0],
  );
  const offsets = range(axes[0].window).flatMap((row) =>
    range(axes[1].window).map((column) => {
      const part = hlo.slice(image, ...windowSlice(image, axes, row, column));
      const weights = hlo.reshape(
        hlo.slice(filter, [row, column, 0], [row + 1, column + 1, filter.shape[2]!]),
        [filter.shape[2]!],
      );
      const spread = hlo.broadcastInDim(hlo.convert(weights, type), part.shape, [3]);
      return { row, column, sums: hlo.add(part, spread) };
    }),
  );
  return { axes, offsets };
}

/** Start, limit and strides of what lies at one offset of every window. */
function windowSlice(
  { shape }: Value,
  axes: readonly [SpatialAxis, SpatialAxis],
  row: number,
  column: number,
): [number[], number[], number[]] {
  const starts = [row * axes[0].dilation, column * axes[1].dilation];
  const limits = axes.map(
    ({ outSize, stride }, axis) => starts[axis]! + (outSize - 1) * stride + 1,
  );
  return [
    [0, ...starts, 0],
    [shape[0]!, ...limits, shape[3]!],
    [1, axes[0].stride, axes[1].stride, 1],
  ];
}

function greatest(hlo: HloBuilder, { offsets }: Dilation): Value {
  return offsets.map(({ sums }) => sums).reduce((a, b) => hlo.maximum(a, b));
}

/** For each offset, dy of the windows whose maximum is there, 0 elsewhere; of equal ones the first counts. */
function shares(hlo: HloBuilder, dilation: Dilation, dy: Value): Value[] {
  const maximum = greatest(hlo, dilation);
  let isFree = hlo.constant(true, 'i1', maximum.shape);
  return dilation.offsets.map(({ sums }) => {
    const isHere = hlo.and(isFree, hlo.compare(sums, maximum, 'EQ'));
    isFree = hlo.and(isFree, hlo.not(isHere));
    return hlo.select(isHere, dy, constantLike(hlo, dy, 0));
  });
}

export const dilation2D = kernel<tf.Dilation2DInputs, tf.Dilation2DAttrs>(
  tf.Dilation2D,
  (hlo, { x, filter }, attrs) =>
    hlo.convert(greatest(hlo, dilationOf(hlo, x, filter, attrs)), x.elementType),
);

interface BackpropInputs {
  readonly x: tf.TensorInfo;
  readonly filter: tf.TensorInfo;
  readonly dy: tf.TensorInfo;
}

export const dilation2DBackpropInput = kernel<BackpropInputs, tf.Dilation2DAttrs>(
  tf.Dilation2DBackpropInput,
  (hlo, { x, filter, dy }, attrs) => {
    const dilation = dilationOf(hlo, x, filter, attrs);
    const { axes, offsets } = dilation;
    const zero = hlo.constant(0, dy.elementType);
    const parts = shares(hlo, dilation, dy).map((share, index) => {
      const { row, column } = offsets[index]!;
      // Back to where the slice came from.
      const low = [row * axes[0].dilation - axes[0].low, column * axes[1].dilation - axes[1].low];
      const high = axes.map(
        ({ inSize, outSize, stride }, axis) => inSize - low[axis]! - (outSize - 1) * stride - 1,
      );
      const interior = [0, axes[0].stride - 1, axes[1].stride - 1, 0];
      return hlo.pad(share, zero, [0, ...low, 0], [0, ...high, 0], interior);
    });
    return parts.reduce((a, b) => hlo.add(a, b));
  },
);

export const dilation2DBackpropFilter = kernel<BackpropInputs, tf.Dilation2DAttrs>(
  tf.Dilation2DBackpropFilter,
  (hlo, { x, filter, dy }, attrs) => {
    const sums = shares(hlo, dilationOf(hlo, x, filter, attrs), dy).map((share) =>
      hlo.reshape(hlo.reduce(share, hlo.constant(0, dy.elementType), [0, 1, 2], 'add'), [
        1,
        filter.shape[2]!,
      ]),
    );
    return hlo.reshape(hlo.concatenate(sums, 0), filter.shape);
  },
);
