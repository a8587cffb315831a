import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../../stablehlo/ops.ts';
import type { Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { reduceBy } from './reduce.ts';

/** A tensor whose axes are the dimensions, by number, of an equation. */
interface Term {
  readonly value: Value;
  readonly dims: readonly number[];
}

/** One tensor reduced and permuted, or two multiplied: shared dimensions are summed or, if in the result, kept. */
export const einsum = kernel<tf.TensorInfo[], tf.EinsumAttrs>(
  tf.Einsum,
  (hlo, inputs, { equation }) => {
    const { allDims, summedDims, idDims } = tf.backend_util.decodeEinsumEquation(
      equation,
      inputs.length,
    );
    tf.backend_util.checkEinsumDimSizes(allDims.length, idDims, inputs as unknown as tf.Tensor[]);
    const terms = inputs.map((value, index): Term => ({ value, dims: idDims[index]! }));
    // Dimensions are numbered with those of the result first.
    const numOutputs = allDims.length - summedDims.length;
    const result = terms
      .map((term) =>
        sumOver(hlo, term, (dim) => {
          const others = terms.filter((other) => other !== term);
          return dim >= numOutputs && !others.some(({ dims }) => dims.includes(dim));
        }),
      )
      .reduce((a, b) => contract(hlo, a, b, numOutputs));
    const order = [...result.dims.keys()].sort((a, b) => result.dims[a]! - result.dims[b]!);
    return hlo.transpose(result.value, order);
  },
);

function sumOver(hlo: HloBuilder, { value, dims }: Term, isSummed: (dim: number) => boolean): Term {
  const axes = [...dims.keys()].filter((axis) => isSummed(dims[axis]!));
  return {
    value: reduceBy(hlo, value, axes, 'add'),
    dims: dims.filter((dim) => !isSummed(dim)),
  };
}

function contract(hlo: HloBuilder, a: Term, b: Term, numOutputs: number): Term {
  const shared = a.dims.filter((dim) => b.dims.includes(dim));
  const batch = shared.filter((dim) => dim < numOutputs);
  const summed = shared.filter((dim) => dim >= numOutputs);
  const axes = ({ dims }: Term, wanted: readonly number[]) =>
    wanted.map((dim) => dims.indexOf(dim));
  const own = ({ dims }: Term) => dims.filter((dim) => !shared.includes(dim));
  return {
    value: hlo.dotGeneral(a.value, b.value, {
      batchingDims: [axes(a, batch), axes(b, batch)],
      contractingDims: [axes(a, summed), axes(b, summed)],
    }),
    dims: [...batch, ...own(a), ...own(b)],
  };
}
