import type * as tf from '@tensorflow/tfjs-core';

import type { ElementType as PjrtElementType } from '../pjrt/element-type.ts';
import type { ElementType, TensorType } from '../stablehlo/types.ts';
import { EngineError } from './errors.ts';

/** The numeric dtypes of tfjs. */
export type NumericDtype = 'float32' | 'int32' | 'bool';
/** Host data of a tensor: Float32Array for float32, Int32Array for int32, Uint8Array of 0 and 1 for bool. */
export type HostValues = Float32Array | Int32Array | Uint8Array;

export interface TensorSpec {
  readonly shape: readonly number[];
  readonly dtype: NumericDtype;
}

/** @throws EngineError `XLA_UNSUPPORTED_DTYPE` for strings and complex numbers. */
export function numericDtype(dtype: tf.DataType): NumericDtype {
  if (dtype === 'float32' || dtype === 'int32' || dtype === 'bool') return dtype;
  throw new EngineError(
    'XLA_UNSUPPORTED_DTYPE',
    `A tensor of dtype ${dtype} reached the xla engine, which computes with float32, int32 and bool. ` +
      'Keep such tensors out of compiled functions.',
  );
}

export function elementTypeOf(dtype: tf.DataType): ElementType {
  return ({ float32: 'f32', int32: 'i32', bool: 'i1' } as const)[numericDtype(dtype)];
}

export function dtypeOf(elementType: ElementType): NumericDtype {
  switch (elementType) {
    case 'f32':
      return 'float32';
    case 'i32':
      return 'int32';
    case 'i1':
      return 'bool';
    default:
      throw new EngineError(
        'XLA_UNSUPPORTED_DTYPE',
        `A kernel gave ${elementType}, which no tfjs dtype stands for.`,
      );
  }
}

export function pjrtTypeOf(dtype: NumericDtype): PjrtElementType {
  return ({ float32: 'f32', int32: 's32', bool: 'pred' } as const)[dtype];
}

export function tensorTypeOf({ shape, dtype }: TensorSpec): TensorType {
  return { shape, elementType: elementTypeOf(dtype) };
}

/** `values` as the array type that the dtype asks for; itself where it is that already. */
export function hostValues(values: ArrayLike<number>, dtype: NumericDtype): HostValues {
  if (dtype === 'float32') {
    return values instanceof Float32Array ? values : Float32Array.from(values);
  }
  if (dtype === 'int32') return values instanceof Int32Array ? values : Int32Array.from(values);
  return Uint8Array.from(values, (value) => (value === 0 ? 0 : 1));
}
