/**
 * The safetensors format: 8 bytes length of the header (little-endian), a JSON header, the tensors' bytes without gaps.
 * Source: github.com/huggingface/safetensors, "Format". Read strictly: what the specification leaves out is refused.
 */
import { endianness } from 'node:os';
import { VideoloomError } from '../../proto/errors.ts';

/** Bytes of one element by safetensors' name of its type. */
export const DTYPE_BYTES = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  U8: 1,
  BOOL: 1,
} as const;
export type Dtype = keyof typeof DTYPE_BYTES;

/** A tensor on the host: row-major, little-endian. */
export interface TensorData {
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

/** A tensor's place among the bytes after the header. */
export interface TensorEntry {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly start: number;
  readonly end: number;
}

export interface SafetensorsHeader {
  /** By place. */
  readonly entries: readonly TensorEntry[];
  readonly metadata: Readonly<Record<string, string>>;
  /** Bytes after the header. */
  readonly dataBytes: number;
}

export const LENGTH_BYTES = 8;
/** The specification's limit. */
export const MAX_HEADER_BYTES = 100_000_000;
/** Headers are padded with spaces to this, so that tensors lie aligned in the file. */
const HEADER_ALIGNMENT = 8;
const METADATA = '__metadata__';

/** Bytes that are not a safetensors file: SAFETENSORS_INVALID. */
export class SafetensorsInvalid extends VideoloomError {
  constructor(what: string, cause?: unknown) {
    super(
      'SAFETENSORS_INVALID',
      `This is not a whole safetensors file: ${what}. Copy it again from where it is whole`,
      { cause },
    );
  }
}

/** What the header says of a tensor; of its bytes only how many there are. */
export type TensorForm = Pick<TensorData, 'dtype' | 'shape'> & {
  readonly data: { readonly byteLength: number };
};

/** Length and header of a file with these tensors, which follow in this order: sorted by name. */
export function encodeHeader(
  tensors: ReadonlyMap<string, TensorForm>,
  metadata: Readonly<Record<string, string>> = {},
): { header: Buffer; order: readonly string[] } {
  assertLittleEndian();
  const order = [...tensors.keys()].sort(compareNames);
  // A list of lines, not an object: names such as "__proto__" and "7" keep their meaning and their place.
  const fields: string[] = [];
  if (Object.keys(metadata).length > 0) {
    const sorted = Object.entries(metadata).sort(([a], [b]) => compareNames(a, b));
    fields.push(
      `${JSON.stringify(METADATA)}:{${sorted.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(',')}}`,
    );
  }
  let end = 0;
  for (const name of order) {
    const { dtype, shape, data } = tensors.get(name)!;
    if (name === METADATA || data.byteLength !== sizeOf(dtype, shape)) {
      throw new SafetensorsInvalid(
        `tensor "${name}" ${dtype} [${shape.join()}] cannot be written with ${data.byteLength} bytes`,
      );
    }
    const start = end;
    end += data.byteLength;
    fields.push(
      `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [start, end] })}`,
    );
  }
  const json = Buffer.from(`{${fields.join(',')}}`);
  const padded = Math.ceil(json.length / HEADER_ALIGNMENT) * HEADER_ALIGNMENT;
  const header = Buffer.alloc(LENGTH_BYTES + padded, ' ');
  header.writeBigUInt64LE(BigInt(padded), 0);
  json.copy(header, LENGTH_BYTES);
  return { header, order };
}

/** Length of the header, from a file's first 8 bytes. @throws SafetensorsInvalid */
export function decodeHeaderLength(bytes: Uint8Array): number {
  if (bytes.byteLength < LENGTH_BYTES) {
    throw new SafetensorsInvalid(
      `it has ${bytes.byteLength} bytes, fewer than the 8 of the header's length`,
    );
  }
  const length = Buffer.from(bytes.buffer, bytes.byteOffset, LENGTH_BYTES).readBigUInt64LE();
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw new SafetensorsInvalid(
      `it announces a header of ${length} bytes, the limit is ${MAX_HEADER_BYTES}`,
    );
  }
  return Number(length);
}

/**
 * The header's content, every entry checked.
 * @param json the bytes after the length
 * @throws SafetensorsInvalid
 */
export function decodeHeader(json: Uint8Array): SafetensorsHeader {
  const text = parseText(json);
  const fields = parseObject(text);
  refuseDuplicates(text);
  const { [METADATA]: metadata = {}, ...tensors } = fields;
  if (!isRecord(metadata) || !Object.values(metadata).every((value) => typeof value === 'string')) {
    throw new SafetensorsInvalid('its metadata is not a map of texts');
  }
  const entries = Object.entries(tensors)
    .map(([name, value]) => parseEntry(name, value))
    .sort((a, b) => a.start - b.start || a.end - b.end);
  let end = 0;
  for (const entry of entries) {
    if (entry.start !== end) {
      throw new SafetensorsInvalid(
        `tensor "${entry.name}" begins at ${entry.start} where the one before ends at ${end}`,
      );
    }
    end = entry.end;
  }
  return { entries, metadata: metadata as Record<string, string>, dataBytes: end };
}

