import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../../stablehlo/ops.ts';
import { numElements } from '../../stablehlo/types.ts';
import type { Value } from '../../stablehlo/types.ts';
import { kernel, viewKernel } from '../backend.ts';
import { axesOf, broadcastTo, constantLike, range } from '../broadcast.ts';

/** A second holder of the same elements: nothing is emitted or copied. */
export const identity = viewKernel<object>(
  tf.Identity,
  ({ shape }) => shape,
  (_, x) => x,
);

export const reshape = viewKernel<tf.ReshapeAttrs>(tf.Reshape, reshaped, (hlo, x, attrs) =>
  hlo.reshape(x, reshaped(x, attrs)),
);

export const expandDims = viewKernel<tf.ExpandDimsAttrs>(tf.ExpandDims, expanded, (hlo, x, attrs) =>
  hlo.reshape(x, expanded(x, attrs)),
);

export const transpose = kernel<tf.TransposeInputs, tf.TransposeAttrs>(
  tf.Transpose,
  (hlo, { x }, { perm }) => hlo.transpose(x, perm),
);

export const broadcast = kernel<tf.BroadcastToInputs, tf.BroadCastToAttrs>(
  tf.BroadcastTo,
  (hlo, { x }, { shape }) => broadcastTo(hlo, x, shape),
);

/** A size of -1 reaches to the end of its axis. */
export const slice = kernel<tf.SliceInputs, tf.SliceAttrs>(
  tf.Slice,
  (hlo, { x }, { begin, size }) => {
    const [starts, sizes] = tf.slice_util.parseSliceParams(infoOf(x), begin, size) as [
      number[],
      number[],
    ];
    return hlo.slice(
      x,
      starts,
      starts.map((start, axis) => start + sizes[axis]!),
    );
  },
);

export const stridedSlice = kernel<tf.StridedSliceInputs, tf.StridedSliceAttrs>(
  tf.StridedSlice,
  (hlo, { x }, attrs) => {
    const info = tf.slice_util.sliceInfo(
      [...x.shape],
      attrs.begin,
      attrs.end,
      attrs.strides,
      attrs.beginMask,
      attrs.endMask,
      attrs.ellipsisMask,
      attrs.newAxisMask,
      attrs.shrinkAxisMask,
    );
    if (info.isIdentity) return hlo.reshape(x, info.finalShape);
    const sizes = tf.slice_util.computeOutShape(info.begin, info.end, info.strides);
    if (sizes.some((size) => size === 0)) {
      return hlo.constant(0, x.elementType, info.finalShape);
    }
    // A negative stride walks backwards: reverse the axis and count from its other end.
    const backwards = range(x.shape.length).filter((axis) => info.strides[axis]! < 0);
    const flipped = backwards.length === 0 ? x : hlo.reverse(x, backwards);
    const starts = info.begin.map((start, axis) =>
      backwards.includes(axis) ? x.shape[axis]! - 1 - start : start,
    );
    const strides = info.strides.map(Math.abs);
    const limits = starts.map((start, axis) => start + (sizes[axis]! - 1) * strides[axis]! + 1);
    return hlo.reshape(hlo.slice(flipped, starts, limits, strides), info.finalShape);
  },
);

export const concat = kernel<tf.ConcatInputs, tf.ConcatAttrs>(
  tf.Concat,
  (hlo, inputs, { axis }) => {
    const [dimension] = axesOf(axis, inputs[0]!.shape.length) as [number];
    tf.backend_util.assertParamsConsistent(
      inputs.map(({ shape }) => [...shape]),
      dimension,
    );
    return hlo.concatenate(inputs, dimension);
  },
);

export const pack = kernel<tf.PackInputs, tf.PackAttrs>(tf.Pack, (hlo, inputs, { axis }) => {
  const [dimension] = axesOf(axis, inputs[0]!.shape.length + 1) as [number];
  return hlo.concatenate(
    inputs.map((input) => hlo.reshape(input, input.shape.toSpliced(dimension, 0, 1))),
    dimension,
  );
});

