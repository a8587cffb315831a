/**
 * What goes between the pool and a decoder process. Requests: one line of JSON each on standard input. Replies: on file
 * descriptor 3, a header of 32 bytes (eight uint32, little-endian: magic, request id, kind, body bytes, T, W, H, frames
 * decoded) and a body. The body of `FRAMES` is T timestamps (float64) and [T, H, W, 3] pixels, of `SAMPLES` float32, of
 * `IMAGES` JSON that lists the faulty ones, behind the pixels where these are not in shared memory, of the others UTF-8
 * JSON. Shared memory is file descriptor 4; a request says where in it its pixels go.
 */
import type {
  AudioRequest,
  DecodedFrames,
  DecodeRequest,
  ImageBatchRequest,
} from './decoder-backend.ts';
import type { ImageFault } from './image-batch.ts';
import type { MediaPlace } from './media-place.ts';

export const REPLY_FD = 3;
export const SHARED_MEMORY_FD = 4;
export const HEADER_BYTES = 32;
const MAGIC = 0x31464c56; // "VLF1"

/** Kinds of reply. */
export const KIND = { HELLO: 0, FRAMES: 1, INFO: 2, ERROR: 3, SAMPLES: 4, IMAGES: 5 } as const;

export type DecoderCall =
  | { readonly id: number; readonly call: 'decode'; readonly request: DecodeRequest }
  | { readonly id: number; readonly call: 'probe'; readonly request: MediaPlace }
  | {
      readonly id: number;
      readonly call: 'decodeImages';
      readonly request: ImageBatchRequest & { readonly sharedOffset?: number | undefined };
    }
  | { readonly id: number; readonly call: 'probeImage'; readonly request: MediaPlace }
  | { readonly id: number; readonly call: 'decodeAudio'; readonly request: AudioRequest };

/** The shared memory has two halves: the pixels of one request are taken out while the next one is worked on. */
export const SHARED_HALF_BYTES = 16 * 2 ** 20;

export interface ReplyHeader {
  readonly id: number;
  readonly kind: number;
  readonly bodyBytes: number;
  readonly numFrames: number;
  readonly width: number;
  readonly height: number;
  readonly numDecoded: number;
}

/** The parts of a reply, to be written one after the other. */
export function packJson(id: number, kind: number, value: unknown): Uint8Array[] {
  const body = Buffer.from(JSON.stringify(value));
  return [header([id, kind, body.length, 0, 0, 0, 0]), body];
}

export function packFrames(id: number, decoded: DecodedFrames): Uint8Array[] {
  const { frames, ptsSeconds, width, height, numDecoded } = decoded;
  const bodyBytes = ptsSeconds.byteLength + frames.byteLength;
  return [
    header([id, KIND.FRAMES, bodyBytes, ptsSeconds.length, width, height, numDecoded]),
    new Uint8Array(ptsSeconds.buffer, ptsSeconds.byteOffset, ptsSeconds.byteLength),
    frames,
  ];
}

/** `pixels` only where they are not in shared memory. */
export function packImages(
  id: number,
  faults: readonly ImageFault[],
  pixels: Uint8Array = new Uint8Array(0),
): Uint8Array[] {
  const told = Buffer.from(JSON.stringify(faults));
  const bodyBytes = pixels.length + told.length;
  return [header([id, KIND.IMAGES, bodyBytes, 0, 0, 0, 0]), pixels, told];
}

export function packSamples(id: number, samples: Float32Array): Uint8Array[] {
  const { buffer, byteOffset, byteLength } = samples;
  return [
    header([id, KIND.SAMPLES, byteLength, 0, 0, 0, 0]),
    new Uint8Array(buffer, byteOffset, byteLength),
  ];
}

function header(words: readonly number[]): Uint8Array {
  const bytes = Buffer.alloc(HEADER_BYTES);
  for (const [i, word] of [MAGIC, ...words].entries()) bytes.writeUInt32LE(word, i * 4);
  return bytes;
}

/** Undefined if these bytes are no header. */
export function unpackHeader(bytes: Buffer): ReplyHeader | undefined {
  const word = (i: number): number => bytes.readUInt32LE(i * 4);
  if (word(0) !== MAGIC) return undefined;
  return {
    id: word(1),
    kind: word(2),
    bodyBytes: word(3),
    numFrames: word(4),
    width: word(5),
    height: word(6),
    numDecoded: word(7),
  };
}

export function unpackFrames(header: ReplyHeader, body: Uint8Array): DecodedFrames {
  const ptsBytes = header.numFrames * 8;
  const { width, height, numDecoded } = header;
  const ptsSeconds = new Float64Array(body.slice(0, ptsBytes).buffer);
  return { frames: body.subarray(ptsBytes), ptsSeconds, width, height, numDecoded };
}

/** Cuts a byte stream into replies; bodies are filled in place, without an intermediate copy. */
export class ReplyReader {
  readonly #onReply: (header: ReplyHeader, body: Uint8Array) => void;
  readonly #onGarbage: () => void;
  readonly #head = Buffer.alloc(HEADER_BYTES);
  #headFilled = 0;
  #reply: { header: ReplyHeader; body: Uint8Array; filled: number } | undefined;

  constructor(onReply: (header: ReplyHeader, body: Uint8Array) => void, onGarbage: () => void) {
    [this.#onReply, this.#onGarbage] = [onReply, onGarbage];
  }

  push(chunk: Buffer): void {
    for (let at = 0; at < chunk.length;) {
      if (!this.#reply) {
        const taken = chunk.copy(this.#head, this.#headFilled, at);
        at += taken;
        this.#headFilled += taken;
        if (this.#headFilled < HEADER_BYTES) return;
        this.#headFilled = 0;
        const header = unpackHeader(this.#head);
        if (!header) {
          this.#onGarbage();
          return;
        }
        this.#reply = { header, body: new Uint8Array(header.bodyBytes), filled: 0 };
      }
      const reply = this.#reply;
      const part = chunk.subarray(at, at + reply.body.length - reply.filled);
      reply.body.set(part, reply.filled);
      reply.filled += part.length;
      at += part.length;
      if (reply.filled < reply.body.length) return;
      this.#reply = undefined;
      this.#onReply(reply.header, reply.body);
    }
  }
}
