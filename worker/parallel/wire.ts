import { MAX_FRAMES_IN_FLIGHT } from './mesh.ts';
import type { SumPrecision, VectorMemory } from './vector-memory.ts';

/**
 * How values go over a socket: as they are, or, where sums are rounded to bfloat16 anyway, as their upper halves, which
 * loses nothing more.
 */
export class Wire {
  readonly #memory: VectorMemory;
  readonly #precision: SumPrecision;
  readonly #chunkElements: number;
  /** By rank: what is on its way, and what is written next. */
  readonly #outgoing = new Map<number, { readonly buffers: Uint16Array[]; next: number }>();

  /** @param chunkElements the most that one frame carries */
  constructor(memory: VectorMemory, precision: SumPrecision, chunkElements: number) {
    this.#memory = memory;
    this.#precision = precision;
    this.#chunkElements = chunkElements;
  }

  /** The payload of a frame to a peer, valid until {@link MAX_FRAMES_IN_FLIGHT} more have been made for it. */
  payloadOf(rank: number, values: Float32Array): Uint8Array {
    if (this.#precision === 'float32') return bytesOf(values);
    let ring = this.#outgoing.get(rank);
    if (ring === undefined) {
      const buffers = Array.from({ length: MAX_FRAMES_IN_FLIGHT + 1 }, () => {
        const room = this.#memory.allocate(Math.ceil(this.#chunkElements / 2));
        return new Uint16Array(room.buffer, room.byteOffset, this.#chunkElements);
      });
      this.#outgoing.set(rank, (ring = { buffers, next: 0 }));
    }
    const buffer = ring.buffers[ring.next++ % ring.buffers.length]!;
    this.#memory.narrow(buffer, values);
    return new Uint8Array(buffer.buffer, buffer.byteOffset, 2 * values.length);
  }

  /** Where the payload for `values` is received: a part of their own bytes. */
  placeOf(values: Float32Array): Uint8Array {
    const bytes = bytesOf(values);
    return this.#precision === 'float32' ? bytes : bytes.subarray(2 * values.length);
  }

  /** Turns what was received at {@link placeOf} into the values. */
  arrived(values: Float32Array): void {
    if (this.#precision === 'float32') return;
    const at = values.byteOffset + 2 * values.length;
    this.#memory.widen(values, new Uint16Array(values.buffer, at, values.length));
  }
}

function bytesOf({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}
