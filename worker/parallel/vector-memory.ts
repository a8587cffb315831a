import { randomFillSync } from 'node:crypto';
import { closeSync } from 'node:fs';
import {
  createSharedMemory,
  mapOver,
  PAGE_BYTES,
  unmapFrom,
  type SharedMemoryName,
} from './host-memory.ts';
import {
  allocateKernelMemory,
  instantiateKernels,
  KERNEL_ELEMENTS,
  MAX_KERNEL_BYTES,
  type KernelMemory,
  type VectorKernels,
} from './vector-kernels.ts';

const ALIGNMENT_BYTES = 64;
/**
 * Vectors begin at different places of their pages: where they all begin at the same, loads wait for stores to what looks
 * like their own address (the lower 12 bits), which costs a sixth of a sum.
 */
const [ALIASING_BYTES, STAGGER_BYTES] = [4096, 21 * ALIGNMENT_BYTES];
/** The most that lies between two vectors. */
export const VECTOR_PADDING_BYTES = ALIASING_BYTES + ALIGNMENT_BYTES;
/** Elements of one scratch vector: through these go operands that lie outside of the memory. Two fit the L2 cache. */
const SCRATCH_ELEMENTS = 16_384;

/** What sums are rounded to: the numbers stay f32, of which the lower half is zero after rounding to bfloat16. */
export type SumPrecision = 'float32' | 'bfloat16';

/** Where a shared memory holds its token, bytes. */
export const TOKEN_OFFSET = 0;
const TOKEN_WORDS = 4;

/**
 * A fixed amount of memory for f32 vectors that are summed often: gradients, their partial sums, receive buffers. It can
 * be shared with the other workers of the host, and then has address space for windows onto theirs.
 */
export class VectorMemory {
  #shared: SharedMemoryName | undefined;
  readonly #memory: KernelMemory;
  readonly #kernels: VectorKernels;
  readonly #scratch: readonly [Float32Array, Float32Array];
  readonly #vectorBytes: number;
  readonly #canShare: boolean;
  readonly #token: Uint32Array;
  #usedBytes = 0;
  #numVectors = 0;
  /** Windows lie above the vectors. */
  #windowEnd: number;
  #closed = false;

  /**
   * @param sizeBytes What the calls of `allocate` take in sum; what lies over 4 GiB is allocated outside, and adds slower
   * @param options.windowBytes Address space for windows onto other processes' memory; with it, `renew` shares this one
   */
  constructor(sizeBytes: number, { windowBytes = 0 }: { windowBytes?: number } = {}) {
    const ownBytes = 2 * (4 * SCRATCH_ELEMENTS + VECTOR_PADDING_BYTES) + ALIGNMENT_BYTES;
    const vectorBytes = wholePages(sizeBytes + ownBytes);
    const windows = wholePages(windowBytes);
    this.#canShare = windows > 0 && vectorBytes + windows <= MAX_KERNEL_BYTES;
    this.#memory = allocateKernelMemory(this.#canShare ? vectorBytes + windows : vectorBytes);
    this.#vectorBytes = Math.min(vectorBytes, this.#memory.buffer.byteLength);
    this.#windowEnd = this.#vectorBytes;
    this.#kernels = instantiateKernels(this.#memory);
    this.#token = new Uint32Array(this.#memory.buffer, TOKEN_OFFSET, TOKEN_WORDS);
    this.#usedBytes = TOKEN_OFFSET + this.#token.byteLength;
    this.#scratch = [this.allocate(SCRATCH_ELEMENTS), this.allocate(SCRATCH_ELEMENTS)];
  }

  /** How other processes of the host find the vectors; undefined while they are not shared. */
  get shared(): SharedMemoryName | undefined {
    return this.#shared;
  }

