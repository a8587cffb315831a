import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../../stablehlo/ops.ts';
import type { Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { axesOf, broadcastTo, constantLike, range } from '../broadcast.ts';
import { reduceBy } from './reduce.ts';

export const softmax = kernel<tf.SoftmaxInputs, tf.SoftmaxAttrs>(
  tf.Softmax,
  (hlo, { logits }, { dim }) => {
    const axes = axesOf(dim, logits.shape.length);
    const exponentials = hlo.exponential(belowMaximum(hlo, logits, axes));
    return hlo.divide(exponentials, along(hlo, exponentials, axes, 'add'));
  },
);

export const logSoftmax = kernel<tf.LogSoftmaxInputs, tf.LogSoftmaxAttrs>(
  tf.LogSoftmax,
  (hlo, { logits }, { axis }) => {
    const axes = axesOf(axis, logits.shape.length);
    const shifted = belowMaximum(hlo, logits, axes);
    const total = reduceBy(hlo, hlo.exponential(shifted), axes, 'add');
    return hlo.subtract(shifted, spread(hlo, hlo.log(total), logits.shape, axes));
  },
);

/** (x - mean) / sqrt(variance + epsilon) * scale + offset, the statistics given. */
export const fusedBatchNorm = kernel<
  Partial<tf.FusedBatchNormInputs> & Pick<tf.FusedBatchNormInputs, 'x' | 'mean' | 'variance'>,
  tf.FusedBatchNormAttrs
>(tf.FusedBatchNorm, (hlo, { x, scale, offset, mean, variance }, { varianceEpsilon }) => {
  const inverse = hlo.rsqrt(hlo.add(variance, constantLike(hlo, variance, varianceEpsilon)));
  const centred = hlo.subtract(x, broadcastTo(hlo, mean, x.shape));
  const normal = hlo.multiply(centred, broadcastTo(hlo, inverse, x.shape));
  const scaled =
    scale === undefined ? normal : hlo.multiply(normal, broadcastTo(hlo, scale, x.shape));
  return offset === undefined ? scaled : hlo.add(scaled, broadcastTo(hlo, offset, x.shape));
});

function belowMaximum(hlo: HloBuilder, x: Value, axes: readonly number[]): Value {
  return hlo.subtract(x, along(hlo, x, axes, 'maximum'));
}

/** The reduction, spread over the reduced axes again. */
function along(
  hlo: HloBuilder,
  x: Value,
  axes: readonly number[],
  combiner: 'add' | 'maximum',
): Value {
  return spread(hlo, reduceBy(hlo, x, axes, combiner), x.shape, axes);
}

function spread(
  hlo: HloBuilder,
  reduced: Value,
  shape: readonly number[],
  axes: readonly number[],
): Value {
  return hlo.broadcastInDim(
    reduced,
    shape,
    range(shape.length).filter((axis) => !axes.includes(axis)),
  );
}
