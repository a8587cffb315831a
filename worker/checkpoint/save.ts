import { createHash } from 'node:crypto';
import { mkdir, open, rename, rm, type FileHandle } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { syncFolder } from '../../proto/durable-file.ts';
import { writeFailure } from './checkpoint-error.ts';
import { compareNames, type TensorData } from './format.ts';
import { safetensorsStream } from './stream.ts';

/** Tensors under this prefix go to `optimizer-*` files, all others to `model-*`. */
export const OPTIMIZER_PREFIX = 'optimizer/';

const WRITE_BYTES = 4 << 20;

export interface SavedFile {
  /** Relative to the checkpoint's folder. */
  readonly name: string;
  readonly sizeBytes: number;
  readonly sha256: string;
}

export interface CheckpointPart {
  /** The checkpoint's folder; made when it does not exist. */
  readonly dir: string;
  readonly rank: number;
  readonly worldSize: number;
  /** Those of {@link shareOf}. Must not change until the write has ended. */
  readonly tensors: ReadonlyMap<string, TensorData>;
  /** Bytes of all tensors, of every rank. */
  readonly sizes: ReadonlyMap<string, number>;
  /** Goes into the files' headers, as Hugging Face's readers expect `{ format: 'pt' }`. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/**
 * Names of the tensors that a rank writes: the largest first to whoever has least. The same on every rank, and every
 * tensor belongs to one.
 * @param sizes bytes by name
 */
export function shareOf(
  sizes: ReadonlyMap<string, number>,
  rank: number,
  worldSize: number,
): ReadonlySet<string> {
  const loads = new Array<number>(worldSize).fill(0);
  const share = new Set<string>();
  const largestFirst = [...sizes].sort(([a, m], [b, n]) => n - m || compareNames(a, b));
  for (const [name, sizeBytes] of largestFirst) {
    const least = loads.indexOf(Math.min(...loads));
    loads[least]! += sizeBytes;
    if (least === rank) share.add(name);
  }
  return share;
}

/**
 * Writes a worker's share of a checkpoint and makes it durable. Rank 0 also writes `model.safetensors.index.json`, by
 * which Hugging Face's tools find the tensors of all parts. Nothing is under its final name before it is whole.
 * @returns the files written, for the coordinator's manifest
 * @throws CheckpointError CHECKPOINT_DISK_FULL, CHECKPOINT_TOO_LARGE, CHECKPOINT_NOT_WRITABLE or CHECKPOINT_DISK_FAILED;
 * nothing is left behind then
 */
export async function saveCheckpointPart(part: CheckpointPart): Promise<SavedFile[]> {
  const { dir, rank, worldSize, tensors, sizes, metadata = { format: 'pt' } } = part;
  try {
    await mkdir(dir, { recursive: true });
  } catch (error) {
    throw writeFailure(error, dir);
  }
  const saved: SavedFile[] = [];
  try {
    for (const kind of ['model', 'optimizer'] as const) {
      const own = new Map([...tensors].filter(([name]) => kindOf(name) === kind));
      if (own.size === 0) continue;
      saved.push(
        await writeDurably(
          join(dir, fileName(kind, rank, worldSize)),
          safetensorsStream(own, metadata, WRITE_BYTES),
        ),
      );
    }
    if (rank === 0) {
      const index = Buffer.from(JSON.stringify(indexOf(sizes, worldSize), undefined, 2) + '\n');
      saved.push(await writeDurably(join(dir, 'model.safetensors.index.json'), [index]));
    }
    await syncFolder(dir);
    return saved;
  } catch (error) {
    await Promise.all(saved.map(({ name }) => rm(join(dir, name), { force: true })));
    throw error;
  }
}

/** Where each model tensor is. Source: huggingface.co/docs/transformers/big_models, "Sharded checkpoints". */
function indexOf(sizes: ReadonlyMap<string, number>, worldSize: number): object {
  const owners = new Map<string, number>();
  for (let rank = 0; rank < worldSize; rank++) {
    for (const name of shareOf(sizes, rank, worldSize)) owners.set(name, rank);
  }
  const names = [...sizes.keys()].filter((name) => kindOf(name) === 'model').sort(compareNames);
  return {
    metadata: { total_size: names.reduce((sum, name) => sum + sizes.get(name)!, 0) },
    weight_map: Object.fromEntries(
      names.map((name) => [name, fileName('model', owners.get(name)!, worldSize)]),
    ),
  };
}

/** Temporary name, fsync, rename; the hash is taken on the way. */
async function writeDurably(path: string, chunks: Iterable<Uint8Array>): Promise<SavedFile> {
  const temporary = `${path}.tmp-${process.pid}`;
  const hash = createHash('sha256');
  let sizeBytes = 0;
  try {
    const file = await open(temporary, 'w', 0o644);
    try {
      for (const chunk of chunks) {
        const written = writeAll(file, chunk);
        hash.update(chunk); // while the kernel copies on another thread
        await written;
        await setImmediate(); // the event loop serves everybody else between two chunks
        sizeBytes += chunk.byteLength;
      }
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw writeFailure(error, path);
  }
  return { name: basename(path), sizeBytes, sha256: hash.digest('hex') };
}

/** A full disk shows as a short write first, and as an error with the next. */
async function writeAll(file: FileHandle, chunk: Uint8Array): Promise<void> {
  for (let start = 0; start < chunk.byteLength;) {
    start += (await file.write(chunk, start)).bytesWritten;
  }
}

function kindOf(name: string): 'model' | 'optimizer' {
  return name.startsWith(OPTIMIZER_PREFIX) ? 'optimizer' : 'model';
}

function fileName(kind: 'model' | 'optimizer', rank: number, worldSize: number): string {
  const digits = (count: number) => String(count).padStart(5, '0');
  return `${kind}-${digits(rank + 1)}-of-${digits(worldSize)}.safetensors`;
}
