/**
 * Sums of f32 vectors by SIMD, as a WebAssembly module that is written here.
 *
 * V8 compiles `d[i] = a[i] + b[i]` to scalar code (2 to 3 GB/s here); `f32x4.add` runs at the speed of the memory. Each
 * lane is an IEEE 754 single addition, so the bits are those of `Math.fround(a + b)`; only which NaN results is left open.
 * Source: webassembly.github.io/spec/core/binary, sections 5.4 (instructions) and 5.5 (modules).
 */

/** Elements that one turn of a kernel's loop takes: four vectors of four. */
export const KERNEL_ELEMENTS = 16;

/** Addresses are bytes; a turn takes {@link KERNEL_ELEMENTS}, and there is one at least. */
export interface VectorKernels {
  /** target = left + right */
  add(target: number, left: number, right: number, turns: number): void;
  /** target = bf16(left + bf16(right)), as f32 */
  addRounded(target: number, left: number, right: number, turns: number): void;
  /** target = bf16(source), as f32 */
  round(target: number, source: number, turns: number): void;
  /** target, u16 = the upper halves of source, which is rounded */
  narrow(target: number, source: number, turns: number): void;
  /** target, f32 = source, u16, as upper halves */
  widen(target: number, source: number, turns: number): void;
}

/** A memory whose `buffer` never moves: it is not grown. */
export interface KernelMemory {
  readonly buffer: ArrayBuffer;
}

/** The part of the global that is used here: its types are in TypeScript's DOM library alone. */
declare const WebAssembly: {
  readonly Memory: new (size: { initial: number; maximum: number }) => KernelMemory;
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Instance: new (module: object, imports: object) => { exports: unknown };
};

const WASM_PAGE_BYTES = 65_536;
const WASM_MAX_PAGES = 65_536;
/** The most that one memory holds. */
export const MAX_KERNEL_BYTES = WASM_PAGE_BYTES * WASM_MAX_PAGES;

/** Memory of zeros for kernels, rounded up to pages of 64 KiB and at most 4 GiB. Untouched pages take none. */
export function allocateKernelMemory(sizeBytes: number): KernelMemory {
  const pages = Math.min(Math.ceil(sizeBytes / WASM_PAGE_BYTES), WASM_MAX_PAGES);
  return new WebAssembly.Memory({ initial: pages, maximum: pages });
}

export function instantiateKernels(memory: KernelMemory): VectorKernels {
  module ??= new WebAssembly.Module(moduleBytes());
  return new WebAssembly.Instance(module, { vectors: { memory } }).exports as VectorKernels;
}

let module: object | undefined;

// --- Instructions

const [I32, V128] = [0x7f, 0x7b];
const [LOOP, END, BR_IF, VOID] = [0x03, 0x0b, 0x0d, 0x40];
const [LOCAL_GET, LOCAL_SET, LOCAL_TEE, I32_CONST, I32_ADD, I32_SUB] = [
  0x20, 0x21, 0x22, 0x41, 0x6a, 0x6b,
];
const SIMD = 0xfd;
const V128_LOAD = [SIMD, 0x00];
const V128_STORE = [SIMD, 0x0b];
const V128_CONST = [SIMD, 0x0c];
const SHUFFLE = [SIMD, 0x0d];
const F32X4_NE = [SIMD, 0x42];
const V128_AND = [SIMD, 0x4e];
const V128_OR = [SIMD, 0x50];
const V128_BITSELECT = [SIMD, 0x52];
const EXTEND_LOW_U16 = [SIMD, 0xa9, 0x01];
const EXTEND_HIGH_U16 = [SIMD, 0xaa, 0x01];
const I32X4_SHL = [SIMD, 0xab, 0x01];
const I32X4_SHR_U = [SIMD, 0xad, 0x01];
const I32X4_ADD = [SIMD, 0xae, 0x01];
const F32X4_ADD = [SIMD, 0xe4, 0x01];
const ALIGN_16 = 4; // log2, a hint only

const get = (local: number) => [LOCAL_GET, local];
const load = (address: number, offset: number) => [...get(address), ...V128_LOAD, ALIGN_16, offset];
const splat = (bits: number) => {
  const bytes = [bits & 0xff, (bits >>> 8) & 0xff, (bits >>> 16) & 0xff, bits >>> 24];
  return [...V128_CONST, ...bytes, ...bytes, ...bytes, ...bytes];
};
const store = (address: number, offset: number, value: readonly number[]) => [
  ...[...get(address), ...value, ...V128_STORE, ALIGN_16, offset],
];

/**
 * To the nearest bfloat16, ties to even, as f32: half of the lowest bit that stays is added, less one where that bit is
 * even, and the lower half cut off. NaN would overflow into infinity; it is made quiet instead.
 */
