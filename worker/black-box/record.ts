/**
 * The bytes of a black box: a page that says whose it is, a slot for the last sign of life, then a ring of records of
 * one size. Every record has a checksum: one that a power failure tore is passed over.
 */
import { crc32c } from '@node-rs/crc32';
import * as z from 'zod';

export const HEADER_BYTES = 4096;
export const RECORD_BYTES = 128;
/** Of the ring: about the last 300 steps. */
export const NUM_RECORDS = 8192;
export const BOX_BYTES = HEADER_BYTES + NUM_RECORDS * RECORD_BYTES;
/** Where the time of the last sign of life stands, milliseconds since 1970, f64. */
export const BEAT_OFFSET = HEADER_BYTES - 8;

const MAGIC = 'VLBB0001';
const MAX_TEXT_BYTES = RECORD_BYTES - 48;

/** What a record tells of. The order is that of the bytes: new ones go to the end. */
export const RECORD_KINDS = [
  'generation', // joined one; text: rank and members
  'plan', // leased the samples of a step; text: microbatches and rows
  'phase', // entered a phase; text: its name
  'begin', // began a collective; text: its name
  'end', // ended it
  'failed', // it failed; text: the error's code
  'gradient', // reduced gradient of a step; digest
  'weights', // parameters after a step; digest
  'step', // holds the state after a step
  'exit', // leaves; text: the error's code, or `finished`, also where the run was stopped
] as const;
export type RecordKind = (typeof RECORD_KINDS)[number];

const BoxOwner = z.object({
  runId: z.string(),
  workerId: z.string(),
  host: z.string(),
  pid: z.int(),
  /** When the kernel started the process, in its own units: a later process with this pid has another. */
  processStart: z.string(),
  /** A step gives the same bits in every generation, not only on all workers of one. */
  sameBitsAlways: z.boolean(),
  /** Milliseconds since 1970. */
  openedMs: z.number(),
});
/** Whose box it is. */
export type BoxOwner = Readonly<z.infer<typeof BoxOwner>>;

export interface BoxRecord {
  /** From 1, without gaps. */
  readonly number: number;
  /** Wall clock, milliseconds since 1970. */
  readonly timeMs: number;
  readonly kind: RecordKind;
  /** 0 = none. */
  readonly generation: number;
  readonly step: number;
  /** What was computed, as a number that differs where a bit differs; 0 = none. */
  readonly digest: number;
  readonly text: string;
}

/** Writes a record into `slot`, RECORD_BYTES long; texts are cut where they are too long. */
export function encodeRecord(slot: Buffer, record: BoxRecord): void {
  slot.fill(0);
  slot.writeUInt32LE(record.number >>> 0, 4);
  slot.writeDoubleLE(record.timeMs, 8);
  slot.writeDoubleLE(record.step, 16);
  slot.writeDoubleLE(record.digest, 24);
  slot.writeUInt32LE(record.generation, 32);
  slot.writeUInt8(RECORD_KINDS.indexOf(record.kind), 36);
  slot.write(record.text, 48, MAX_TEXT_BYTES, 'utf8');
  slot.writeUInt32LE(crc32c(slot.subarray(4)), 0);
}

/** The record in a slot; undefined for one that was never written or not to its end. */
export function decodeRecord(slot: Buffer): BoxRecord | undefined {
  if (slot.length < RECORD_BYTES || slot.readUInt32LE(0) !== crc32c(slot.subarray(4, RECORD_BYTES)))
    return undefined;
  const kind = RECORD_KINDS[slot.readUInt8(36)];
  if (kind === undefined) return undefined;
  const end = slot.indexOf(0, 48);
  return {
    number: slot.readUInt32LE(4),
    timeMs: slot.readDoubleLE(8),
    step: slot.readDoubleLE(16),
    digest: slot.readDoubleLE(24),
    generation: slot.readUInt32LE(32),
    kind,
    text: slot.toString('utf8', 48, end === -1 || end > RECORD_BYTES ? RECORD_BYTES : end),
  };
}

export function encodeOwner(owner: BoxOwner): Buffer {
  const page = Buffer.alloc(HEADER_BYTES);
  const text = Buffer.from(JSON.stringify(owner));
  page.write(MAGIC, 0);
  page.writeUInt32LE(text.length, 8);
  text.copy(page, 12);
  page.writeDoubleLE(owner.openedMs, BEAT_OFFSET);
  return page;
}

/** Whose box a file is; undefined for any other file. */
export function decodeOwner(page: Buffer): BoxOwner | undefined {
  if (page.length < HEADER_BYTES || page.toString('latin1', 0, 8) !== MAGIC) return undefined;
  const length = page.readUInt32LE(8);
  if (length > BEAT_OFFSET - 12) return undefined;
  try {
    return BoxOwner.safeParse(JSON.parse(page.toString('utf8', 12, 12 + length))).data;
  } catch {
    return undefined;
  }
}
