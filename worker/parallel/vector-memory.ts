import { closeSync } from 'node:fs';
import { createSharedMemory, mapOver, PAGE_BYTES, unmapFrom } from './host-memory.ts';
import {
  allocateKernelMemory,
  instantiateKernels,
  KERNEL_ELEMENTS,
  type KernelMemory,
  type VectorKernels,
} from './vector-kernels.ts';

const ALIGNMENT_BYTES = 64;
/** Elements of one scratch vector: through these go operands that lie outside of the memory. Two fit the L2 cache. */
const SCRATCH_ELEMENTS = 16_384;

/** What sums are rounded to: the numbers stay f32, of which the lower half is zero after rounding to bfloat16. */
export type SumPrecision = 'float32' | 'bfloat16';

/** Where other processes of the host find a memory's vectors. */
export interface SharedVectors {
  readonly descriptor: number;
  readonly sizeBytes: number;
}

/**
 * A fixed amount of memory for f32 vectors that are summed often: gradients, their partial sums, receive buffers. It can
 * be shared with the other workers of the host, and then has as much address space again for windows onto theirs.
 */
export class VectorMemory {
  /** Undefined where it was not wanted or there is none. */
  readonly shared: SharedVectors | undefined;
  readonly #memory: KernelMemory;
  readonly #kernels: VectorKernels;
  readonly #scratch: readonly [Float32Array, Float32Array];
  readonly #vectorBytes: number;
  #usedBytes = 0;
  /** Windows lie above the vectors; they are given back in reverse. */
  #windowEnd: number;
  #closed = false;

  /**
   * @param sizeBytes What the calls of `allocate` take in sum; what lies over 4 GiB is allocated outside, and adds slower
   * @param options.shared Whether the other workers of the host may read the vectors; close it in the end then
   */
  constructor(sizeBytes: number, { shared = false }: { shared?: boolean } = {}) {
    const scratchBytes = 2 * (4 * SCRATCH_ELEMENTS + ALIGNMENT_BYTES);
    const vectorBytes = Math.ceil((sizeBytes + scratchBytes) / PAGE_BYTES) * PAGE_BYTES;
    this.#memory = allocateKernelMemory(shared ? 2 * vectorBytes : vectorBytes);
    this.#vectorBytes = Math.min(vectorBytes, this.#memory.buffer.byteLength);
    this.#windowEnd = this.#vectorBytes;
    this.shared = shared ? this.#share() : undefined;
    this.#kernels = instantiateKernels(this.#memory);
    this.#scratch = [this.allocate(SCRATCH_ELEMENTS), this.allocate(SCRATCH_ELEMENTS)];
  }

