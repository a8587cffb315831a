import { FRAME_KIND, MAX_PAYLOAD_BYTES, type FrameHeader } from './frame.ts';
import { MeshError } from './mesh-errors.ts';
import type { Exchange, OutgoingFrame } from './mesh.ts';

const CHUNK_ELEMENTS = MAX_PAYLOAD_BYTES / Float32Array.BYTES_PER_ELEMENT;

/** Elements of a vector that one worker has. */
export interface VectorPart {
  readonly start: number;
  readonly end: number;
}

/** Every worker sends its part of a vector to every other, from where it lies to where it belongs. */
export class GatherVectorExchange implements Exchange {
  readonly name: string;
  readonly step: number;
  readonly #rank: number;
  readonly #vector: Float32Array;
  readonly #parts: readonly VectorPart[];
  /** By rank: chunks sent, and chunks placed. */
  readonly #sent: number[];
  readonly #placed: number[];

  constructor(
    name: string,
    step: number,
    { rank, vector, parts }: { rank: number; vector: Float32Array; parts: readonly VectorPart[] },
  ) {
    this.name = `${name}[${vector.length}]`;
    this.step = step;
    this.#rank = rank;
    this.#vector = vector;
    this.#parts = parts;
    this.#sent = parts.map(() => 0);
    this.#placed = parts.map(() => 0);
  }

  numOutgoing(): number {
    return this.#numChunks(this.#rank);
  }

  numIncoming(rank: number): number {
    return this.#numChunks(rank);
  }

  next(rank: number): OutgoingFrame {
    const chunk = this.#sent[rank]!++;
    return { kind: FRAME_KIND.values, chunk, payload: this.#chunkOf(this.#rank, chunk) };
  }

  place(rank: number, { chunk, length }: FrameHeader): Uint8Array {
    const place = this.#chunkOf(rank, chunk);
    if (chunk !== this.#placed[rank] || place.length !== length) {
      throw new MeshError(
        'COLLECTIVE_MISMATCH',
        `rank ${rank} cuts "${this.name}" of step ${this.step} in another way than rank ${this.#rank}: ` +
          'the workers do not run the same program or config',
        { rank },
      );
    }
    this.#placed[rank] = chunk + 1;
    return place;
  }

  received(): void {
    // It lies where it belongs.
  }

  #numChunks(rank: number): number {
    const { start, end } = this.#parts[rank]!;
    return Math.ceil((end - start) / CHUNK_ELEMENTS);
  }

  #chunkOf(rank: number, chunk: number): Uint8Array {
    const { start, end } = this.#parts[rank]!;
    const at = Math.min(end, start + chunk * CHUNK_ELEMENTS);
    const { buffer, byteOffset, byteLength } = this.#vector.subarray(
      at,
      Math.min(at + CHUNK_ELEMENTS, end),
    );
    return new Uint8Array(buffer, byteOffset, byteLength);
  }
}
