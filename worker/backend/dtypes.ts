import type * as tf from '@tensorflow/tfjs-core';

import type { ElementType as PjrtElementType } from '../pjrt/element-type.ts';
import type { ElementType, TensorType } from '../stablehlo/types.ts';
import { EngineError } from './errors.ts';

/** The numeric dtypes of tfjs. */
export type NumericDtype = 'float32' | 'int32' | 'bool' | 'complex64';
/**
 * Host data of a tensor: Float32Array for float32, Int32Array for int32, Uint8Array of 0 and 1 for bool, and for
 * complex64 a Float32Array of each element's real and imaginary part.
 */
export type HostValues = Float32Array | Int32Array | Uint8Array;

export interface TensorSpec {
  readonly shape: readonly number[];
  readonly dtype: NumericDtype;
}

/** @throws EngineError `XLA_UNSUPPORTED_DTYPE` for strings. */
export function numericDtype(dtype: tf.DataType): NumericDtype {
  if (dtype !== 'string') return dtype;
  throw new EngineError(
    'XLA_UNSUPPORTED_DTYPE',
    'A tensor of strings reached a compiled function or the device, which compute with numbers only. ' +
      'Handle strings outside of compiled functions.',
  );
}

export function elementTypeOf(dtype: tf.DataType): ElementType {
  return ({ float32: 'f32', int32: 'i32', bool: 'i1', complex64: 'complex<f32>' } as const)[
    numericDtype(dtype)
  ];
}

export function dtypeOf(elementType: ElementType): NumericDtype {
  switch (elementType) {
    case 'f32':
      return 'float32';
    case 'i32':
      return 'int32';
    case 'i1':
      return 'bool';
    case 'complex<f32>':
      return 'complex64';
    default:
      throw new EngineError(
        'XLA_UNSUPPORTED_DTYPE',
        `A kernel gave ${elementType}, which no tfjs dtype stands for.`,
      );
  }
}

/** As what tfjs keeps a value that goes from one pass of a function to the other, and to no kernel. */
export function heldDtypeOf(elementType: ElementType): NumericDtype {
  return elementType === 'bf16' ? 'float32' : dtypeOf(elementType);
}

export function pjrtTypeOf(dtype: NumericDtype): PjrtElementType {
  return ({ float32: 'f32', int32: 's32', bool: 'pred', complex64: 'c64' } as const)[dtype];
}

export function tensorTypeOf({ shape, dtype }: TensorSpec): TensorType {
  return { shape, elementType: elementTypeOf(dtype) };
}

/** `values` as the array type that the dtype asks for; itself where it is that already. */
export function hostValues(values: ArrayLike<number>, dtype: NumericDtype): HostValues {
  if (dtype === 'float32' || dtype === 'complex64') {
    return values instanceof Float32Array ? values : Float32Array.from(values);
  }
  if (dtype === 'int32') return values instanceof Int32Array ? values : Int32Array.from(values);
  return Uint8Array.from(values, (value) => (value === 0 ? 0 : 1));
}

/** The dtype that an array stands for where none is given. */
export function dtypeOfArray(data: HostValues): NumericDtype {
  if (data instanceof Float32Array) return 'float32';
  return data instanceof Int32Array ? 'int32' : 'bool';
}
