/**
 * GGUF, llama.cpp's file of a model: its settings, its tokenizer and its weights, quantised. Source:
 * github.com/ggml-org/ggml, docs/gguf.md; blocks as ggml-quants.c dequantises them.
 */
import { open, type FileHandle } from 'node:fs/promises';
import { messageOf } from '../../proto/errors.ts';
import { dequantize, GGML_TYPES, type GgmlType } from './gguf-blocks.ts';
import { PretrainedError } from './pretrained-error.ts';
import { readRange } from './read-range.ts';
import type { HostTensor, TensorSource } from './tensor-source.ts';

export type GgufValue = number | boolean | string | readonly GgufValue[];

export interface GgufFile {
  readonly metadata: ReadonlyMap<string, GgufValue>;
  /** By llama.cpp's names; shapes are row-major, [out, in] for a linear layer. */
  readonly weights: TensorSource;
}

interface Entry {
  readonly name: string;
  readonly shape: readonly number[];
  readonly type: GgmlType;
  /** From the start of the data. */
  readonly offset: number;
}

const MAGIC = 'GGUF';
const VERSIONS: readonly number[] = [2, 3];
const DEFAULT_ALIGNMENT = 32;
/** Enough for the header of most files; it is doubled until the header fits. */
const FIRST_BYTES = 2 ** 23;
const MAX_HEADER_BYTES = 2 ** 29;

/** @throws PretrainedError `PRETRAINED_UNREADABLE`; `PRETRAINED_CONFIG` for a kind of quantisation that is not known here */
export async function openGguf(file: string): Promise<GgufFile> {
  const { metadata, entries, headerBytes } = await readHeader(file);
  const given = metadata.get('general.alignment');
  const alignment = typeof given === 'number' ? given : DEFAULT_ALIGNMENT;
  const start = Math.ceil(headerBytes / alignment) * alignment;
  const byName = new Map(entries.map((entry) => [entry.name, entry]));
  return {
    metadata,
    weights: {
      place: file,
      shapes: new Map(entries.map(({ name, shape }) => [name, shape])),
      read: (name) => readTensor(file, byName.get(name)!, start),
    },
  };
}

async function readTensor(
  file: string,
  { name, shape, type, offset }: Entry,
  start: number,
): Promise<HostTensor> {
  const { blockSize, blockBytes } = GGML_TYPES[type];
  const size = shape.reduce((a, b) => a * b, 1);
  if (shape.at(-1)! % blockSize !== 0) {
    throw unreadable(file, `${name} has rows of ${shape.at(-1)!}, in blocks of ${blockSize}`);
  }
  const bytes = await withFile(file, (handle) =>
    readRange(handle, start + offset, (size / blockSize) * blockBytes),
  );
  return { shape, data: dequantize(bytes, type) };
}

async function readHeader(
  file: string,
): Promise<{ metadata: Map<string, GgufValue>; entries: Entry[]; headerBytes: number }> {
  return withFile(file, async (handle) => {
    const { size } = await handle.stat();
    for (let wanted = FIRST_BYTES; ; wanted *= 2) {
      const length = Math.min(wanted, size);
      const reader = new Reader(await readRange(handle, 0, length));
      try {
        return parseHeader(reader);
      } catch (error) {
        if (!(error instanceof EndOfBytes)) throw error;
        if (length === size || length >= MAX_HEADER_BYTES) throw new Error('its header is cut off');
      }
    }
  });
}

function parseHeader(reader: Reader) {
  if (reader.text(MAGIC.length) !== MAGIC) throw new Error('it does not begin with GGUF');
  const version = reader.uint32();
  if (!VERSIONS.includes(version)) throw new Error(`it has version ${version} of the format`);
  const [numTensors, numValues] = [reader.uint64(), reader.uint64()];
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < numValues; i++) {
    const key = reader.string();
    metadata.set(key, reader.value(reader.uint32()));
  }
  const entries: Entry[] = [];
  for (let i = 0; i < numTensors; i++) {
    const name = reader.string();
    const numAxes = reader.uint32();
    if (numAxes > MAX_AXES) throw new Error(`${name} has ${numAxes} axes`);
    // The fastest axis comes first there.
    const shape = Array.from({ length: numAxes }, () => reader.uint64()).reverse();
    const number = reader.uint32();
    const type = TYPE_NAMES.get(number);
    if (type === undefined) {
      throw new PretrainedError(
        'PRETRAINED_CONFIG',
        `${name} is quantised as ggml type ${number}, which is not known here. Take a file with ` +
          Object.keys(GGML_TYPES).join(', '),
      );
    }
    entries.push({ name, shape, type, offset: reader.uint64() });
  }
  return { metadata, entries, headerBytes: reader.position };
}

const MAX_AXES = 4;
const TYPE_NAMES = new Map(
  Object.entries(GGML_TYPES).map(([name, { number }]) => [number as number, name as GgmlType]),
);

/** There are no more bytes: the header is longer than what was read. */
class EndOfBytes extends Error {}

/** Little-endian values, one after another. */
class Reader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get position(): number {
    return this.#at;
  }

  uint32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  uint64(): number {
    const value = Number(this.#view.getBigUint64(this.#take(8), true));
    if (!Number.isSafeInteger(value)) throw new Error('it holds a count beyond 2^53');
    return value;
  }

  text(length: number): string {
    const start = this.#take(length);
    return Buffer.from(this.#bytes.buffer, this.#bytes.byteOffset + start, length).toString('utf8');
  }

  string(): string {
    return this.text(this.uint64());
  }

  /** Source: docs/gguf.md, gguf_metadata_value_type. */
  value(type: number): GgufValue {
    const view = this.#view;
    switch (type) {
      case 0:
        return view.getUint8(this.#take(1));
      case 1:
        return view.getInt8(this.#take(1));
      case 2:
        return view.getUint16(this.#take(2), true);
      case 3:
        return view.getInt16(this.#take(2), true);
      case 4:
        return this.uint32();
      case 5:
        return view.getInt32(this.#take(4), true);
      case 6:
        return view.getFloat32(this.#take(4), true);
      case 7:
        return view.getUint8(this.#take(1)) !== 0;
      case 8:
        return this.string();
      case 9:
        return this.#array();
      case 10:
        return this.uint64();
      case 11:
        return Number(view.getBigInt64(this.#take(8), true));
      case 12:
        return view.getFloat64(this.#take(8), true);
      default:
        throw new Error(`it holds a value of type ${type}`);
    }
  }

  #array(): GgufValue[] {
    const type = this.uint32();
    const count = this.uint64();
    // An element has a byte at least: no claim of more elements than there are bytes is believed.
    if (count > this.#bytes.length - this.#at) throw new EndOfBytes();
    const values: GgufValue[] = [];
    for (let i = 0; i < count; i++) values.push(this.value(type));
    return values;
  }

  #take(length: number): number {
    const start = this.#at;
    if (length > this.#bytes.length - start) throw new EndOfBytes();
    this.#at += length;
    return start;
  }
}

async function withFile<T>(file: string, body: (handle: FileHandle) => Promise<T>): Promise<T> {
  try {
    const handle = await open(file);
    try {
      return await body(handle);
    } finally {
      await handle.close();
    }
  } catch (error) {
    if (error instanceof PretrainedError) throw error;
    throw unreadable(file, messageOf(error), error);
  }
}

function unreadable(file: string, what: string, cause?: unknown): PretrainedError {
  return new PretrainedError(
    'PRETRAINED_UNREADABLE',
    `${file} cannot be read as GGUF: ${what}. Copy it again from where it is whole`,
    cause,
  );
}
