import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../../stablehlo/ops.ts';
import type { Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { broadcastAll, broadcastTo, constantLike, range } from '../broadcast.ts';

/** Images [B, H, W, C] read at points that are computed, or turned. */

/** Where to read, each [B, h, w] or a shape that broadcasts to it. */
interface Points {
  readonly batch: Value;
  readonly row: Value;
  readonly column: Value;
}

/** The channels at whole-numbered points; rows and columns outside are moved to the nearest inside. */
function read(hlo: HloBuilder, image: Value, points: Points): Value {
  const [batch, row, column] = broadcastAll(hlo, [points.batch, points.row, points.column]) as [
    Value,
    Value,
    Value,
  ];
  const parts = [batch, row, column].map((index) =>
    hlo.reshape(hlo.convert(index, 'i32'), [...index.shape, 1]),
  );
  const channels = image.shape[3]!;
  return hlo.gather(image, hlo.concatenate(parts, 3), [1, 1, 1, channels], {
    offsetDims: [3],
    collapsedSliceDims: [0, 1, 2],
    startIndexMap: [0, 1, 2],
    indexVectorDim: 3,
  });
}

/** Where 0 <= point < size, for each axis. */
function isInside(
  hlo: HloBuilder,
  { row, column }: Points,
  [, height, width]: readonly number[],
): Value {
  const [rows, columns] = broadcastAll(hlo, [row, column]) as [Value, Value];
  const within = (point: Value, size: number) =>
    hlo.and(
      hlo.compare(point, constantLike(hlo, point, 0), 'GE'),
      hlo.compare(point, constantLike(hlo, point, size), 'LT'),
    );
  return hlo.and(within(rows, height!), within(columns, width!));
}

/** The channels at the points that are inside, `fill` at the others. */
function readOr(hlo: HloBuilder, image: Value, points: Points, fill: number): Value {
  const values = read(hlo, image, points);
  const inside = isInside(hlo, points, image.shape);
  return hlo.select(
    hlo.broadcastInDim(inside, values.shape, [0, 1, 2]),
    values,
    constantLike(hlo, values, fill),
  );
}

/** JavaScript's `Math.round`: halves go up. */
function roundHalfUp(hlo: HloBuilder, x: Value): Value {
  const down = hlo.floor(x);
  const isUp = hlo.compare(hlo.subtract(x, down), constantLike(hlo, x, 0.5), 'GE');
  return hlo.select(isUp, hlo.add(down, constantLike(hlo, x, 1)), down);
}

/** Weights that change along the points, applied to all channels. */
function weigh(hlo: HloBuilder, values: Value, weights: Value): Value {
  const [b, h, w] = values.shape as [number, number, number, number];
  const whole = broadcastTo(hlo, weights, [b, h, w]);
  return hlo.multiply(values, hlo.broadcastInDim(whole, values.shape, [0, 1, 2]));
}

/** Boxes [N, 4] of images, brought to one size. Source: tensorflow/core/kernels/crop_and_resize_op.cc */
export const cropAndResize = kernel<tf.CropAndResizeInputs, tf.CropAndResizeAttrs>(
  tf.CropAndResize,
  (hlo, { image, boxes, boxInd }, { cropSize, method, extrapolationValue }) => {
    const [numImages, height, width, channels] = image.shape as [number, number, number, number];
    const numBoxes = boxes.shape[0]!;
    if (numBoxes === 0) return hlo.constant(0, 'f32', [0, ...cropSize, channels]);
    const x = hlo.convert(image, 'f32');
    const corner = (index: number) =>
      hlo.reshape(hlo.slice(boxes, [0, index], [numBoxes, index + 1]), [numBoxes]);
    const points = (from: Value, to: Value, size: number, count: number): Value => {
      const scaled = (value: Value, by: number) =>
        hlo.multiply(value, constantLike(hlo, value, by));
      if (count <= 1) {
        const middle = scaled(scaled(hlo.add(from, to), 0.5), size - 1);
        return hlo.broadcastInDim(middle, [numBoxes, count], [0]);
      }
      const step = hlo.divide(
        scaled(hlo.subtract(to, from), size - 1),
        constantLike(hlo, from, count - 1),
      );
      const shape = [numBoxes, count];
      return hlo.add(
        hlo.broadcastInDim(scaled(from, size - 1), shape, [0]),
        hlo.multiply(hlo.iota(shape, 1, 'f32'), hlo.broadcastInDim(step, shape, [0])),
      );
    };
    const spread = (value: Value, axis: 1 | 2) =>
      hlo.reshape(value, axis === 1 ? [...value.shape, 1] : [numBoxes, 1, value.shape[1]!]);
    const row = spread(points(corner(0), corner(2), height, cropSize[0]), 1);
    const column = spread(points(corner(1), corner(3), width, cropSize[1]), 2);
    const batch = hlo.reshape(hlo.convert(boxInd, 'i32'), [numBoxes, 1, 1]);
    const at = (rows: Value, columns: Value) => read(hlo, x, { batch, row: rows, column: columns });

    let crops: Value;
    if (method === 'nearest') crops = at(roundHalfUp(hlo, row), roundHalfUp(hlo, column));
    else {
      const [top, left] = [hlo.floor(row), hlo.floor(column)];
      const between = (a: Value, b: Value, fraction: Value) =>
        hlo.add(a, weigh(hlo, hlo.subtract(b, a), fraction));
      const right = hlo.ceil(column);
      const across = (rows: Value) =>
        between(at(rows, left), at(rows, right), hlo.subtract(column, left));
      crops = between(across(top), across(hlo.ceil(row)), hlo.subtract(row, top));
    }

    // Beyond the last row or column of pixels there is nothing to interpolate with.
    const [rows, columns] = broadcastAll(hlo, [row, column]) as [Value, Value];
    const within = (value: Value, size: number) =>
      hlo.and(
        hlo.compare(value, constantLike(hlo, value, 0), 'GE'),
        hlo.compare(value, constantLike(hlo, value, size - 1), 'LE'),
      );
    const inside = hlo.and(within(rows, height), within(columns, width));
    const isImage = hlo.compare(batch, constantLike(hlo, batch, numImages), 'LT');
    const choose = (pred: Value, value: Value, otherwise: number) => {
      const whole = hlo.broadcastInDim(
        broadcastTo(hlo, pred, value.shape.slice(0, 3)),
        value.shape,
        [0, 1, 2],
      );
      return hlo.select(whole, value, constantLike(hlo, value, otherwise));
    };
    return choose(isImage, choose(inside, crops, extrapolationValue), 0);
  },
);

/**
 * Each pixel of the result is read at (x, y) mapped by a projective transform [B or 1, 8].
 * Source: tensorflow/core/kernels/image/image_ops.h
 */
export const transform = kernel<tf.TransformInputs, tf.TransformAttrs>(
  tf.Transform,
  (hlo, { image, transforms }, { interpolation, fillMode, fillValue, outputShape }) => {
    const [numImages, height, width] = image.shape as [number, number, number, number];
    // tfjs's type leaves out that there may be none.
    const [outHeight, outWidth] = (outputShape as [number, number] | null) ?? [height, width];
    const shape = [numImages, outHeight, outWidth];
    const numTransforms = transforms.shape[0]!;
    const term = (index: number) => {
      const column = hlo.slice(transforms, [0, index], [numTransforms, index + 1]);
      return broadcastTo(hlo, hlo.reshape(column, [numTransforms, 1, 1]), shape);
    };
    const [x, y] = [hlo.iota(shape, 2, 'f32'), hlo.iota(shape, 1, 'f32')];
    const linear = (first: number, offset: Value) =>
      hlo.add(hlo.add(hlo.multiply(term(first), x), hlo.multiply(term(first + 1), y)), offset);
    const projection = linear(6, constantLike(hlo, x, 1));
    const column = mapCoordinate(hlo, hlo.divide(linear(0, term(2)), projection), width, fillMode);
    const row = mapCoordinate(hlo, hlo.divide(linear(3, term(5)), projection), height, fillMode);
    const batch = hlo.iota(shape, 0, 'i32');
    const at = (rows: Value, columns: Value) =>
      readOr(hlo, image, { batch, row: rows, column: columns }, fillValue);

    let result: Value;
    if (interpolation === 'nearest') result = at(roundHalfUp(hlo, row), roundHalfUp(hlo, column));
    else {
      const next = (value: Value) => hlo.add(value, constantLike(hlo, value, 1));
      const [top, left] = [hlo.floor(row), hlo.floor(column)];
      const [bottom, right] = [next(top), next(left)];
      const across = (rows: Value) =>
        hlo.add(
          weigh(hlo, at(rows, left), hlo.subtract(right, column)),
          weigh(hlo, at(rows, right), hlo.subtract(column, left)),
        );
      result = hlo.add(
        weigh(hlo, across(top), hlo.subtract(bottom, row)),
        weigh(hlo, across(bottom), hlo.subtract(row, top)),
      );
    }
    const isFinite = hlo.compare(projection, constantLike(hlo, projection, 0), 'NE');
    return hlo.select(
      hlo.broadcastInDim(isFinite, result.shape, [0, 1, 2]),
      result,
      constantLike(hlo, result, fillValue),
    );
  },
);

/** A coordinate moved into [0, size - 1] as the fill mode says; `constant` leaves it where it is. */
function mapCoordinate(
  hlo: HloBuilder,
  at: Value,
  size: number,
  mode: tf.TransformAttrs['fillMode'],
): Value {
  if (mode === 'constant') return at;
  const number = (value: number) => constantLike(hlo, at, value);
  const clamped = (value: Value) => hlo.clamp(number(0), value, number(size - 1));
  if (mode === 'nearest') return clamped(at);
  if (size <= 1) return number(0);
  const zero = number(0);
  // How often `period` goes into a distance, cut to a whole number.
  const times = (distance: Value, period: number) =>
    hlo.floor(hlo.divide(distance, number(period)));
  const isBelow = hlo.compare(at, zero, 'LT');
  const isAbove = hlo.compare(at, number(size - 1), 'GT');
  const pick = (below: Value, above: Value) =>
    clamped(hlo.select(isBelow, below, hlo.select(isAbove, above, at)));
  if (mode === 'wrap') {
    const shift = (turns: Value) => hlo.multiply(turns, number(size));
    const below = hlo.add(at, shift(hlo.add(times(hlo.negate(at), size - 1), number(1))));
    return pick(below, hlo.subtract(at, shift(times(at, size - 1))));
  }
  const period = number(2 * size);
  const last = hlo.subtract(period, number(1));
  const raised = hlo.add(at, hlo.multiply(period, times(hlo.negate(at), 2 * size)));
  const below = hlo.select(
    hlo.compare(raised, number(-size), 'LT'),
    hlo.add(raised, period),
    hlo.subtract(hlo.negate(raised), number(1)),
  );
  const lowered = hlo.subtract(at, hlo.multiply(period, times(at, 2 * size)));
  const above = hlo.select(
    hlo.compare(lowered, number(size), 'GE'),
    hlo.subtract(last, lowered),
    lowered,
  );
  return pick(below, above);
}

/** Turned about a centre, each pixel the nearest of the image; coordinates in float64, as JavaScript has them. */
export const rotateWithOffset = kernel<tf.RotateWithOffsetInputs, tf.RotateWithOffsetAttrs>(
  tf.RotateWithOffset,
  (hlo, { image }, { radians, fillValue, center }) => {
    const [, height, width, channels] = image.shape as [number, number, number, number];
    const shape = image.shape.slice(0, 3);
    const [centerX, centerY] = tf.backend_util.getImageCenter(center, height, width);
    const number = (value: number) => hlo.constant(value, 'f64', shape);
    const x = hlo.subtract(hlo.iota(shape, 2, 'f64'), number(centerX));
    const y = hlo.subtract(hlo.iota(shape, 1, 'f64'), number(centerY));
    const times = (value: Value, by: number) => hlo.multiply(value, number(by));
    const [sin, cos] = [Math.sin(radians), Math.cos(radians)];
    const points = {
      batch: hlo.iota(shape, 0, 'i32'),
      column: roundHalfUp(
        hlo,
        hlo.add(hlo.subtract(times(x, cos), times(y, sin)), number(centerX)),
      ),
      row: roundHalfUp(hlo, hlo.add(hlo.add(times(x, sin), times(y, cos)), number(centerY))),
    };
    const values = read(hlo, image, points);
    const inside = hlo.broadcastInDim(isInside(hlo, points, image.shape), values.shape, [0, 1, 2]);
    // The fourth channel is opacity.
    const fills = range(channels).map((channel) => {
      if (typeof fillValue === 'number') return fillValue;
      return channel === 3 ? 255 : fillValue[channel]!;
    });
    const type = { shape: [channels], elementType: 'f32' } as const;
    const fill = hlo.convert(hlo.constantArray(Float32Array.from(fills), type), image.elementType);
    return hlo.select(inside, values, hlo.broadcastInDim(fill, values.shape, [3]));
  },
);

/** Left and right change places. */
export const flipLeftRight = kernel<tf.FlipLeftRightInputs>(tf.FlipLeftRight, (hlo, { image }) =>
  hlo.reverse(image, [2]),
);
