import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../../stablehlo/ops.ts';
import type { Value } from '../../stablehlo/types.ts';
import { numElements } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { axesOf, range } from '../broadcast.ts';
import { elementTypeOf } from '../dtypes.ts';

/**
 * Entries of one axis of x at `indices`: the axis gives way to the axes of `indices` behind its `batchDims`. An index
 * outside is moved to the nearest inside, where tfjs's other backends fail or give 0. Source: spec#gather.
 */
export const gatherV2 = kernel<tf.GatherV2Inputs, tf.GatherV2Attrs>(
  tf.GatherV2,
  (hlo, { x, indices }, { axis, batchDims }) => {
    const [dimension] = axesOf(axis, x.shape.length) as [number];
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
);

/** Slices of `params` at the index vectors in the last axis of `indices`. */
export const gatherNd = kernel<tf.GatherNdInputs>(tf.GatherNd, (hlo, { params, indices }) => {
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
});

/** Zeros of `shape` with the updates added at their index vectors; those outside are dropped. Source: spec#scatter. */
export const scatterNd = kernel<tf.ScatterNdInputs, tf.ScatterNdAttrs>(
  tf.ScatterNd,
  (hlo, { indices, updates }, { shape }) =>
    scatterAt(hlo, hlo.constant(0, updates.elementType, shape), indices, updates, 'add'),
);

export const tensorScatterUpdate = kernel<tf.TensorScatterUpdateInputs>(
  tf.TensorScatterUpdate,
  (hlo, { tensor, indices, updates }) => scatterAt(hlo, tensor, indices, updates),
);

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
