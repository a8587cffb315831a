import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { hasManifest, MANIFEST_FILE } from '../../proto/checkpoint-manifest.ts';
import { syncFolder } from '../../proto/durable-file.ts';
import { writeFailure } from './checkpoint-error.ts';
import { NUM_THREADS, type FileWriter, type Piece, type SavedFile } from './file-writer.ts';
import { compareNames, encodeHeader, type TensorData, type TensorForm } from './format.ts';

/** Tensors under this prefix go to `optimizer-*` files, all others to `model-*`. */
export const OPTIMIZER_PREFIX = 'optimizer/';

/** As much is fetched at once of tensors that are not in memory. */
const LOAD_BYTES = 16 << 20;

/** A tensor to be written: in memory, or to be had when its turn comes. */
export type SavedTensor = TensorData | (TensorForm & { readonly data: LazyBytes });

/** Bytes that are fetched when they are written. */
export interface LazyBytes {
  readonly byteLength: number;
  load(): Promise<Piece>;
}

export interface CheckpointPart {
  /** The checkpoint's folder; made when it does not exist. */
  readonly dir: string;
  readonly rank: number;
  readonly worldSize: number;
  /** Those of {@link shareOf}. Must not change until the write has ended. */
  readonly tensors: ReadonlyMap<string, SavedTensor>;
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
  const ranks = balance(sizes, worldSize);
  return new Set([...sizes.keys()].filter((name) => ranks.get(name) === rank));
}

/** Part of each tensor, so that all parts have about the same bytes: a function of names and sizes alone. */
function balance(sizes: ReadonlyMap<string, number>, numParts: number): Map<string, number> {
  const loads = new Array<number>(numParts).fill(0);
  const largestFirst = [...sizes].sort(([a, m], [b, n]) => n - m || compareNames(a, b));
  return new Map(
    largestFirst.map(([name, sizeBytes]) => {
      const least = loads.indexOf(Math.min(...loads));
      loads[least]! += sizeBytes;
      return [name, least];
    }),
  );
}

/** A share of this many bytes is worth two threads: one alone is as slow as it hashes. */
const SPLIT_BYTES = 64 << 20;

/** Parts in which each rank writes its share at once; the same on every rank. */
function partsPerRank(sizes: ReadonlyMap<string, number>, worldSize: number): number {
  let total = 0;
  for (const sizeBytes of sizes.values()) total += sizeBytes;
  return total / worldSize < SPLIT_BYTES ? 1 : NUM_THREADS;
}

/**
 * Writes a worker's share of a checkpoint and makes it durable. Rank 0 also writes `model.safetensors.index.json`, by
 * which Hugging Face's tools find the tensors of all parts. Nothing is under its final name before it is whole.
 * @returns the files written, for the coordinator's manifest
 * @throws CheckpointError CHECKPOINT_DISK_FULL, CHECKPOINT_TOO_LARGE, CHECKPOINT_NOT_WRITABLE or CHECKPOINT_DISK_FAILED;
 * nothing is left behind then. A checkpoint that is complete stays as it is: a worker that stood still for long may wake
 * to save its share of what others have completed without it, under the same names
 */
export async function saveCheckpointPart(
  part: CheckpointPart,
  writer: FileWriter,
): Promise<SavedFile[]> {
  const { dir, rank, worldSize, tensors, sizes, metadata = { format: 'pt' } } = part;
  try {
    await mkdir(dir, { recursive: true });
  } catch (error) {
    throw writeFailure(error, dir);
  }
  const unlessComplete = { unless: join(dir, MANIFEST_FILE) };
  const parts = partsPerRank(sizes, worldSize);
  const shares = balance(
    new Map([...tensors.keys()].map((name) => [name, sizes.get(name)!])),
    parts,
  );
  const saved: SavedFile[] = [];
  const savePart = async (part: number): Promise<void> => {
    for (const kind of ['model', 'optimizer'] as const) {
      const own = new Map(
        [...tensors].filter(([name]) => kindOf(name) === kind && shares.get(name) === part),
      );
      if (own.size === 0) continue;
      const path = join(dir, fileName(kind, parts * rank + part, parts * worldSize));
      saved.push(await writer.write(path, piecesOf(own, metadata), unlessComplete));
    }
  };
  try {
    const ends = await Promise.allSettled(
      Array.from({ length: parts }, (_, part) => savePart(part)),
    );
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
    if (rank === 0) {
      const index = Buffer.from(JSON.stringify(indexOf(sizes, worldSize), undefined, 2) + '\n');
      const path = join(dir, 'model.safetensors.index.json');
      saved.push(await writer.write(path, only(index), unlessComplete));
    }
    await syncFolder(dir);
    return saved;
  } catch (error) {
    if (!(await hasManifest(dir)))
      await Promise.all(saved.map(({ name }) => rm(join(dir, name), { force: true })));
    throw error;
  }
}

/** Where each model tensor is. Source: huggingface.co/docs/transformers/big_models, "Sharded checkpoints". */
function indexOf(sizes: ReadonlyMap<string, number>, worldSize: number): object {
  const parts = partsPerRank(sizes, worldSize);
  const owners = new Map<string, number>();
  const ranks = balance(sizes, worldSize);
  for (let rank = 0; rank < worldSize; rank++) {
    const share = new Map([...sizes].filter(([name]) => ranks.get(name) === rank));
    for (const [name, part] of balance(share, parts)) owners.set(name, parts * rank + part);
  }
  const names = [...sizes.keys()].filter((name) => kindOf(name) === 'model').sort(compareNames);
  return {
    metadata: { total_size: names.reduce((sum, name) => sum + sizes.get(name)!, 0) },
    weight_map: Object.fromEntries(
      names.map((name) => [name, fileName('model', owners.get(name)!, parts * worldSize)]),
    ),
  };
}

/** A safetensors file: what is in memory goes as it is, the rest is fetched a few megabytes at a time. */
async function* piecesOf(
  tensors: ReadonlyMap<string, SavedTensor>,
  metadata: Readonly<Record<string, string>>,
): AsyncGenerator<Piece[]> {
  const { header, order } = encodeHeader(tensors, metadata);
  let batch: Piece[] = [header];
  let batchBytes = 0;
  for (const name of order) {
    const { data } = tensors.get(name)!;
    batch.push(data instanceof Uint8Array ? data : await data.load());
    batchBytes += data.byteLength;
    if (batchBytes < LOAD_BYTES) continue;
    yield batch;
    [batch, batchBytes] = [[], 0];
  }
  yield batch;
}

// eslint-disable-next-line @typescript-eslint/require-await -- the writer takes what comes in time
async function* only(bytes: Uint8Array): AsyncGenerator<Piece[]> {
  yield [bytes];
}

function kindOf(name: string): 'model' | 'optimizer' {
  return name.startsWith(OPTIMIZER_PREFIX) ? 'optimizer' : 'model';
}

function fileName(kind: 'model' | 'optimizer', rank: number, worldSize: number): string {
  const digits = (count: number) => String(count).padStart(5, '0');
  return `${kind}-${digits(rank + 1)}-of-${digits(worldSize)}.safetensors`;
}