  /** A vector of zeros that lives as long as this memory. */
  allocate(numElements: number): Float32Array {
    const start = Math.ceil(this.#usedBytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
    const end = start + 4 * numElements;
    if (end > this.#vectorBytes) return new Float32Array(numElements);
    this.#usedBytes = end;
    return new Float32Array(this.#memory.buffer, start, numElements);
  }

  /** Whether vectors of so many bytes in sum still lie inside. */
  hasRoom(sizeBytes: number): boolean {
    return this.#usedBytes + sizeBytes <= this.#vectorBytes;
  }

  /** Where a vector lies in the shared memory, bytes; undefined for one that others cannot see. */
  offsetOf(vector: Float32Array): number | undefined {
    const isSeen =
      this.shared !== undefined &&
      this.#isInside(vector) &&
      vector.byteOffset + vector.byteLength <= this.#vectorBytes;
    return isSeen ? vector.byteOffset : undefined;
  }

  // --- Sums

  /** target = left + right, element by element, each sum rounded once to f32. `target` may be an operand. */
  add(target: Float32Array, left: Float32Array, right: Float32Array): void {
    this.#combine('add', target, left, right);
  }

  /** target = bf16(left + bf16(right)) as f32, each rounded to nearest, ties to even. */
  addRounded(target: Float32Array, left: Float32Array, right: Float32Array): void {
    this.#combine('addRounded', target, left, right);
  }

  /** target = bf16(source) as f32, to nearest, ties to even. `target` may be the source. */
  round(target: Float32Array, source: Float32Array): void {
    if (target !== source) target.set(source);
    if (!this.#isInside(target)) {
      roundScalar(target);
      return;
    }
    const whole = target.length - (target.length % KERNEL_ELEMENTS);
    if (whole > 0)
      this.#kernels.round(target.byteOffset, target.byteOffset, whole / KERNEL_ELEMENTS);
    roundScalar(target.subarray(whole));
  }

  /** The upper halves of a rounded vector. */
  narrow(target: Uint16Array, source: Float32Array): void {
    let done = 0;
    if (this.#isInside(target) && this.#isInside(source)) {
      const turns = Math.floor(source.length / KERNEL_ELEMENTS);
      if (turns > 0) this.#kernels.narrow(target.byteOffset, source.byteOffset, turns);
      done = turns * KERNEL_ELEMENTS;
    }
    const bits = new Uint32Array(source.buffer, source.byteOffset, source.length);
    for (let i = done; i < source.length; i++) target[i] = bits[i]! >>> 16;
  }

  /** The opposite of `narrow`. The source may be the upper half of the target's own bytes. */
  widen(target: Float32Array, source: Uint16Array): void {
    let done = 0;
    if (this.#isInside(target) && this.#isInside(source)) {
      const turns = Math.floor(target.length / KERNEL_ELEMENTS);
      if (turns > 0) this.#kernels.widen(target.byteOffset, source.byteOffset, turns);
      done = turns * KERNEL_ELEMENTS;
    }
    const bits = new Uint32Array(target.buffer, target.byteOffset, target.length);
    for (let i = done; i < target.length; i++) bits[i] = source[i]! << 16;
  }

  // --- Windows onto other processes' memory

  /** Bytes of windows that can still be mapped. */
  get windowRoom(): number {
    return this.#memory.buffer.byteLength - this.#windowEnd;
  }

  /** Address space taken by windows so far: what {@link releaseWindows} can go back to. */
  get windowMark(): number {
    return this.#windowEnd;
  }

  /**
   * Maps a part of shared memory; it begins and ends at multiples of PAGE_BYTES.
   * @returns its bytes here; undefined where there is no room
   */
  mapWindow(
    descriptor: number,
    { offset, sizeBytes, writable }: { offset: number; sizeBytes: number; writable: boolean },
  ): Uint8Array | undefined {
    if (this.#closed || sizeBytes > this.windowRoom) return undefined;
    const window = new Uint8Array(this.#memory.buffer, this.#windowEnd, sizeBytes);
    if (!mapOver(window, { descriptor, offset, writable })) return undefined;
    this.#windowEnd += sizeBytes;
    return window;
  }

  /** Lets go all windows that were mapped since `mark` was read. They hold zeros then. */
  releaseWindows(mark = this.#vectorBytes): void {
    if (mark >= this.#windowEnd) return;
    unmapFrom(new Uint8Array(this.#memory.buffer, mark, this.#windowEnd - mark));
    this.#windowEnd = mark;
  }

  /** Ends the sharing: what the others have mapped stays theirs. Vectors can be used as before. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.releaseWindows();
    if (this.shared !== undefined) closeSync(this.shared.descriptor);
  }

  #share(): SharedVectors | undefined {
    const sizeBytes = this.#vectorBytes;
    const descriptor = createSharedMemory(sizeBytes);
    if (descriptor === undefined) return undefined;
    const whole = new Uint8Array(this.#memory.buffer, 0, sizeBytes);
    if (mapOver(whole, { descriptor, offset: 0, writable: true })) return { descriptor, sizeBytes };
    closeSync(descriptor);
    return undefined;
  }

  #isInside({ buffer }: { readonly buffer: ArrayBufferLike }): boolean {
    return buffer === this.#memory.buffer;
  }

  #combine(
    kernel: 'add' | 'addRounded',
    target: Float32Array,
    left: Float32Array,
    right: Float32Array,
  ): void {
    if (this.#isInside(target) && this.#isInside(left) && this.#isInside(right)) {
      this.#combineInside(kernel, target, left, right);
      return;
    }
    // What lies outside goes through the cache: copies are so much faster than scalar sums that the detour pays.
    for (let start = 0; start < target.length; start += SCRATCH_ELEMENTS) {
      const end = Math.min(start + SCRATCH_ELEMENTS, target.length);
      const [a, b] = [left, right].map((operand, which) => {
        const part = operand.subarray(start, end);
        if (this.#isInside(operand)) return part;
        const copy = this.#scratch[which]!.subarray(0, part.length);
        copy.set(part);
        return copy;
      }) as [Float32Array, Float32Array];
      const sum = this.#isInside(target)
        ? target.subarray(start, end)
        : this.#scratch[0].subarray(0, a.length);
      this.#combineInside(kernel, sum, a, b);
      if (!this.#isInside(target)) target.set(sum, start);
    }
  }

  #combineInside(
    kernel: 'add' | 'addRounded',
    target: Float32Array,
    left: Float32Array,
    right: Float32Array,
  ): void {
    const turns = Math.floor(target.length / KERNEL_ELEMENTS);
    if (turns > 0) {
      this.#kernels[kernel](target.byteOffset, left.byteOffset, right.byteOffset, turns);
    }
    for (let i = turns * KERNEL_ELEMENTS; i < target.length; i++) {
      target[i] =
        kernel === 'add' ? left[i]! + right[i]! : roundedToBfloat16(left[i]! + roundedToBfloat16(right[i]!));
    }
  }
}

const value = new Float32Array(1);
const bitsOfValue = new Uint32Array(value.buffer);

/** To the nearest bfloat16, ties to even; first rounds to f32. */
export function roundedToBfloat16(number: number): number {
  value[0] = number;
  const bits = bitsOfValue[0]!;
  const rounded = Number.isNaN(number) ? bits | 0x40_0000 : bits + 0x7fff + ((bits >>> 16) & 1);
  bitsOfValue[0] = rounded & 0xffff_0000;
  return value[0];
}

function roundScalar(vector: Float32Array): void {
  for (let i = 0; i < vector.length; i++) vector[i] = roundedToBfloat16(vector[i]!);
}
