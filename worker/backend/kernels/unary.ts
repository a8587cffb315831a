import * as tf from '@tensorflow/tfjs-core';

import { highest, lowest } from '../../stablehlo/ops.ts';
import type { HloBuilder } from '../../stablehlo/ops.ts';
import { isFloat } from '../../stablehlo/types.ts';
import type { ElementType, Value } from '../../stablehlo/types.ts';
import { kernel, viewKernel } from '../backend.ts';
import { constantLike } from '../broadcast.ts';
import { elementTypeOf } from '../dtypes.ts';

const SELU_SCALE = tf.backend_util.SELU_SCALE;
const SELU_SCALE_ALPHA = tf.backend_util.SELU_SCALEALPHA;

/** A kernel of one input `x`, elementwise. */
// eslint-disable-next-line @typescript-eslint/no-unnecessary-type-parameters -- callers name tfjs's types
function unary<Attrs extends object = object>(
  name: string,
  emit: (hlo: HloBuilder, x: Value, attrs: Attrs) => Value,
): tf.KernelConfig {
  return kernel<tf.UnaryInputs, Attrs>(name, (hlo, { x }, attrs) => emit(hlo, x, attrs));
}

/** One that is computed in float32, whatever the input is. */
function floating(name: string, emit: (hlo: HloBuilder, x: Value) => Value): tf.KernelConfig {
  return unary(name, (hlo, x) => emit(hlo, isFloat(x.elementType) ? x : hlo.convert(x, 'f32')));
}

/** Of booleans the three of them give x: they count as 0 and 1, and what is not 0 is true. */
export const abs = unary(tf.Abs, (hlo, x) => (x.elementType === 'i1' ? x : hlo.abs(x)));
export const neg = unary(tf.Neg, (hlo, x) => (x.elementType === 'i1' ? x : hlo.negate(x)));
/** 0 of NaN. */
export const sign = unary(tf.Sign, (hlo, x) => {
  if (!isFloat(x.elementType)) return x.elementType === 'i1' ? x : hlo.sign(x);
  return hlo.select(hlo.compare(x, x, 'EQ'), hlo.sign(x), constantLike(hlo, x, 0));
});
export const square = unary(tf.Square, (hlo, x) => hlo.multiply(x, x));
export const relu = unary(tf.Relu, (hlo, x) => hlo.maximum(x, constantLike(hlo, x, 0)));
export const relu6 = unary(tf.Relu6, (hlo, x) =>
  hlo.clamp(hlo.constant(0, x.elementType), x, hlo.constant(6, x.elementType)),
);
export const logicalNot = unary(tf.LogicalNot, (hlo, x) => hlo.not(hlo.convert(x, 'i1')));
export const onesLike = unary(tf.OnesLike, (hlo, x) => constantLike(hlo, x, 1));
export const zerosLike = unary(tf.ZerosLike, (hlo, x) => constantLike(hlo, x, 0));

export const ceil = floating(tf.Ceil, (hlo, x) => hlo.ceil(x));
export const floor = floating(tf.Floor, (hlo, x) => hlo.floor(x));
export const round = unary(tf.Round, (hlo, x) =>
  isFloat(x.elementType) ? hlo.roundNearestEven(x) : x,
);
export const sqrt = floating(tf.Sqrt, (hlo, x) => hlo.sqrt(x));
export const rsqrt = floating(tf.Rsqrt, (hlo, x) => hlo.rsqrt(x));
export const exp = floating(tf.Exp, (hlo, x) => hlo.exponential(x));
export const expm1 = floating(tf.Expm1, (hlo, x) => hlo.exponentialMinusOne(x));
export const log = floating(tf.Log, (hlo, x) => hlo.log(x));
export const log1p = floating(tf.Log1p, (hlo, x) => hlo.logPlusOne(x));
export const tanh = floating(tf.Tanh, (hlo, x) => hlo.tanh(x));
export const sigmoid = floating(tf.Sigmoid, (hlo, x) => hlo.logistic(x));
export const erf = floating(tf.Erf, (hlo, x) => hlo.erf(x));
export const sin = floating(tf.Sin, (hlo, x) => hlo.sine(x));
export const cos = floating(tf.Cos, (hlo, x) => hlo.cosine(x));
export const tan = floating(tf.Tan, (hlo, x) => hlo.tan(x));
export const acos = floating(tf.Acos, (hlo, x) => hlo.acos(x));
export const acosh = floating(tf.Acosh, (hlo, x) => hlo.acosh(x));
export const asin = floating(tf.Asin, (hlo, x) => hlo.asin(x));
export const asinh = floating(tf.Asinh, (hlo, x) => hlo.asinh(x));
export const atan = floating(tf.Atan, (hlo, x) => hlo.atan(x));
export const atanh = floating(tf.Atanh, (hlo, x) => hlo.atanh(x));
export const cosh = floating(tf.Cosh, (hlo, x) => hlo.cosh(x));
export const sinh = floating(tf.Sinh, (hlo, x) => hlo.sinh(x));
export const reciprocal = floating(tf.Reciprocal, (hlo, x) =>
  hlo.divide(constantLike(hlo, x, 1), x),
);

