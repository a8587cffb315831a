import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../../stablehlo/ops.ts';
import type { Value } from '../../stablehlo/types.ts';
import { numElements } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { axesOf, range } from '../broadcast.ts';
import { elementTypeOf } from '../dtypes.ts';
import { EngineError } from '../errors.ts';

/**
 * Entries of one axis of x at `indices`: the axis gives way to the axes of `indices` behind its `batchDims`. An index
 * outside is moved to the nearest inside, where tfjs's other backends fail or give 0. Source: spec#gather.
 */
export const gatherV2 = kernel<tf.GatherV2Inputs, tf.GatherV2Attrs>(
  tf.GatherV2,
  (hlo, { x, indices }, { axis, batchDims }) => {
    const [dimension] = axesOf(axis, x.shape.length) as [number];
    tf.backend_util.segment_util.collectGatherOpShapeInfo(
      x as unknown as tf.Tensor,
      indices as unknown as tf.Tensor,
      dimension,
      batchDims,
    );
    const numBatch = batchDims < 0 ? batchDims + indices.shape.length : batchDims;
    const batching = range(numBatch);
    const numIndexAxes = indices.shape.length - numBatch;
    const inner = x.shape.length - dimension - 1;
    // Result axes: batch, x before the axis, indices, x after it.
    const offsetDims = [
      ...range(numBatch, dimension),
      ...range(dimension + numIndexAxes, dimension + numIndexAxes + inner),
    ];
    return hlo.gather(
      x,
      hlo.convert(indices, 'i32'),
      x.shape.map((size, a) => (a === dimension || a < numBatch ? 1 : size)),
      {
        offsetDims,
        collapsedSliceDims: [dimension],
        operandBatchingDims: batching,
        startIndicesBatchingDims: batching,
        startIndexMap: [dimension],
        indexVectorDim: indices.shape.length,
      },
    );
  },
  ({ x, indices }, { axis }, read) => {
    const [dimension] = axesOf(axis, x.shape.length) as [number];
    checkIndices(tf.GatherV2, read(indices), [x.shape[dimension]!]);
  },
);

/** Slices of `params` at the index vectors in the last axis of `indices`. */
export const gatherNd = kernel<tf.GatherNdInputs>(
  tf.GatherNd,
  (hlo, { params, indices }) => {
    const last = indices.shape.length - 1;
    const depth = indices.shape[last]!;
    return hlo.gather(
      params,
      hlo.convert(indices, 'i32'),
      params.shape.map((size, axis) => (axis < depth ? 1 : size)),
      {
        offsetDims: range(last, last + params.shape.length - depth),
        collapsedSliceDims: range(depth),
        startIndexMap: range(depth),
        indexVectorDim: last,
      },
    );
  },
  ({ params, indices }, _, read) => {
    checkIndices(tf.GatherNd, read(indices), params.shape.slice(0, indices.shape.at(-1)));
  },
);

/** Zeros of `shape` with the updates added at their index vectors; those outside are dropped. Source: spec#scatter. */
export const scatterNd = kernel<tf.ScatterNdInputs, tf.ScatterNdAttrs>(
  tf.ScatterNd,
  (hlo, { indices, updates }, { shape }) =>
    scatterAt(
      hlo,
      hlo.constant(0, updates.elementType, shape),
      ...vectors(hlo, indices, updates, shape),
      'add',
    ),
  ({ indices }, { shape }, read) => {
    checkIndices(tf.ScatterNd, read(indices), shape.slice(0, depthOf(indices)));
  },
);

export const tensorScatterUpdate = kernel<tf.TensorScatterUpdateInputs>(
  tf.TensorScatterUpdate,
  (hlo, { tensor, indices, updates }) =>
    scatterAt(hlo, tensor, ...vectors(hlo, indices, updates, tensor.shape)),
  ({ tensor, indices }, _, read) => {
    const sizes = tensor.shape.slice(0, depthOf(indices));
    checkIndices(tf.TensorScatterUpdate, read(indices), sizes);
  },
);

/** A tensor of `outputShape` filled with the default and the values at their index vectors. */
export const sparseToDense = kernel<tf.SparseToDenseInputs, tf.SparseToDenseAttrs>(
  tf.SparseToDense,
  (hlo, { sparseIndices, sparseValues, defaultValue }, { outputShape }) => {
    const { sliceRank, numUpdates } = tf.backend_util.calculateShapes(
      sparseValues as unknown as tf.TensorInfo,
      sparseIndices as unknown as tf.TensorInfo,
      outputShape,
    );
    const fill = hlo.convert(hlo.reshape(defaultValue, []), sparseValues.elementType);
    return scatterAt(
      hlo,
      hlo.broadcastInDim(fill, outputShape, []),
      hlo.reshape(sparseIndices, [numUpdates, sliceRank]),
      hlo.broadcastInDim(sparseValues, [numUpdates], range(sparseValues.shape.length)),
    );
  },
  ({ sparseIndices }, { outputShape }, read) => {
    checkIndices(tf.SparseToDense, read(sparseIndices), outputShape);
  },
);

