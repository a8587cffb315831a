import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../../stablehlo/ops.ts';
import type { Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { broadcastTo, constantLike, range } from '../broadcast.ts';
import { preluOf } from './binary.ts';
import { eluOf, leakyReluOf } from './unary.ts';

/** tf.matMul, [..., M, K] x [..., K, N] to [..., M, N]. Source: openxla.org/stablehlo/spec#dot_general */
export const batchMatMul = kernel<tf.BatchMatMulInputs, tf.BatchMatMulAttrs>(
  tf.BatchMatMul,
  (hlo, { a, b }, attrs) => matMul(hlo, a, b, attrs),
);

/** tf.fused.matMul: activation(a b + bias). */
export const fusedMatMul = kernel<tf._FusedMatMulInputs, tf._FusedMatMulAttrs>(
  tf._FusedMatMul,
  (hlo, { a, b, bias, preluActivationWeights }, attrs) => {
    const product = matMul(hlo, a, b, attrs);
    const biased =
      bias === undefined ? product : hlo.add(product, broadcastTo(hlo, bias, product.shape));
    return activate(hlo, biased, attrs, preluActivationWeights);
  },
);

interface ActivationAttrs {
  readonly activation?: tf._FusedMatMulAttrs['activation'] | null;
  readonly leakyreluAlpha?: number;
}

/** The activation of a fused kernel. */
export function activate(
  hlo: HloBuilder,
  x: Value,
  { activation, leakyreluAlpha }: ActivationAttrs,
  preluWeights?: Value,
): Value {
  switch (activation) {
    case 'relu':
      return hlo.maximum(x, constantLike(hlo, x, 0));
    case 'relu6':
      return hlo.clamp(hlo.constant(0, x.elementType), x, hlo.constant(6, x.elementType));
    case 'elu':
      return eluOf(hlo, x);
    case 'sigmoid':
      return hlo.logistic(x);
    case 'leakyrelu':
      return leakyReluOf(hlo, x, leakyreluAlpha ?? 0.2);
    case 'prelu':
      return preluOf(hlo, x, preluWeights!);
    default:
      return x;
  }
}

function matMul(
  hlo: HloBuilder,
  a: Value,
  b: Value,
  { transposeA, transposeB }: tf.BatchMatMulAttrs,
): Value {
  tf.util.assert(
    a.shape.length >= 2 && b.shape.length >= 2,
    () => `matMul: [${a.shape.join()}] and [${b.shape.join()}] are not both matrices`,
  );
  const [lhs, rhs] = broadcastBatch(hlo, a, b);
  const row = lhs.shape.length - 2;
  if (transposeA && !transposeB && hlo.transposesAhead && lhs.shape[row]! >= LONG_SUM)
    return productOfTransposed(hlo, lhs, rhs);
  return hlo.dotGeneral(lhs, rhs, {
    batchingDims: [range(row), range(row)],
    contractingDims: [[transposeA ? row : row + 1], [transposeB ? row + 1 : row]],
  });
}

/** Shorter sums are over before a transposition ahead of them pays. */
const LONG_SUM = 256;

/**
 * lhs^T rhs, [..., K, M] x [..., K, N] to [..., M, N], as a product that transposes neither operand: the smaller one
 * is transposed before, or the result after.
 */
function productOfTransposed(hlo: HloBuilder, lhs: Value, rhs: Value): Value {
  const row = lhs.shape.length - 2;
  const batch = range(row);
  const transposed = (x: Value): Value => hlo.transpose(x, [...batch, row + 1, row]);
  const product = (left: Value, right: Value): Value =>
    hlo.dotGeneral(hlo.rowMajor(transposed(left)), right, {
      batchingDims: [batch, batch],
      contractingDims: [[row + 1], [row]],
    });
  const [left, right] = [hlo.productOperand(lhs), hlo.productOperand(rhs)];
  const result =
    lhs.shape[row + 1]! <= rhs.shape[row + 1]!
      ? product(left, right)
      : transposed(hlo.rowMajor(product(right, left)));
  return hlo.convert(result, lhs.elementType);
}

function broadcastBatch(hlo: HloBuilder, a: Value, b: Value): [Value, Value] {
  const batch = tf.broadcast_util.assertAndGetBroadcastShape(
    a.shape.slice(0, -2),
    b.shape.slice(0, -2),
  );
  return [
    broadcastTo(hlo, a, [...batch, ...a.shape.slice(-2)]),
    broadcastTo(hlo, b, [...batch, ...b.shape.slice(-2)]),
  ];
}