  /** A vector of zeros that lives as long as this memory. */
  allocate(numElements: number): Float32Array {
    const aligned = Math.ceil(this.#usedBytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
    const place = (this.#numVectors * STAGGER_BYTES) % ALIASING_BYTES;
    const start = aligned + ((place - aligned) & (ALIASING_BYTES - 1));
    const end = start + 4 * numElements;
    if (end > this.#vectorBytes) return new Float32Array(numElements);
    this.#usedBytes = end;
    this.#numVectors++;
    return new Float32Array(this.#memory.buffer, start, numElements);
  }

  /** Whether vectors of so many bytes in sum still lie inside. */
  hasRoom(sizeBytes: number): boolean {
    return this.#usedBytes + sizeBytes <= this.#vectorBytes;
  }

  /**
   * Puts fresh memory of zeros behind all vectors and shares it, where that is possible. Whoever had mapped what was
   * there before keeps that, so what it writes from now on reaches nobody here. Windows are let go.
   */
  renew(): void {
    this.releaseWindows();
    if (!this.#canShare || this.#closed) return;
    const descriptor = createSharedMemory(this.#vectorBytes, 'videoloom-gradients');
    if (descriptor === undefined) {
      this.#unshare();
      return;
    }
    const place = { descriptor, offset: 0, writable: true };
    if (!mapOver(this.#vectors(), place)) {
      closeSync(descriptor);
      this.#unshare();
      return;
    }
    if (this.#shared !== undefined) closeSync(this.#shared.descriptor);
    const token = randomFillSync(this.#token).slice();
    const { pid: processId } = process;
    this.#shared = { processId, descriptor, sizeBytes: this.#vectorBytes, token };
  }

  /** Where a vector lies in the shared memory, bytes; undefined for one that others cannot see. */
  offsetOf(vector: Float32Array): number | undefined {
    const isSeen =
      this.#shared !== undefined &&
      this.#isInside(vector) &&
      vector.byteOffset + vector.byteLength <= this.#vectorBytes;
    return isSeen ? vector.byteOffset : undefined;
  }

  // --- Sums

  /** `add` or `addRounded`. */
  sum(
    precision: SumPrecision,
    target: Float32Array,
    left: Float32Array,
    right: Float32Array,
  ): void {
    this.#combine(precision === 'float32' ? 'add' : 'addRounded', target, left, right);
  }

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

  /**
   * Maps elements of a vector that lies in another process's memory.
   * @returns them; undefined where there is no room
   */
  mapWindow(
    descriptor: number,
    { offset, numElements, writable }: { offset: number; numElements: number; writable: boolean },
  ): Float32Array | undefined {
    const start = offset - (offset % PAGE_BYTES);
    const sizeBytes = wholePages(offset + 4 * numElements - start);
    const end = this.#windowEnd + sizeBytes;
    if (this.#closed || end > this.#memory.buffer.byteLength) return undefined;
    const window = new Uint8Array(this.#memory.buffer, this.#windowEnd, sizeBytes);
    if (!mapOver(window, { descriptor, offset: start, writable })) return undefined;
    const at = this.#windowEnd + offset - start;
    this.#windowEnd = end;
    return new Float32Array(this.#memory.buffer, at, numElements);
  }

  /** Lets go all windows. They hold zeros then. */
  releaseWindows(): void {
    if (this.#windowEnd === this.#vectorBytes) return;
    const sizeBytes = this.#windowEnd - this.#vectorBytes;
    unmapFrom(new Uint8Array(this.#memory.buffer, this.#vectorBytes, sizeBytes));
    this.#windowEnd = this.#vectorBytes;
  }

  /** Ends the sharing: what the others have mapped stays theirs. Vectors can be used as before. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.releaseWindows();
    if (this.#shared !== undefined) closeSync(this.#shared.descriptor);
    this.#shared = undefined;
  }

  #vectors(): Uint8Array {
    return new Uint8Array(this.#memory.buffer, 0, this.#vectorBytes);
  }

  /** Private memory again, so that those who have mapped the old one reach nobody here. */
  #unshare(): void {
    if (this.#shared === undefined) return;
    unmapFrom(this.#vectors());
    closeSync(this.#shared.descriptor);
    this.#shared = undefined;
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
        kernel === 'add'
          ? left[i]! + right[i]!
          : roundedToBfloat16(left[i]! + roundedToBfloat16(right[i]!));
    }
  }
}

/**
 * Address space that a worker needs for its slices of `numVectors` vectors of each of the others, and for one whole vector:
 * with more workers the slices are thinner, and pages at their ends count more.
 */
export function windowBytes(numElements: number, numVectors: number, numWorkers: number): number {
  return (
    (numVectors + 1) * wholePages(4 * numElements) + (numVectors * numWorkers + 1) * 2 * PAGE_BYTES
  );
}

function wholePages(sizeBytes: number): number {
  return Math.ceil(sizeBytes / PAGE_BYTES) * PAGE_BYTES;
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
