import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { readManifest } from '../../proto/checkpoint-manifest.ts';
import {
  compareNames,
  decodeHeader,
  decodeHeaderLength,
  LENGTH_BYTES,
  SafetensorsInvalid,
  type TensorEntry,
} from './format.ts';
import { OPTIMIZER_PREFIX } from './save.ts';

/** A parameter of a checkpoint, left where it is. */
export interface StoredParameter {
  readonly entry: TensorEntry;
  readonly sizeBytes: number;
  /** Its bytes, in pieces. */
  read(): AsyncIterable<Uint8Array>;
}

/**
 * The parameters of a checkpoint by name, however many files they are in; of the files only headers are read.
 * @throws VideoloomError CHECKPOINT_INVALID; SafetensorsInvalid; the system's errors
 */
export async function storedParameters(dir: string): Promise<StoredParameter[]> {
  const found: StoredParameter[] = [];
  for (const { name } of (await readManifest(dir)).files) {
    if (!name.endsWith('.safetensors')) continue;
    const path = join(dir, name);
    const { entries, dataStart } = await readEntries(path);
    for (const entry of entries) {
      if (entry.name.startsWith(OPTIMIZER_PREFIX)) continue;
      const [start, end] = [dataStart + entry.start, dataStart + entry.end - 1];
      const read = (): AsyncIterable<Uint8Array> =>
        end < start ? nothing() : createReadStream(path, { highWaterMark: 1 << 20, start, end });
      found.push({ entry, sizeBytes: entry.end - entry.start, read });
    }
  }
  return found.sort((a, b) => compareNames(a.entry.name, b.entry.name));
}

async function readEntries(
  path: string,
): Promise<{ entries: readonly TensorEntry[]; dataStart: number }> {
  const handle = await open(path, 'r');
  try {
    const read = async (length: number, position: number): Promise<Buffer> => {
      const bytes = Buffer.alloc(length);
      const { bytesRead } = await handle.read(bytes, 0, length, position);
      if (bytesRead < length) throw new SafetensorsInvalid(`${path} ends within its header`);
      return bytes;
    };
    const length = decodeHeaderLength(await read(LENGTH_BYTES, 0));
    const { entries } = decodeHeader(await read(length, LENGTH_BYTES));
    return { entries, dataStart: LENGTH_BYTES + length };
  } finally {
    await handle.close();
  }
}

// eslint-disable-next-line @typescript-eslint/require-await -- there is nothing to wait for
async function* nothing(): AsyncGenerator<Uint8Array> {
  yield* [];
}