export const unpack = kernel<tf.UnpackInputs, tf.UnpackAttrs>(
  tf.Unpack,
  (hlo, { value }, { axis }) => {
    const [dimension] = axesOf(axis, value.shape.length) as [number];
    return range(value.shape[dimension]!).map((index) =>
      hlo.reshape(
        sliceAxis(hlo, value, dimension, index, index + 1),
        value.shape.toSpliced(dimension, 1),
      ),
    );
  },
);

export const splitV = kernel<tf.SplitVInputs, tf.SplitVAttrs>(
  tf.SplitV,
  (hlo, { x }, { numOrSizeSplits, axis }) => {
    const [dimension] = axesOf(axis, x.shape.length) as [number];
    const sizes = tf.backend_util.prepareSplitSize(infoOf(x), numOrSizeSplits, dimension);
    let start = 0;
    return sizes.map((size) => {
      start += size;
      return sliceAxis(hlo, x, dimension, start - size, start);
    });
  },
);

export const pad = kernel<tf.PadV2Inputs, tf.PadV2Attrs>(
  tf.PadV2,
  (hlo, { x }, { paddings, constantValue }) =>
    hlo.pad(
      x,
      hlo.constant(constantValue, x.elementType),
      paddings.map(([low]) => low),
      paddings.map(([, high]) => high),
    ),
);

/** `reflect` leaves the edge out of the mirrored part, `symmetric` repeats it. */
export const mirrorPad = kernel<tf.MirrorPadInputs, tf.MirrorPadAttrs>(
  tf.MirrorPad,
  (hlo, { x }, { paddings, mode }) => {
    const skip = mode === 'reflect' ? 1 : 0;
    return paddings.reduce((value, [low, high], axis) => {
      const size = value.shape[axis]!;
      const before = sliceAxis(hlo, value, axis, skip, skip + low);
      const after = sliceAxis(hlo, value, axis, size - skip - high, size - skip);
      const parts = [hlo.reverse(before, [axis]), value, hlo.reverse(after, [axis])];
      return hlo.concatenate(
        parts.filter((part) => part.shape[axis] !== 0),
        axis,
      );
    }, x);
  },
);

export const tile = kernel<tf.TileInputs, tf.TileAttrs>(tf.Tile, (hlo, { x }, { reps }) => {
  // [a, b] becomes [rep, a, rep, b], then the pairs are folded.
  const paired = x.shape.flatMap((size, axis) => [reps[axis]!, size]);
  const repeated = hlo.broadcastInDim(
    x,
    paired,
    range(x.shape.length).map((axis) => 2 * axis + 1),
  );
  return hlo.reshape(
    repeated,
    x.shape.map((size, axis) => size * reps[axis]!),
  );
});

export const reverse = kernel<tf.ReverseInputs, tf.ReverseAttrs>(
  tf.Reverse,
  (hlo, { x }, { dims }) =>
    x.shape.length === 0 ? x : hlo.reverse(x, axesOf(dims, x.shape.length)),
);

/** Blocks of the spatial axes, padded, become entries of the batch. */
export const spaceToBatchND = kernel<tf.SpaceToBatchNDInputs, tf.SpaceToBatchNDAttrs>(
  tf.SpaceToBatchND,
  (hlo, { x }, { blockShape, paddings }) => {
    const { getReshaped, getPermuted, getReshapedPermuted } = tf.backend_util;
    const edge = (side: 0 | 1) => x.shape.map((_, axis) => paddings[axis - 1]?.[side] ?? 0);
    const padded = hlo.pad(x, hlo.constant(0, x.elementType), edge(0), edge(1));
    const [shape, numBlocks] = [[...padded.shape], numElements(blockShape)];
    const blocks = hlo.reshape(padded, getReshaped(shape, blockShape, numBlocks, false));
    const moved = hlo.transpose(blocks, getPermuted(blocks.shape.length, blockShape.length, false));
    return hlo.reshape(moved, getReshapedPermuted(shape, blockShape, numBlocks, false));
  },
);

