/** The frames on a tensor connection: a header of 40 bytes (little-endian), then the payload. */
import { crc32c } from '@node-rs/crc32';
import { VideoloomError } from '../../proto/errors.ts';

export const HEADER_BYTES = 40;
/** The most that one frame may carry. */
export const MAX_PAYLOAD_BYTES = 1 << 20;
/** Handshake payloads are short texts: nobody unknown may send more. */
export const MAX_HANDSHAKE_BYTES = 2048;

const MAGIC = 0x314d_4c56; // "VLM1"
const HAS_CHECKSUM = 0x80;

/** What a frame is. `hello`, `welcome` and `refused` make up the handshake, the rest carries vectors. */
export const FRAME_KIND = { hello: 1, welcome: 2, refused: 3, values: 4, part: 5, sum: 6 } as const;
export type FrameKind = (typeof FRAME_KIND)[keyof typeof FRAME_KIND];

export interface FrameHeader {
  readonly generation: number;
  readonly step: number;
  /** Counts the collectives of a generation. */
  readonly sequence: number;
  /** {@link tagOf} the collective's name. */
  readonly tag: number;
  readonly kind: FrameKind;
  /** For `part` and `sum`: which piece of the receiver's or of the sender's slice. */
  readonly chunk: number;
  readonly length: number;
  /** CRC-32C of the payload; undefined where the sender left it out (loopback, which cannot flip bits). */
  readonly checksum: number | undefined;
}

/** A frame that cannot be right: FRAME_CORRUPT. */
export class FrameCorrupt extends VideoloomError {
  constructor(what: string) {
    super(
      'FRAME_CORRUPT',
      `A tensor frame is corrupt: ${what}. Is something other than a Videoloom worker talking to the tensor port, ` +
        `or the network between the hosts faulty?`,
      { retryable: true },
    );
  }
}

/** A collective's name as the frames carry it. */
export function tagOf(name: string): number {
  return crc32c(name);
}

export function encodeHeader(header: FrameHeader): Buffer {
  const bytes = Buffer.allocUnsafe(HEADER_BYTES);
  bytes.writeUInt32LE(MAGIC, 0);
  bytes.writeUInt32LE(header.generation, 4);
  bytes.writeDoubleLE(header.step, 8); // exact up to 2^53
  bytes.writeUInt32LE(header.sequence, 16);
  bytes.writeUInt32LE(header.tag, 20);
  bytes.writeUInt32LE(header.chunk, 24);
  bytes.writeUIntLE(header.length, 28, 3);
  bytes.writeUInt8(header.kind | (header.checksum === undefined ? 0 : HAS_CHECKSUM), 31);
  bytes.writeUInt32LE(header.checksum ?? 0, 32);
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, 36)), 36);
  return bytes;
}

/** @throws FrameCorrupt for anything that {@link encodeHeader} did not make */
export function decodeHeader(bytes: Buffer): FrameHeader {
  if (bytes.readUInt32LE(0) !== MAGIC) throw new FrameCorrupt('it does not begin like one');
  if (bytes.readUInt32LE(36) !== crc32c(bytes.subarray(0, 36))) {
    throw new FrameCorrupt('the checksum of its header is wrong');
  }
  const length = bytes.readUIntLE(28, 3);
  const kind = bytes.readUInt8(31) & ~HAS_CHECKSUM;
  if (!isKind(kind)) throw new FrameCorrupt(`kind ${kind} is unknown`);
  const handshake = kind <= FRAME_KIND.refused;
  if (length > (handshake ? MAX_HANDSHAKE_BYTES : MAX_PAYLOAD_BYTES)) {
    throw new FrameCorrupt(`it announces ${length} bytes`);
  }
  return {
    generation: bytes.readUInt32LE(4),
    step: bytes.readDoubleLE(8),
    sequence: bytes.readUInt32LE(16),
    tag: bytes.readUInt32LE(20),
    chunk: bytes.readUInt32LE(24),
    kind,
    length,
    checksum: bytes.readUInt8(31) & HAS_CHECKSUM ? bytes.readUInt32LE(32) : undefined,
  };
}

/** @throws FrameCorrupt */
export function verifyPayload({ checksum }: FrameHeader, payload: Uint8Array): void {
  if (checksum !== undefined && crc32c(payload) !== checksum) {
    throw new FrameCorrupt('the checksum of its payload is wrong');
  }
}

function isKind(kind: number): kind is FrameKind {
  return kind >= FRAME_KIND.hello && kind <= FRAME_KIND.sum;
}
