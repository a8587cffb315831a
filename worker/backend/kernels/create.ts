import * as tf from '@tensorflow/tfjs-core';

import { kernel } from '../backend.ts';
import { constantLike } from '../broadcast.ts';
import { elementTypeOf } from '../dtypes.ts';

type NoInputs = Record<string, never>;

export const fill = kernel<NoInputs, tf.FillAttrs>(tf.Fill, (hlo, _, { shape, value, dtype }) =>
  hlo.constant(Number(value), elementTypeOf(dtype), shape),
);

/** From `start` up to and without `stop`. */
export const range = kernel<NoInputs, tf.RangeAttrs>(
  tf.Range,
  (hlo, _, { start, stop, step: given, dtype }) => {
    // A step of 1 stands for -1 where it goes down.
    const step = stop < start && given === 1 ? -1 : given;
    const length = Math.max(0, Math.ceil((stop - start) / step));
    const type = elementTypeOf(dtype);
    const index = hlo.iota([length], 0, type);
    return hlo.add(
      hlo.multiply(index, constantLike(hlo, index, step)),
      constantLike(hlo, index, start),
    );
  },
);

/** `num` values from `start` to `stop`, both included. */
export const linSpace = kernel<NoInputs, tf.LinSpaceAttrs>(
  tf.LinSpace,
  (hlo, _, { start, stop, num }) => {
    const values = Float32Array.from({ length: num }, (_, i) =>
      i === num - 1 && num > 1 ? stop : start + (i * (stop - start)) / Math.max(1, num - 1),
    );
    return hlo.constantArray(values, { shape: [num], elementType: 'f32' });
  },
);