/** How often each of 0, ..., size - 1 occurs, or the sum of its weights. Other numbers are dropped. */
export const bincount = kernel<tf.BincountInputs, tf.BincountAttrs>(
  tf.Bincount,
  (hlo, { x, weights }, { size }) => {
    const flat = (value: Value) => hlo.reshape(value, [numElements(value.shape)]);
    return counted(hlo, flat(x), flat(weights), size);
  },
  ({ x }, _, read) => {
    checkIndices(tf.Bincount, read(x), [Infinity]);
  },
);

/** `bincount` of a vector or of each row of a matrix; with `binaryOutput` 1 for what occurs at all. */
export const denseBincount = kernel<tf.DenseBincountInputs, tf.DenseBincountAttrs>(
  tf.DenseBincount,
  (hlo, { x, weights }, { size, binaryOutput }) =>
    // tfjs heeds `binaryOutput` for matrices alone.
    counted(hlo, x, weights, size, binaryOutput === true && x.shape.length === 2),
  ({ x }, _, read) => {
    checkIndices(tf.DenseBincount, read(x), [Infinity]);
  },
);

function counted(hlo: HloBuilder, x: Value, weights: Value, size: number, isBinary = false): Value {
  const type = weights.elementType;
  const last = x.shape.length - 1;
  const zeros = hlo.constant(0, type, x.shape.with(last, size));
  const index = hlo.reshape(hlo.convert(x, 'i32'), [...x.shape, 1]);
  const rows = range(last).map((axis) => hlo.iota(index.shape, axis, 'i32'));
  const isWeighted = numElements(weights.shape) > 0 && !isBinary;
  const updates = isWeighted ? weights : hlo.constant(1, type, x.shape);
  return scatterAt(
    hlo,
    zeros,
    hlo.concatenate([...rows, index], x.shape.length),
    updates,
    isBinary ? undefined : 'add',
  );
}

/** Rows of x added into the row of the result that `segmentIds` [N] names; negative ones are dropped. */
export const unsortedSegmentSum = kernel<tf.UnsortedSegmentSumInputs, tf.UnsortedSegmentSumAttrs>(
  tf.UnsortedSegmentSum,
  (hlo, { x, segmentIds }, { numSegments }) => {
    const result = [numSegments, ...x.shape.slice(1)];
    const indices = hlo.reshape(segmentIds, [...segmentIds.shape, 1]);
    return scatterAt(hlo, hlo.constant(0, x.elementType, result), indices, x, 'add');
  },
);

/** `onValue` where the last axis' position equals the index, `offValue` elsewhere. */
export const oneHot = kernel<tf.OneHotInputs, tf.OneHotAttrs>(
  tf.OneHot,
  (hlo, { indices }, { depth, onValue, offValue, dtype }) => {
    const shape = [...indices.shape, depth];
    const type = elementTypeOf(dtype);
    const position = hlo.iota(shape, indices.shape.length, 'i32');
    const index = hlo.broadcastInDim(
      hlo.convert(indices, 'i32'),
      shape,
      range(indices.shape.length),
    );
    return hlo.select(
      hlo.compare(index, position, 'EQ'),
      hlo.constant(onValue, type, shape),
      hlo.constant(offValue, type, shape),
    );
  },
);

/** Index vectors of `sizes` axes must point into them. */
function checkIndices(op: string, indices: ArrayLike<number>, sizes: readonly number[]): void {
  for (let at = 0; at < indices.length; at++) {
    const [index, size] = [indices[at]!, sizes[at % sizes.length]!];
    if (index >= 0 && index < size) continue;
    throw new EngineError(
      'XLA_INDEX_OUT_OF_RANGE',
      `${op}: the index value ${index} is not in [0, ${size - 1}] (element ${at} of the indices).`,
    );
  }
}

/** How many axes an index vector spans; of a plain list of indices one. */
function depthOf({ shape }: Pick<Value, 'shape'>): number {
  return shape.length > 1 ? shape.at(-1)! : 1;
}

/** A list of index vectors, and a list of what belongs at each. */
function vectors(
  hlo: HloBuilder,
  indices: Value,
  updates: Value,
  shape: readonly number[],
): [indices: Value, updates: Value] {
  const depth = depthOf(indices);
  const count = depth === 0 ? 1 : numElements(indices.shape) / depth;
  return [
    hlo.reshape(indices, [count, depth]),
    hlo.reshape(updates, [count, ...shape.slice(depth)]),
  ];
}

function scatterAt(
  hlo: HloBuilder,
  input: Value,
  indices: Value,
  updates: Value,
  combiner?: 'add',
): Value {
  if (numElements(updates.shape) === 0) return input;
  const last = indices.shape.length - 1;
  const depth = indices.shape[last]!;
  return hlo.scatter(
    input,
    hlo.convert(indices, 'i32'),
    updates,
    {
      updateWindowDims: range(last, last + input.shape.length - depth),
      insertedWindowDims: range(depth),
      scatterDimsToOperandDims: range(depth),
      indexVectorDim: last,
    },
    combiner,
  );
}
