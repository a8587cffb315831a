/** An element type by its StableHLO name, `pred` for i1, `s`/`u` for signed and unsigned integers, `c64` for complex<f32>. */
export type ElementType = keyof typeof ELEMENT_TYPES;

/** Host arrays that hold elements of some type; `bf16`, `f16` and `c64` are held as their bits. */
export type HostArray =
  | Float32Array<ArrayBuffer>
  | Float64Array<ArrayBuffer>
  | Int8Array<ArrayBuffer>
  | Int16Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | BigInt64Array<ArrayBuffer>
  | Uint8Array<ArrayBuffer>
  | Uint16Array<ArrayBuffer>
  | Uint32Array<ArrayBuffer>
  | BigUint64Array<ArrayBuffer>;

/** Code in the C API, and the host array. Source: PJRT_Buffer_Type in pjrt_c_api.h. */
export const ELEMENT_TYPES = {
  pred: { code: 1, array: Uint8Array },
  s8: { code: 2, array: Int8Array },
  s16: { code: 3, array: Int16Array },
  s32: { code: 4, array: Int32Array },
  s64: { code: 5, array: BigInt64Array },
  u8: { code: 6, array: Uint8Array },
  u16: { code: 7, array: Uint16Array },
  u32: { code: 8, array: Uint32Array },
  u64: { code: 9, array: BigUint64Array },
  f16: { code: 10, array: Uint16Array },
  f32: { code: 11, array: Float32Array },
  f64: { code: 12, array: Float64Array },
  bf16: { code: 13, array: Uint16Array },
  c64: { code: 14, array: BigUint64Array },
} as const;

const BY_CODE = new Map(
  Object.entries(ELEMENT_TYPES).map(([name, { code }]) => [code as number, name as ElementType]),
);

/** The element type of a code of the C API, if it is one that host arrays here can hold. */
export function elementTypeOf(code: number): ElementType | undefined {
  return BY_CODE.get(code);
}

/** Bytes of a dense array of `dims`; a scalar has no dims. */
export function sizeBytesOf(dims: readonly number[], type: ElementType): number {
  return dims.reduce((size, dim) => size * dim, ELEMENT_TYPES[type].array.BYTES_PER_ELEMENT);
}

/** A zeroed host array for a dense array of `dims`. */
export function hostArray(dims: readonly number[], type: ElementType): HostArray {
  return new ELEMENT_TYPES[type].array(dims.reduce((size, dim) => size * dim, 1));
}
