import * as tf from '@tensorflow/tfjs-core';

import { highest, lowest } from '../../stablehlo/ops.ts';
import type { HloBuilder, Window } from '../../stablehlo/ops.ts';
import { isFloat, sameShape } from '../../stablehlo/types.ts';
import type { Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { constantLike, range } from '../broadcast.ts';
import { axesOf2D, axesOf3D, paddingOf } from './conv.ts';
import type { SpatialAxis } from './conv.ts';
import { betterEntry } from './reduce.ts';

/** Pools over the spatial axes of [B, ...spatial, C]; what lies outside of the image counts for nothing. */
interface Pool {
  readonly axes: readonly SpatialAxis[];
  readonly outShape: readonly number[];
}

interface PoolAttrs {
  readonly filterSize: number | [number, number];
  readonly strides: number | [number, number];
  readonly pad: tf.MaxPoolAttrs['pad'];
  readonly dimRoundingMode?: 'floor' | 'round' | 'ceil';
}

function pool2DOf(xShape: readonly number[], attrs: PoolAttrs): Pool {
  const { filterSize, strides, pad, dimRoundingMode } = attrs;
  const shape = xShape as [number, number, number, number];
  const info = tf.backend_util.computePool2DInfo(
    shape,
    filterSize,
    strides,
    1,
    pad,
    dimRoundingMode,
  );
  return { axes: axesOf2D(info), outShape: info.outShape };
}

function pool3DOf(
  xShape: readonly number[],
  { filterSize, strides, pad, dimRoundingMode }: Omit<tf.MaxPool3DAttrs, 'dataFormat'>,
): Pool {
  const info = tf.backend_util.computePool3DInfo(
    xShape as [number, number, number, number, number],
    filterSize,
    strides,
    1,
    pad,
    dimRoundingMode,
  );
  return { axes: axesOf3D(info), outShape: info.outShape };
}

/** The windows of the padded image. */
function windowOf(axes: readonly SpatialAxis[], stride: (axis: SpatialAxis) => number): Window {
  return {
    dimensions: [1, ...axes.map(({ window }) => window), 1],
    strides: [1, ...axes.map(stride), 1],
    padding: range(axes.length + 2).map(() => [0, 0]),
  };
}

const strideOf = ({ stride }: SpatialAxis): number => stride;

/** The image with each axis padded by `value`, or cut where no window reaches. */
function padded(hlo: HloBuilder, x: Value, axes: readonly SpatialAxis[], value: number): Value {
  const edges = axes.map(paddingOf);
  return hlo.pad(
    x,
    hlo.constant(value, x.elementType),
    [0, ...edges.map(([low]) => low), 0],
    [0, ...edges.map(([, high]) => high), 0],
  );
}

/** The reverse of `padded`. */
function unpadded(hlo: HloBuilder, x: Value, axes: readonly SpatialAxis[]): Value {
  const edges = axes.map(paddingOf);
  return hlo.pad(
    x,
    hlo.constant(0, x.elementType),
    [0, ...edges.map(([low]) => -low), 0],
    [0, ...edges.map(([, high]) => -high), 0],
  );
}

/** tfjs's comparisons pass over NaN. */
function withoutNaN(hlo: HloBuilder, x: Value): Value {
  if (!isFloat(x.elementType)) return x;
  return hlo.select(hlo.compare(x, x, 'NE'), constantLike(hlo, x, -Infinity), x);
}

function maxPoolOf(hlo: HloBuilder, x: Value, { axes, outShape }: Pool): Value {
  if (axes.every(({ window }) => window === 1) && sameShape(x.shape, outShape)) return x;
  const worst = lowest(x.elementType);
  const image = padded(hlo, withoutNaN(hlo, x), axes, worst);
  const init = hlo.constant(worst, x.elementType);
  return hlo.reduceWindow(image, init, 'maximum', windowOf(axes, strideOf));
}

/** dy at the greatest entry of each window; of equal ones tfjs takes the first in images and the last in volumes. */
function maxPoolGradOf(
  hlo: HloBuilder,
  dy: Value,
  x: Value,
  { axes }: Pool,
  preferred: 'GE' | 'GT',
): Value {
  const image = padded(hlo, withoutNaN(hlo, x), axes, lowest(x.elementType));
  const gradient = hlo.selectAndScatter(image, dy, preferred, windowOf(axes, strideOf));
  return unpadded(hlo, gradient, axes);
}

function avgPoolOf(hlo: HloBuilder, x: Value, pool: Pool): Value {
  const { axes, outShape } = pool;
  if (axes.every(({ window }) => window === 1) && sameShape(x.shape, outShape)) return x;
  const image = padded(hlo, hlo.convert(x, 'f32'), axes, 0);
  const init = hlo.constant(0, 'f32');
  const sums = hlo.reduceWindow(image, init, 'add', windowOf(axes, strideOf));
  return hlo.convert(hlo.divide(sums, counts(hlo, pool, outShape)), x.elementType);
}

/** Each dy shared out among the entries of its window. */
function avgPoolGradOf(hlo: HloBuilder, dy: Value, pool: Pool): Value {
  const { axes } = pool;
  const shares = hlo.divide(dy, counts(hlo, pool, dy.shape));
  const edges = axes.map(({ inSize, outSize, window, stride, low }) => [
    window - 1 - low,
    inSize + low - (outSize - 1) * stride - 1,
  ]);
  const spread = hlo.pad(
    shares,
    hlo.constant(0, dy.elementType),
    [0, ...edges.map(([low]) => low!), 0],
    [0, ...edges.map(([, high]) => high!), 0],
    [0, ...axes.map(({ stride }) => stride - 1), 0],
  );
  const window = windowOf(axes, () => 1);
  return hlo.reduceWindow(spread, hlo.constant(0, dy.elementType), 'add', window);
}

/** How many entries of the image are in each window, at least 1. */
function counts(hlo: HloBuilder, { axes }: Pool, shape: readonly number[]): Value {
  const perAxis = axes.map(({ inSize, outSize, window, stride, low }) =>
    range(outSize).map((at) => {
      const start = at * stride - low;
      return Math.min(start + window, inSize) - Math.max(start, 0);
    }),
  );
  const product = perAxis.reduce<number[]>(
    (outer, inner) => outer.flatMap((count) => inner.map((more) => count * more)),
    [1],
  );
  const values = Float32Array.from(product, (count) => Math.max(count, 1));
  const spatial = range(1, axes.length + 1);
  const type = { shape: spatial.map((axis) => shape[axis]!), elementType: 'f32' } as const;
  return hlo.broadcastInDim(hlo.constantArray(values, type), shape, spatial);
}

export const maxPool = kernel<tf.MaxPoolInputs, tf.MaxPoolAttrs>(tf.MaxPool, (hlo, { x }, attrs) =>
  maxPoolOf(hlo, x, pool2DOf(x.shape, attrs)),
);

export const maxPool3D = kernel<tf.MaxPool3DInputs, tf.MaxPool3DAttrs>(
  tf.MaxPool3D,
  (hlo, { x }, attrs) => maxPoolOf(hlo, x, pool3DOf(x.shape, attrs)),
);

export const avgPool = kernel<tf.AvgPoolInputs, tf.AvgPoolAttrs>(tf.AvgPool, (hlo, { x }, attrs) =>
  avgPoolOf(hlo, x, pool2DOf(x.shape, attrs)),
);

export const avgPool3D = kernel<tf.AvgPool3DInputs, tf.AvgPool3DAttrs>(
  tf.AvgPool3D,
  (hlo, { x }, attrs) => avgPoolOf(hlo, x, pool3DOf(x.shape, attrs)),
);

export const maxPoolGrad = kernel<tf.MaxPoolGradInputs, tf.MaxPoolGradAttrs>(
  tf.MaxPoolGrad,
  (hlo, { dy, input }, attrs) => maxPoolGradOf(hlo, dy, input, pool2DOf(input.shape, attrs), 'GE'),
);

export const maxPool3DGrad = kernel<tf.MaxPool3DGradInputs, tf.MaxPool3DGradAttrs>(
  tf.MaxPool3DGrad,
  (hlo, { dy, input }, attrs) => maxPoolGradOf(hlo, dy, input, pool3DOf(input.shape, attrs), 'GT'),
);

export const avgPoolGrad = kernel<tf.AvgPoolGradInputs, tf.AvgPoolGradAttrs>(
  tf.AvgPoolGrad,
  (hlo, { dy, input }, attrs) => avgPoolGradOf(hlo, dy, pool2DOf(input.shape, attrs)),
);

export const avgPool3DGrad = kernel<tf.AvgPool3DGradInputs, tf.AvgPool3DGradAttrs>(
  tf.AvgPool3DGrad,
  (hlo, { dy, input }, attrs) => avgPoolGradOf(hlo, dy, pool3DOf(input.shape, attrs)),
);

/** Also the position of each maximum in the flattened image, or in the batch of them. */
export const maxPoolWithArgmax = kernel<tf.MaxPoolWithArgmaxInputs, tf.MaxPoolWithArgmaxAttrs>(
  tf.MaxPoolWithArgmax,
  (hlo, { x }, { filterSize, strides, pad, includeBatchInIndex }) => {
    const { axes } = pool2DOf(x.shape, { filterSize, strides, pad: pad });
    const [batch, ...image] = x.shape as [number, ...number[]];
    const size = image.reduce((product, n) => product * n, 1);
    const [count, start] = includeBatchInIndex ? [batch * size, 0] : [size, 1];
    const positions = hlo.broadcastInDim(
      hlo.reshape(hlo.iota([count], 0, 'i32'), x.shape.slice(start)),
      x.shape,
      range(start, x.shape.length),
    );
    const [worst, none] = [lowest(x.elementType), highest('i32')];
    return hlo.reduceWindowWith(
      [padded(hlo, withoutNaN(hlo, x), axes, worst), padded(hlo, positions, axes, none)],
      [hlo.constant(worst, x.elementType), hlo.constant(none, 'i32')],
      windowOf(axes, strideOf),
      betterEntry(hlo, x.elementType, 'GT'),
    );
  },
);
