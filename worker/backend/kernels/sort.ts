import * as tf from '@tensorflow/tfjs-core';

import type { Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { constantLike } from '../broadcast.ts';

/** The k greatest entries of the last axis and their positions, greatest first; of equal ones the first. */
export const topK = kernel<tf.TopKInputs, tf.TopKAttrs>(tf.TopK, (hlo, { x }, { k }) => {
  const last = x.shape.length - 1;
  const [value, index] = [
    { shape: [], elementType: x.elementType },
    { shape: [], elementType: 'i32' as const },
  ];
  const comparator = hlo.region([value, value, index, index], (inner, [a, b]) => [
    inner.compare(a!, b!, 'GT'),
  ]);
  const sorted = hlo.sort([x, hlo.iota(x.shape, last, 'i32')], last, true, comparator);
  return sorted.map((part) =>
    hlo.slice(
      part,
      part.shape.map(() => 0),
      part.shape.with(last, k),
    ),
  );
});

/** Where each value [B, M] belongs in a row of the sorted sequences [B, N], by bisection. */
export const searchSorted = kernel<tf.SearchSortedInputs, tf.SearchSortedAttrs>(
  tf.SearchSorted,
  (hlo, { sortedSequence, values }, { side }) => {
    const size = sortedSequence.shape[1]!;
    const entryAt = (index: Value) =>
      hlo.gather(sortedSequence, hlo.reshape(index, [...index.shape, 1]), [1, 1], {
        offsetDims: [],
        collapsedSliceDims: [1],
        operandBatchingDims: [0],
        startIndicesBatchingDims: [0],
        startIndexMap: [1],
        indexVectorDim: 2,
      });
    const direction = side === 'left' ? 'LT' : 'LE';
    let low = hlo.constant(0, 'i32', values.shape);
    let high = hlo.constant(size, 'i32', values.shape);
    for (let step = 0; step < Math.ceil(Math.log2(size + 1)); step++) {
      // The number of steps is that of the longest search: shorter ones stand still at the end.
      const isOpen = hlo.compare(low, high, 'LT');
      const middle = hlo.divide(hlo.add(low, high), constantLike(hlo, low, 2));
      const goesUp = hlo.and(isOpen, hlo.compare(entryAt(middle), values, direction));
      const next = hlo.add(middle, constantLike(hlo, middle, 1));
      high = hlo.select(hlo.and(isOpen, hlo.not(goesUp)), middle, high);
      low = hlo.select(goesUp, next, low);
    }
    return high;
  },
);
