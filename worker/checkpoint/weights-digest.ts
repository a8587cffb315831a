import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { readManifest } from '../../proto/checkpoint-manifest.ts';
import {
  compareNames,
  decodeHeader,
  decodeHeaderLength,
  LENGTH_BYTES,
  type TensorEntry,
} from './format.ts';
import { digestLine } from './hash.ts';
import { OPTIMIZER_PREFIX } from './save.ts';

/**
 * What `weightsSha256` gives for the parameters of a checkpoint, however many files they are in; read in pieces, so
 * that any size fits.
 * @throws VideoloomError CHECKPOINT_INVALID; SafetensorsInvalid; the system's errors
 */
export async function checkpointWeightsSha256(dir: string): Promise<string> {
  const places: { path: string; dataStart: number; entry: TensorEntry }[] = [];
  for (const { name } of (await readManifest(dir)).files) {
    if (!name.endsWith('.safetensors')) continue;
    const path = join(dir, name);
    const { entries, dataStart } = await readEntries(path);
    for (const entry of entries)
      if (!entry.name.startsWith(OPTIMIZER_PREFIX)) places.push({ path, dataStart, entry });
  }
  const hash = createHash('sha256');
  places.sort((a, b) => compareNames(a.entry.name, b.entry.name));
  for (const { path, dataStart, entry } of places) {
    hash.update(digestLine(entry.name, entry));
    if (entry.end === entry.start) continue;
    const part = { start: dataStart + entry.start, end: dataStart + entry.end - 1 };
    for await (const chunk of createReadStream(path, {
      highWaterMark: 1 << 20,
      ...part,
    }) as AsyncIterable<Buffer>)
      hash.update(chunk);
  }
  return hash.digest('hex');
}

async function readEntries(
  path: string,
): Promise<{ entries: readonly TensorEntry[]; dataStart: number }> {
  const handle = await open(path, 'r');
  try {
    const prefix = Buffer.alloc(LENGTH_BYTES);
    const { bytesRead } = await handle.read(prefix, 0, LENGTH_BYTES, 0);
    const length = decodeHeaderLength(prefix.subarray(0, bytesRead));
    const json = Buffer.alloc(length);
    await handle.read(json, 0, length, LENGTH_BYTES);
    return { entries: decodeHeader(json).entries, dataStart: LENGTH_BYTES + length };
  } finally {
    await handle.close();
  }
}