const roundTop = (local: number) => [
  ...[...get(local), ...splat(0x0040_0000), ...V128_OR],
  ...[...get(local), ...splat(0x7fff), ...I32X4_ADD],
  ...[...get(local), I32_CONST, 16, ...I32X4_SHR_U, ...splat(1), ...V128_AND, ...I32X4_ADD],
  ...[...get(local), ...get(local), ...F32X4_NE, ...V128_BITSELECT],
  ...[...splat(0xffff_0000), ...V128_AND],
];
/** The value on the stack, rounded by way of a local. */
const rounded = (value: readonly number[], local: number) => [
  ...[...value, LOCAL_SET, local, ...roundTop(local)],
];

// --- Kernels

interface Kernel {
  readonly name: keyof VectorKernels;
  /** Bytes that each pointer moves on a turn, the target's first. */
  readonly strides: readonly number[];
  /** One turn; the locals behind pointers and turns are v128. */
  readonly turn: readonly number[];
}

const FOUR = [0, 16, 32, 48];
const [TARGET, LEFT, RIGHT] = [0, 1, 2];
/** First v128 of kernels with three pointers, and of those with two. */
const [VECTOR_OF_3, VECTOR_OF_2] = [4, 3];
const UPPER_HALVES = [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31];

const KERNELS: readonly Kernel[] = [
  {
    name: 'add',
    strides: [64, 64, 64],
    turn: FOUR.flatMap((at) =>
      store(TARGET, at, [...load(LEFT, at), ...load(RIGHT, at), ...F32X4_ADD]),
    ),
  },
  {
    name: 'addRounded',
    strides: [64, 64, 64],
    turn: FOUR.flatMap((at) => {
      const right = rounded(load(RIGHT, at), VECTOR_OF_3);
      const sum = [...load(LEFT, at), ...right, ...F32X4_ADD];
      return store(TARGET, at, rounded(sum, VECTOR_OF_3));
    }),
  },
  {
    name: 'round',
    strides: [64, 64],
    turn: FOUR.flatMap((at) => store(TARGET, at, rounded(load(LEFT, at), VECTOR_OF_2))),
  },
  {
    name: 'narrow',
    strides: [32, 64],
    turn: [0, 1].flatMap((half) => {
      const pair = [...load(LEFT, 32 * half), ...load(LEFT, 32 * half + 16)];
      return store(TARGET, 16 * half, [...pair, ...SHUFFLE, ...UPPER_HALVES]);
    }),
  },
  {
    name: 'widen',
    strides: [64, 32],
    turn: FOUR.flatMap((at, quarter) => {
      const extend = quarter % 2 === 0 ? EXTEND_LOW_U16 : EXTEND_HIGH_U16;
      const half = load(LEFT, 16 * (quarter >> 1));
      return store(TARGET, at, [...half, ...extend, I32_CONST, 16, ...I32X4_SHL]);
    }),
  },
];

function codeOf({ strides, turn }: Kernel): number[] {
  const turns = strides.length;
  const body = [
    ...[1, 1, V128], // one local
    ...[LOOP, VOID, ...turn],
    ...strides.flatMap((bytes, pointer) => [
      ...[...get(pointer), I32_CONST, ...signedLeb128(bytes), I32_ADD, LOCAL_SET, pointer],
    ]),
    ...[...get(turns), I32_CONST, 1, I32_SUB, LOCAL_TEE, turns, BR_IF, 0],
    ...[END, END],
  ];
  return [...leb128(body.length), ...body];
}

function moduleBytes(): Uint8Array<ArrayBuffer> {
  const text = (value: string) => [value.length, ...Buffer.from(value)];
  const section = (id: number, content: readonly number[]) => [
    ...[id, ...leb128(content.length), ...content],
  ];
  const list = (items: readonly (readonly number[])[]) => [items.length, ...items.flat()];
  const typeOf = (numPointers: number) => [0x60, ...list(Array(numPointers + 1).fill([I32])), 0];
  return Uint8Array.from([
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0], // "\0asm", version 1
    ...section(1, list([typeOf(2), typeOf(3)])),
    ...section(2, list([[...text('vectors'), ...text('memory'), 2, 0, 1]])), // 1 page or more
    ...section(3, list(KERNELS.map(({ strides }) => [strides.length - 2]))),
    ...section(7, list(KERNELS.map(({ name }, index) => [...text(name), 0, index]))),
    ...section(10, list(KERNELS.map(codeOf))),
  ]);
}

function leb128(value: number): number[] {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...leb128(value >>> 7)];
}

/** Of a number that is not negative. */
function signedLeb128(value: number): number[] {
  return value < 0x40 ? [value] : [(value & 0x7f) | 0x80, ...signedLeb128(value >>> 7)];
}