/** Entries of the batch become blocks of the spatial axes, which are then cropped. */
export const batchToSpaceND = kernel<tf.BatchToSpaceNDInputs, tf.BatchToSpaceNDAttrs>(
  tf.BatchToSpaceND,
  (hlo, { x }, { blockShape, crops }) => {
    const { getReshaped, getPermuted, getReshapedPermuted } = tf.backend_util;
    const [shape, numBlocks] = [[...x.shape], numElements(blockShape)];
    const blocks = hlo.reshape(x, getReshaped(shape, blockShape, numBlocks));
    const moved = hlo.transpose(blocks, getPermuted(blocks.shape.length, blockShape.length));
    const whole = hlo.reshape(moved, getReshapedPermuted(shape, blockShape, numBlocks));
    const crop = (side: 0 | 1) => whole.shape.map((_, axis) => crops[axis - 1]?.[side] ?? 0);
    const limits = crop(1).map((end, axis) => whole.shape[axis]! - end);
    return hlo.slice(whole, crop(0), limits);
  },
);

/** Groups of channels become blocks of rows and columns. */
export const depthToSpace = kernel<tf.DepthToSpaceInputs, tf.DepthToSpaceAttrs>(
  tf.DepthToSpace,
  (hlo, { x }, { blockSize, dataFormat }) => {
    const isLast = dataFormat === 'NHWC';
    const [batch, ...rest] = x.shape as [number, number, number, number];
    const [height, width, depth] = isLast ? rest : [rest[1], rest[2], rest[0]];
    const channels = depth / blockSize ** 2;
    const [rows, columns] = [height * blockSize, width * blockSize];
    const block = [blockSize, blockSize];
    if (isLast) {
      const blocks = hlo.reshape(x, [batch, height, width, ...block, channels]);
      return hlo.reshape(hlo.transpose(blocks, [0, 1, 3, 2, 4, 5]), [
        batch,
        rows,
        columns,
        channels,
      ]);
    }
    const blocks = hlo.reshape(x, [batch, ...block, channels, height, width]);
    return hlo.reshape(hlo.transpose(blocks, [0, 3, 4, 1, 5, 2]), [batch, channels, rows, columns]);
  },
);

/** x on the diagonal of a matrix whose rows and columns are both shaped like x. */
export const diag = kernel<tf.DiagInputs>(tf.Diag, (hlo, { x }) => {
  const shape = [numElements(x.shape), numElements(x.shape)];
  const rows = hlo.broadcastInDim(hlo.reshape(x, shape.slice(1)), shape, [0]);
  const isDiagonal = hlo.compare(hlo.iota(shape, 0, 'i32'), hlo.iota(shape, 1, 'i32'), 'EQ');
  const matrix = hlo.select(isDiagonal, rows, constantLike(hlo, rows, 0));
  return hlo.reshape(matrix, [...x.shape, ...x.shape]);
});

type Shape = Pick<Value, 'shape'>;

function reshaped({ shape: from }: Shape, { shape }: tf.ReshapeAttrs): number[] {
  const size = numElements(from);
  const to = tf.util.inferFromImplicitShape([...shape], size);
  tf.util.assert(
    numElements(to) === size,
    () => `reshape: ${size} elements of [${from.join()}] do not make [${to.join()}]`,
  );
  return to;
}

function expanded({ shape }: Shape, { dim }: tf.ExpandDimsAttrs): number[] {
  const axis = dim < 0 ? shape.length + dim + 1 : dim;
  tf.util.assert(
    axis >= 0 && axis <= shape.length,
    () => `expandDims: axis ${dim} of a tensor of rank ${shape.length}`,
  );
  return shape.toSpliced(axis, 0, 1);
}

/** Entries `start` to `limit` of one axis. */
export function sliceAxis(
  hlo: HloBuilder,
  x: Value,
  axis: number,
  start: number,
  limit: number,
): Value {
  const starts = x.shape.map((_, a) => (a === axis ? start : 0));
  return hlo.slice(
    x,
    starts,
    x.shape.map((size, a) => (a === axis ? limit : size)),
  );
}

/** tfjs's helpers look at shapes alone. */
function infoOf({ shape }: Value): tf.TensorInfo {
  return { dataId: {}, shape: [...shape], dtype: 'float32' };
}
