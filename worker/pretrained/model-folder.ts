/** Folders as Hugging Face's `save_pretrained` writes them: `config.json` and safetensors, in one file or many. */
import { mkdir, open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf } from '../../proto/errors.ts';
import { exists } from '../../proto/exists.ts';
import {
  decodeHeader,
  decodeHeaderLength,
  encodeSafetensors,
  LENGTH_BYTES,
  type Dtype,
  type TensorData,
  type TensorEntry,
} from '../checkpoint/format.ts';
import { PretrainedError } from './pretrained-error.ts';
import { readRange } from './read-range.ts';
import type { HostTensor, TensorSource } from './tensor-source.ts';
import { INDEX_FILE, removeOtherWeights, SINGLE_FILE, weightFileName } from './weight-files.ts';

/** Hugging Face's own limit of a file is 50 GB; smaller ones are written and fetched side by side. */
const MAX_FILE_BYTES = 2 * 2 ** 30;

export interface ModelFolder {
  /** `config.json` as it is; its architecture's reader checks it. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly weights: TensorSource;
}

/** @throws PretrainedError `PRETRAINED_UNREADABLE`; SafetensorsInvalid */
export async function openModelFolder(folder: string): Promise<ModelFolder> {
  return {
    config: await readJson(join(folder, 'config.json')),
    weights: await openWeights(folder),
  };
}

/**
 * The weights of a folder, whose files are opened when they are read.
 * @param single the file that holds them all, where it is there
 * @throws PretrainedError `PRETRAINED_UNREADABLE`; SafetensorsInvalid
 */
export async function openWeights(folder: string, single = SINGLE_FILE): Promise<TensorSource> {
  const places = new Map<string, { file: string; entry: TensorEntry; at: number }>();
  for (const file of await weightFiles(folder, single)) {
    const { entries, start } = await readHeader(join(folder, file));
    for (const entry of entries) {
      if (places.has(entry.name)) throw unreadable(folder, `two of its files have ${entry.name}`);
      places.set(entry.name, { file: join(folder, file), entry, at: start + entry.start });
    }
  }
  return {
    place: folder,
    shapes: new Map([...places].map(([name, { entry }]) => [name, entry.shape])),
    async read(name) {
      const { file, entry, at } = places.get(name)!;
      const bytes = await rangeOf(file, at, entry.end - entry.start);
      return { shape: entry.shape, data: toFloat32(entry, bytes) };
    },
  };
}

/**
 * Writes a folder that `from_pretrained` reads, in place of older weights that are there. Tensors are float32.
 * @param maxFileBytes beyond which the weights are spread over several files with an index
 */
export async function writeModelFolder(
  folder: string,
  {
    config,
    tensors,
  }: {
    readonly config: Readonly<Record<string, unknown>>;
    readonly tensors: ReadonlyMap<string, HostTensor>;
  },
  { maxFileBytes = MAX_FILE_BYTES }: { readonly maxFileBytes?: number } = {},
): Promise<void> {
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, 'config.json'), `${JSON.stringify(config, undefined, 2)}\n`);
  const groups = inGroups([...tensors.keys()].sort(), tensors, maxFileBytes);
  const nameOf = (index: number): string => weightFileName(index, groups.length);
  for (const [index, names] of groups.entries()) {
    const part = names.map((name) => [name, toData(tensors.get(name)!)] as const);
    await writeFile(
      join(folder, nameOf(index)),
      encodeSafetensors(new Map(part), { format: 'pt' }),
    );
  }
  const files = [...groups.keys()].map(nameOf);
  await removeOtherWeights(folder, files);
  if (groups.length === 1) return;
  const total = [...tensors.values()].reduce((sum, { data }) => sum + data.byteLength, 0);
  const map = groups.flatMap((names, index) => names.map((name) => [name, nameOf(index)]));
  const index = { metadata: { total_size: total }, weight_map: Object.fromEntries(map) as object };
  await writeFile(join(folder, INDEX_FILE), `${JSON.stringify(index, undefined, 2)}\n`);
}

