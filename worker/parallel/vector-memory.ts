/**
 * f32 vectors in one WebAssembly memory, and their sum by SIMD.
 *
 * V8 compiles `d[i] = a[i] + b[i]` to scalar code (2 to 3 GB/s here); `f32x4.add` runs at the speed of the memory. Each
 * lane is an IEEE 754 single addition, so the bits are those of `Math.fround(a + b)`; only which NaN results is left open.
 */

const WASM_PAGE_BYTES = 65_536;
const WASM_MAX_PAGES = 65_536;
const ALIGNMENT_BYTES = 64;
/** Elements of one scratch vector: through these go operands that lie outside of the memory. Two fit the L2 cache. */
const SCRATCH_ELEMENTS = 16_384;
/** f32 values that one turn of the kernel's loop adds: four vectors of four. */
const LANES = 16;

type AddKernel = (target: number, left: number, right: number, turns: number) => void;

/** The part of the global that is used here: its types are in TypeScript's DOM library alone. */
declare const WebAssembly: {
  readonly Memory: new (size: { initial: number }) => { readonly buffer: ArrayBuffer };
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Instance: new (module: object, imports: object) => { exports: Record<string, unknown> };
};

/** A fixed amount of memory for f32 vectors that are summed often: gradients, their partial sums, receive buffers. */
export class VectorMemory {
  readonly #memory: { readonly buffer: ArrayBuffer };
  readonly #addKernel: AddKernel;
  readonly #scratch: readonly [Float32Array, Float32Array];
  #usedBytes = 0;

  /** @param sizeBytes What the calls of `allocate` take in sum; what lies over 4 GiB is allocated outside, and adds slower. */
  constructor(sizeBytes: number) {
    const scratchBytes = 2 * (4 * SCRATCH_ELEMENTS + ALIGNMENT_BYTES);
    const pages = Math.ceil((sizeBytes + scratchBytes) / WASM_PAGE_BYTES);
    this.#memory = new WebAssembly.Memory({ initial: Math.min(pages, WASM_MAX_PAGES) });
    const instance = new WebAssembly.Instance(new WebAssembly.Module(addModule()), {
      vectors: { memory: this.#memory },
    });
    this.#addKernel = instance.exports['add'] as AddKernel;
    this.#scratch = [this.allocate(SCRATCH_ELEMENTS), this.allocate(SCRATCH_ELEMENTS)];
  }

  /** A vector of zeros that lives as long as this memory. */
  allocate(numElements: number): Float32Array {
    const start = Math.ceil(this.#usedBytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
    const end = start + 4 * numElements;
    if (end > this.#memory.buffer.byteLength) return new Float32Array(numElements);
    this.#usedBytes = end;
    return new Float32Array(this.#memory.buffer, start, numElements);
  }

  /** Whether vectors of so many bytes in sum still lie inside. */
  hasRoom(sizeBytes: number): boolean {
    return this.#usedBytes + sizeBytes <= this.#memory.buffer.byteLength;
  }

  /** target = left + right, element by element, each sum rounded once to f32. `target` may be an operand. */
  add(target: Float32Array, left: Float32Array, right: Float32Array): void {
    const isInside = ({ buffer }: Float32Array): boolean => buffer === this.#memory.buffer;
    if (isInside(target) && isInside(left) && isInside(right)) {
      this.#addInside(target, left, right);
      return;
    }
    // What lies outside goes through the cache: copies are so much faster than scalar sums that the detour pays.
    for (let start = 0; start < target.length; start += SCRATCH_ELEMENTS) {
      const end = Math.min(start + SCRATCH_ELEMENTS, target.length);
      const [a, b] = [left, right].map((operand, which) => {
        const part = operand.subarray(start, end);
        if (isInside(operand)) return part;
        const copy = this.#scratch[which]!.subarray(0, part.length);
        copy.set(part);
        return copy;
      }) as [Float32Array, Float32Array];
      const sum = isInside(target)
        ? target.subarray(start, end)
        : this.#scratch[0].subarray(0, a.length);
      this.#addInside(sum, a, b);
      if (!isInside(target)) target.set(sum, start);
    }
  }

  #addInside(target: Float32Array, left: Float32Array, right: Float32Array): void {
    const turns = Math.floor(target.length / LANES);
    if (turns > 0) {
      this.#addKernel(target.byteOffset, left.byteOffset, right.byteOffset, turns);
    }
    for (let i = turns * LANES; i < target.length; i++) target[i] = left[i]! + right[i]!;
  }
}

/**
 * The kernel in WebAssembly's binary format: `add(target, left, right, turns)`, addresses in bytes, 64 bytes a turn, at
 * least one turn. Source: webassembly.github.io/spec/core/binary, sections 5.4 (instructions) and 5.5 (modules).
 */
function addModule(): Uint8Array<ArrayBuffer> {
  const [I32, LOOP, END, BR_IF, VOID] = [0x7f, 0x03, 0x0b, 0x0d, 0x40];
  const [LOCAL_GET, LOCAL_SET, LOCAL_TEE, I32_CONST, I32_ADD, I32_SUB] = [
    0x20, 0x21, 0x22, 0x41, 0x6a, 0x6b,
  ];
  const [V128_LOAD, V128_STORE, F32X4_ADD] = [
    [0xfd, 0x00],
    [0xfd, 0x0b],
    [0xfd, 0xe4, 0x01],
  ] as const;
  const [target, left, right, turns] = [0, 1, 2, 3];
  const ALIGN_16 = 4; // log2, a hint only
  const SIXTY_FOUR = [0xc0, 0x00]; // signed LEB128
  const load = (address: number, offset: number) => [
    ...[LOCAL_GET, address, ...V128_LOAD, ALIGN_16, offset],
  ];
  const addVector = (offset: number) => [
    ...[LOCAL_GET, target, ...load(left, offset), ...load(right, offset)],
    ...[...F32X4_ADD, ...V128_STORE, ALIGN_16, offset],
  ];
  const advance = (address: number) => [
    ...[LOCAL_GET, address, I32_CONST, ...SIXTY_FOUR, I32_ADD, LOCAL_SET, address],
  ];
  const body = [
    ...[LOOP, VOID],
    ...[0, 16, 32, 48].flatMap(addVector),
    ...[target, left, right].flatMap(advance),
    ...[LOCAL_GET, turns, I32_CONST, 1, I32_SUB, LOCAL_TEE, turns, BR_IF, 0],
    ...[END, END],
  ];
  const text = (value: string) => [value.length, ...Buffer.from(value)];
  const section = (id: number, content: number[]) => [id, ...leb128(content.length), ...content];
  const functionCode = [0, ...body]; // no locals but the parameters
  return Uint8Array.from([
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0], // "\0asm", version 1
    ...section(1, [1, 0x60, 4, I32, I32, I32, I32, 0]), // one type: four i32 to nothing
    ...section(2, [1, ...text('vectors'), ...text('memory'), 2, 0, 1]), // import: a memory of 1 page or more
    ...section(3, [1, 0]), // one function of type 0
    ...section(7, [1, ...text('add'), 0, 0]), // exported
    ...section(10, [1, ...leb128(functionCode.length), ...functionCode]),
  ]);
}

function leb128(value: number): number[] {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...leb128(value >>> 7)];
}