/** log(1 + e^x) as max(x, 0) + log(1 + e^-|x|), which does not overflow. */
export const softplus = floating(tf.Softplus, (hlo, x) =>
  hlo.add(
    hlo.maximum(x, constantLike(hlo, x, 0)),
    hlo.logPlusOne(hlo.exponential(hlo.negate(hlo.abs(x)))),
  ),
);

export const elu = floating(tf.Elu, eluOf);

export const selu = floating(tf.Selu, (hlo, x) =>
  hlo.select(
    isPositive(hlo, x),
    hlo.multiply(x, constantLike(hlo, x, SELU_SCALE)),
    hlo.multiply(hlo.exponentialMinusOne(x), constantLike(hlo, x, SELU_SCALE_ALPHA)),
  ),
);

export const leakyRelu = unary<tf.LeakyReluAttrs>(tf.LeakyRelu, (hlo, x, { alpha }) =>
  leakyReluOf(hlo, hlo.convert(x, 'f32'), alpha),
);

/** 1 where x > 0, `alpha` elsewhere, NaN where x is. */
export const step = unary<tf.StepAttrs>(tf.Step, (hlo, x, { alpha }) => {
  const steps = hlo.select(
    isPositive(hlo, x),
    constantLike(hlo, x, 1),
    constantLike(hlo, x, alpha),
  );
  return isFloat(x.elementType) ? hlo.select(hlo.compare(x, x, 'NE'), x, steps) : steps;
});

export const clipByValue = unary<tf.ClipByValueAttrs>(
  tf.ClipByValue,
  (hlo, x, { clipValueMin, clipValueMax }) => {
    const bound = (value: number): Value => {
      const type = x.elementType;
      const held = isFloat(type) ? value : Math.min(highest(type), Math.max(lowest(type), value));
      return hlo.constant(held, type);
    };
    return hlo.clamp(bound(clipValueMin), x, bound(clipValueMax));
  },
);

export const isFinite = floating(tf.IsFinite, (hlo, x) => hlo.isFinite(x));
export const isNaN = floating(tf.IsNan, (hlo, x) => hlo.compare(x, x, 'NE'));
export const isInf = floating(tf.IsInf, (hlo, x) =>
  hlo.compare(hlo.abs(x), constantLike(hlo, x, Infinity), 'EQ'),
);

/** To int32 cuts towards zero; to bool is `x != 0`; of complex numbers the imaginary part is dropped. */
export const cast = viewKernel<tf.CastAttrs>(
  tf.Cast,
  ({ dtype, shape }, attrs) => (dtype === attrs.dtype ? shape : undefined),
  (hlo, x, { dtype }) => casted(hlo, x, elementTypeOf(dtype)),
);

function casted(hlo: HloBuilder, x: Value, target: ElementType): Value {
  if (x.elementType === 'complex<f32>') {
    return target === x.elementType ? x : casted(hlo, hlo.real(x), target);
  }
  if (target === 'complex<f32>') {
    return hlo.complex(hlo.convert(x, 'f32'), hlo.constant(0, 'f32', x.shape));
  }
  if (target === 'i1' && x.elementType !== 'i1') {
    return hlo.compare(x, constantLike(hlo, x, 0), 'NE');
  }
  return hlo.convert(x, target);
}

export function eluOf(hlo: HloBuilder, x: Value): Value {
  return hlo.select(isPositive(hlo, x), x, hlo.exponentialMinusOne(x));
}

export function leakyReluOf(hlo: HloBuilder, x: Value, alpha: number): Value {
  return hlo.select(isPositive(hlo, x), x, hlo.multiply(x, constantLike(hlo, x, alpha)));
}

function isPositive(hlo: HloBuilder, x: Value): Value {
  return hlo.compare(x, constantLike(hlo, x, 0), 'GT');
}