/** The names of the files that hold the weights: the single one where it is, as in transformers, else those of the index. */
async function weightFiles(folder: string, single: string): Promise<string[]> {
  if (await exists(join(folder, single))) return [single];
  let text: string;
  try {
    text = await readFile(join(folder, INDEX_FILE), 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [single];
    throw unreadable(folder, messageOf(error), error);
  }
  const { weight_map: map } = parseObject(join(folder, INDEX_FILE), text);
  if (typeof map !== 'object' || map === null)
    throw unreadable(folder, `${INDEX_FILE} has no weight_map`);
  const files = [...new Set(Object.values(map))];
  const isPlain = (file: unknown): file is string =>
    typeof file === 'string' && /^[\w.-]+\.safetensors$/.test(file);
  if (!files.every(isPlain))
    throw unreadable(folder, `${INDEX_FILE} names files outside of the folder`);
  return files.sort();
}

async function readHeader(
  file: string,
): Promise<{ entries: readonly TensorEntry[]; start: number }> {
  const length = decodeHeaderLength(await rangeOf(file, 0, LENGTH_BYTES));
  const { entries } = decodeHeader(await rangeOf(file, LENGTH_BYTES, length));
  return { entries, start: LENGTH_BYTES + length };
}

async function rangeOf(file: string, at: number, length: number): Promise<Uint8Array> {
  try {
    const handle = await open(file);
    try {
      return await readRange(handle, at, length);
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw unreadable(file, messageOf(error), error);
  }
}

async function readJson(file: string): Promise<Record<string, unknown>> {
  try {
    return parseObject(file, await readFile(file, 'utf8'));
  } catch (error) {
    if (error instanceof PretrainedError) throw error;
    throw unreadable(file, messageOf(error), error);
  }
}

function parseObject(file: string, text: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw unreadable(file, 'it is not JSON', error);
  }
  if (typeof value !== 'object' || value === null) throw unreadable(file, 'it is not an object');
  return value as Record<string, unknown>;
}

function toFloat32({ name, dtype }: TensorEntry, bytes: Uint8Array): Float32Array {
  const convert = FLOATS[dtype];
  if (convert === undefined) {
    throw new PretrainedError(
      'PRETRAINED_SHAPE',
      `${name} holds ${dtype}, where weights are F64, F32, F16 or BF16. Quantised weights are to be converted first`,
    );
  }
  return convert(bytes.buffer as ArrayBuffer);
}

const FLOATS: Partial<Record<Dtype, (bytes: ArrayBuffer) => Float32Array>> = {
  F64: (bytes) => Float32Array.from(new Float64Array(bytes)),
  F32: (bytes) => new Float32Array(bytes),
  F16: (bytes) => Float32Array.from(new Uint16Array(bytes), halfToFloat),
  BF16: (bytes) => {
    const wide = Uint32Array.from(new Uint16Array(bytes), (half) => half << 16);
    return new Float32Array(wide.buffer);
  },
};

/** Source: IEEE 754-2019, binary16. */
export function halfToFloat(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 0x3ff;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function toData({ shape, data }: HostTensor): TensorData {
  return {
    dtype: 'F32',
    shape,
    data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  };
}

/** Names in groups of at most so many bytes, one at least. */
function inGroups(
  names: readonly string[],
  tensors: ReadonlyMap<string, HostTensor>,
  maxBytes: number,
): string[][] {
  const groups: string[][] = [[]];
  let bytes = 0;
  for (const name of names) {
    const size = tensors.get(name)!.data.byteLength;
    if (bytes > 0 && bytes + size > maxBytes) {
      groups.push([]);
      bytes = 0;
    }
    groups.at(-1)!.push(name);
    bytes += size;
  }
  return groups;
}

function unreadable(place: string, what: string, cause?: unknown): PretrainedError {
  return new PretrainedError(
    'PRETRAINED_UNREADABLE',
    `${place} cannot be read: ${what}. Give a folder with config.json and ${SINGLE_FILE} (or ${INDEX_FILE} and its files), as save_pretrained writes it`,
    cause,
  );
}
