import { FRAME_KIND, MAX_PAYLOAD_BYTES } from './frame.ts';
import type { FrameHeader } from './frame.ts';
import type { Exchange, OutgoingFrame } from './mesh.ts';

/** The most values that a worker may bring to one gather. */
export const MAX_GATHERED_VALUES = MAX_PAYLOAD_BYTES / 8;

/** Every worker sends its values to every other, in one frame. */
export class GatherExchange implements Exchange {
  readonly name: string;
  readonly step: number;
  /** By rank, once the exchange has run. */
  readonly values: Float64Array[];
  readonly #own: Uint8Array;

  constructor(name: string, step: number, { rank, own }: { rank: number; own: Float64Array }) {
    this.name = name;
    this.step = step;
    this.values = [];
    this.values[rank] = own.slice();
    this.#own = new Uint8Array(this.values[rank].buffer);
  }

  numOutgoing(): number {
    return 1;
  }

  numIncoming(): number {
    return 1;
  }

  next(): OutgoingFrame {
    return { kind: FRAME_KIND.values, chunk: 0, payload: this.#own };
  }

  place(_rank: number, { length }: FrameHeader): Uint8Array {
    return new Uint8Array(length);
  }

  received(rank: number, _header: FrameHeader, payload: Uint8Array): void {
    this.values[rank] = new Float64Array(payload.buffer as ArrayBuffer);
  }
}
