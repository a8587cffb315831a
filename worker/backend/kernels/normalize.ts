import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../../stablehlo/ops.ts';
import type { Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { axesOf, broadcastTo, constantLike, range } from '../broadcast.ts';
import { reduceBy } from './reduce.ts';

export const softmax = kernel<tf.SoftmaxInputs, tf.SoftmaxAttrs>(
  tf.Softmax,
  (hlo, { logits }, { dim }) => {
    return softmaxOf(hlo, logits, axesOf(dim, logits.shape.length));
  },
);

export function softmaxOf(hlo: HloBuilder, logits: Value, axes: readonly number[]): Value {
  const exponentials = hlo.exponential(belowMaximum(hlo, logits, axes));
  return hlo.divide(exponentials, along(hlo, exponentials, axes, 'add'));
}

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

/** x / (bias + alpha s)^beta, s the sum of squares of the channels up to `depthRadius` away. */
export const lrn = kernel<tf.LRNInputs, tf.LRNAttrs>(tf.LRN, (hlo, { x }, attrs) =>
  hlo.multiply(x, hlo.power(localNorm(hlo, x, attrs), constantLike(hlo, x, -attrs.beta))),
);

/** dx = dy norm^-beta - 2 alpha beta x s, s the sum of dy y / norm over the channels that x is in the norm of. */
export const lrnGrad = kernel<tf.LRNGradInputs, tf.LRNGradAttrs>(
  tf.LRNGrad,
  (hlo, { x, y, dy }, attrs) => {
    const { alpha, beta } = attrs;
    const norm = localNorm(hlo, x, attrs);
    const direct = hlo.multiply(dy, hlo.power(norm, constantLike(hlo, x, -beta)));
    const shares = hlo.divide(hlo.multiply(dy, y), norm);
    const around = hlo.multiply(x, sumAround(hlo, shares, attrs.depthRadius));
    return hlo.subtract(direct, hlo.multiply(around, constantLike(hlo, x, 2 * alpha * beta)));
  },
);

function localNorm(hlo: HloBuilder, x: Value, { depthRadius, bias, alpha }: tf.LRNAttrs): Value {
  const sum = sumAround(hlo, hlo.multiply(x, x), depthRadius);
  return hlo.add(constantLike(hlo, x, bias), hlo.multiply(sum, constantLike(hlo, x, alpha)));
}

/** Sums of the entries of the last axis up to `radius` away. */
function sumAround(hlo: HloBuilder, x: Value, radius: number): Value {
  const last = x.shape.length - 1;
  const ones = x.shape.map(() => 1);
  return hlo.reduceWindow(x, hlo.constant(0, x.elementType), 'add', {
    dimensions: ones.with(last, 2 * radius + 1),
    strides: ones,
    padding: x.shape.map((_, axis) => (axis === last ? [radius, radius] : [0, 0])),
  });
}

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