/** A file in memory; the writers of checkpoints stream instead. */
export function encodeSafetensors(
  tensors: ReadonlyMap<string, TensorData>,
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array {
  const { header, order } = encodeHeader(tensors, metadata);
  return Buffer.concat([header, ...order.map((name) => tensors.get(name)!.data)]);
}

/** A file from memory. The tensors are views of `bytes`, at any alignment. @throws SafetensorsInvalid */
export function decodeSafetensors(bytes: Uint8Array): {
  tensors: Map<string, TensorData>;
  metadata: Readonly<Record<string, string>>;
} {
  const start = LENGTH_BYTES + decodeHeaderLength(bytes);
  if (bytes.byteLength < start) {
    throw new SafetensorsInvalid(
      `it has ${bytes.byteLength} bytes, its header alone needs ${start}`,
    );
  }
  const { entries, metadata, dataBytes } = decodeHeader(bytes.subarray(LENGTH_BYTES, start));
  checkDataSize(bytes.byteLength - start, dataBytes);
  const tensors = new Map(
    entries.map(({ name, dtype, shape, start: from, end: to }): [string, TensorData] => [
      name,
      // Not `subarray`: that of a Buffer is a Buffer, whose `slice` would not copy.
      {
        dtype,
        shape,
        data: new Uint8Array(bytes.buffer, bytes.byteOffset + start + from, to - from),
      },
    ]),
  );
  return { tensors, metadata };
}

/** @throws SafetensorsInvalid */
export function checkDataSize(actualBytes: number, announcedBytes: number): void {
  if (actualBytes === announcedBytes) return;
  throw new SafetensorsInvalid(
    `it has ${actualBytes} bytes of tensors, its header announces ${announcedBytes}`,
  );
}

/** Order of names, the same on every machine: by UTF-16 code unit. */
export function compareNames(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function parseText(json: Uint8Array): string {
  if (json[0] !== 0x7b) throw new SafetensorsInvalid('its header does not begin with "{"');
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(json);
  } catch (error) {
    throw new SafetensorsInvalid('its header is not UTF-8', error);
  }
}

function parseObject(text: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new SafetensorsInvalid('its header is not JSON', error);
  }
  if (!isRecord(value)) throw new SafetensorsInvalid('its header is not an object');
  return value;
}

/**
 * JSON.parse keeps the last of equal keys, another reader may keep the first: such a file has no one meaning.
 * Walks the keys of every object of a text that is known to be valid JSON.
 */
function refuseDuplicates(text: string): void {
  const open: (Set<string> | undefined)[] = []; // the keys so far of each open object; undefined for an array
  for (let at = 0; at < text.length; at++) {
    const found = text[at]!;
    if (found === '{') open.push(new Set());
    else if (found === '[') open.push(undefined);
    else if (found === '}' || found === ']') open.pop();
    else if (found === '"') {
      const start = at;
      for (at++; text[at] !== '"'; at++) if (text[at] === '\\') at++;
      let after = at + 1;
      while (' \t\n\r'.includes(text[after]!)) after++;
      if (text[after] !== ':') continue;
      const key = JSON.parse(text.slice(start, at + 1)) as string;
      const keys = open.at(-1)!;
      if (keys.has(key)) throw new SafetensorsInvalid(`its header has "${key}" twice`);
      keys.add(key);
    }
  }
}

function parseEntry(name: string, value: unknown): TensorEntry {
  const wrong = (what: string): SafetensorsInvalid =>
    new SafetensorsInvalid(`tensor "${name}" ${what}`);
  if (!isRecord(value)) throw wrong('is not described by an object');
  const { dtype, shape, data_offsets: offsets, ...rest } = value;
  if (Object.keys(rest).length > 0) throw wrong(`has an unknown field ${Object.keys(rest)[0]}`);
  if (typeof dtype !== 'string' || !Object.hasOwn(DTYPE_BYTES, dtype)) {
    throw wrong(
      `has the type ${JSON.stringify(dtype)}; known are ${Object.keys(DTYPE_BYTES).join(', ')}`,
    );
  }
  if (!isCounts(shape)) throw wrong('has no valid shape');
  if (!isCounts(offsets) || offsets.length !== 2) throw wrong('has no valid data_offsets');
  const [start, end] = offsets as [number, number];
  const sizeBytes = sizeOf(dtype as Dtype, shape);
  if (!Number.isSafeInteger(sizeBytes) || end - start !== sizeBytes) {
    throw wrong(
      `${dtype} [${shape.join()}] needs ${sizeBytes} bytes and has those from ${start} to ${end}`,
    );
  }
  return { name, dtype: dtype as Dtype, shape, start, end };
}

/** Bytes of a tensor; not a safe integer when it is beyond any file. */
function sizeOf(dtype: Dtype, shape: readonly number[]): number {
  return shape.reduce((size, extent) => size * extent, DTYPE_BYTES[dtype]);
}

function isCounts(value: unknown): value is number[] {
  return (
    Array.isArray(value) &&
    value.every((count) => Number.isSafeInteger(count) && (count as number) >= 0)
  );
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Tensors are written as they lie in memory. */
function assertLittleEndian(): void {
  if (endianness() !== 'LE')
    throw new SafetensorsInvalid('this machine is big-endian, tensors here are not');
}
