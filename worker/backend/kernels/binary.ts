import * as tf from '@tensorflow/tfjs-core';

import type { ComparisonDirection, HloBuilder } from '../../stablehlo/ops.ts';
import { isFloat } from '../../stablehlo/types.ts';
import type { Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { broadcastAll, broadcastTo, constantLike } from '../broadcast.ts';
import { dtypeOf, elementTypeOf } from '../dtypes.ts';

/** A kernel of inputs `a` and `b`, elementwise after broadcasting. */
function binary(
  name: string,
  emit: (hlo: HloBuilder, a: Value, b: Value) => Value,
): tf.KernelConfig {
  return kernel<tf.BinaryInputs>(name, (hlo, { a, b }) => {
    const [x, y] = broadcastAll(hlo, [a, b]) as [Value, Value];
    return emit(hlo, x, y);
  });
}

/** One that StableHLO has of numbers only: booleans count as 0 and 1, and other results than 0 are true. */
function arithmetic(
  name: string,
  emit: (hlo: HloBuilder, a: Value, b: Value) => Value,
): tf.KernelConfig {
  return binary(name, (hlo, a, b) => {
    if (a.elementType !== 'i1') return emit(hlo, a, b);
    const result = emit(hlo, hlo.convert(a, 'i32'), hlo.convert(b, 'i32'));
    return hlo.compare(result, constantLike(hlo, result, 0), 'NE');
  });
}

function comparison(name: string, direction: ComparisonDirection): tf.KernelConfig {
  return binary(name, (hlo, a, b) => hlo.compare(a, b, direction));
}

function logical(
  name: string,
  emit: (hlo: HloBuilder, a: Value, b: Value) => Value,
): tf.KernelConfig {
  return binary(name, (hlo, a, b) => emit(hlo, hlo.convert(a, 'i1'), hlo.convert(b, 'i1')));
}

export const add = binary(tf.Add, (hlo, a, b) => hlo.add(a, b));
export const sub = arithmetic(tf.Sub, (hlo, a, b) => hlo.subtract(a, b));
export const multiply = binary(tf.Multiply, (hlo, a, b) => hlo.multiply(a, b));
export const realDiv = arithmetic(tf.RealDiv, (hlo, a, b) => hlo.divide(a, b));
export const maximum = binary(tf.Maximum, (hlo, a, b) => orNaN(hlo, b, hlo.maximum(a, b)));
export const minimum = binary(tf.Minimum, (hlo, a, b) => orNaN(hlo, b, hlo.minimum(a, b)));
export const pow = arithmetic(tf.Pow, (hlo, a, b) => hlo.power(a, b));
export const atan2 = arithmetic(tf.Atan2, (hlo, a, b) =>
  hlo.convert(hlo.atan2(floatOf(hlo, a), floatOf(hlo, b)), a.elementType),
);

export const squaredDifference = arithmetic(tf.SquaredDifference, (hlo, a, b) => {
  const difference = hlo.subtract(a, b);
  return hlo.multiply(difference, difference);
});

/** The quotient rounded down, always int32 as in tfjs; of integers 0 where b is. StableHLO divides towards zero. */
export const floorDiv = binary(tf.FloorDiv, (hlo, x, y) => {
  if (isFloat(x.elementType)) return hlo.convert(hlo.floor(hlo.divide(x, y)), 'i32');
  const [a, b] = [hlo.convert(x, 'i32'), hlo.convert(y, 'i32')];
  const quotient = hlo.divide(a, b);
  return unlessZero(
    hlo,
    b,
    hlo.select(
      remainderIsOpposed(hlo, a, b),
      hlo.subtract(quotient, constantLike(hlo, a, 1)),
      quotient,
    ),
  );
});

/** The remainder with the divisor's sign; of integers 0 where b is. */
export const mod = arithmetic(tf.Mod, (hlo, a, b) => {
  const remainder = hlo.remainder(a, b);
  const sum = hlo.add(remainder, b);
  // The sum with a tiny remainder may be the divisor itself.
  const other = isFloat(a.elementType) ? hlo.remainder(sum, b) : sum;
  const moved = hlo.select(remainderIsOpposed(hlo, a, b), other, remainder);
  return isFloat(a.elementType) ? moved : unlessZero(hlo, b, moved);
});

export const equal = comparison(tf.Equal, 'EQ');
export const notEqual = comparison(tf.NotEqual, 'NE');
export const greater = comparison(tf.Greater, 'GT');
export const greaterEqual = comparison(tf.GreaterEqual, 'GE');
export const less = comparison(tf.Less, 'LT');
export const lessEqual = comparison(tf.LessEqual, 'LE');

export const logicalAnd = logical(tf.LogicalAnd, (hlo, a, b) => hlo.and(a, b));
export const logicalOr = logical(tf.LogicalOr, (hlo, a, b) => hlo.or(a, b));
export const logicalXor = logical(tf.LogicalXor, (hlo, a, b) => hlo.xor(a, b));

export const bitwiseAnd = binary(tf.BitwiseAnd, (hlo, a, b) => hlo.and(a, b));

export const addN = kernel<tf.TensorInfo[]>(tf.AddN, (hlo, inputs) =>
  inputs.reduce((a, b) => hlo.add(a, b)),
);

export const prelu = kernel<tf.PreluInputs>(tf.Prelu, (hlo, { x, alpha }) =>
  preluOf(hlo, hlo.convert(x, 'f32'), hlo.convert(alpha, 'f32')),
);

/** The gradient of elu from its result: dy where y >= 0, dy (y + 1) elsewhere. */
export const eluGrad = kernel<tf.EluGradInputs>(tf.EluGrad, (hlo, { dy, y }) =>
  hlo.select(
    hlo.compare(y, constantLike(hlo, y, 0), 'GE'),
    dy,
    hlo.multiply(dy, hlo.add(y, constantLike(hlo, y, 1))),
  ),
);

/** A condition of rank 1 chooses whole entries of the first axis. Of two types the result has the wider, as in tfjs. */
export const select = kernel<tf.SelectInputs>(tf.Select, (hlo, { condition, t, e }) => {
  const pred = hlo.convert(condition, 'i1');
  const dtype = tf.upcastType(dtypeOf(t.elementType), dtypeOf(e.elementType));
  const [chosen, other] = [t, e].map((value) => hlo.convert(value, elementTypeOf(dtype)));
  const whole =
    pred.shape.length === 1 && t.shape.length > 1
      ? hlo.broadcastInDim(pred, t.shape, [0])
      : broadcastTo(hlo, pred, t.shape);
  return hlo.select(whole, chosen!, other!);
});

export function preluOf(hlo: HloBuilder, x: Value, alpha: Value): Value {
  return hlo.select(
    hlo.compare(x, constantLike(hlo, x, 0), 'GE'),
    x,
    hlo.multiply(x, broadcastTo(hlo, alpha, x.shape)),
  );
}

/** NaN where b is, which XLA on CPUs passes over in a second operand. */
function orNaN(hlo: HloBuilder, b: Value, result: Value): Value {
  return isFloat(b.elementType) ? hlo.select(hlo.compare(b, b, 'NE'), b, result) : result;
}

function unlessZero(hlo: HloBuilder, divisor: Value, result: Value): Value {
  const zero = constantLike(hlo, divisor, 0);
  return hlo.select(hlo.compare(divisor, zero, 'EQ'), zero, result);
}

function floatOf(hlo: HloBuilder, x: Value): Value {
  return isFloat(x.elementType) ? x : hlo.convert(x, 'f32');
}

/** Where a / b leaves a remainder whose sign is not b's. */
function remainderIsOpposed(hlo: HloBuilder, a: Value, b: Value): Value {
  const zero = constantLike(hlo, a, 0);
  const remainder = hlo.remainder(a, b);
  return hlo.and(
    hlo.compare(remainder, zero, 'NE'),
    hlo.compare(hlo.compare(remainder, zero, 'LT'), hlo.compare(b, zero, 'LT'), 'NE'),
  );
}
