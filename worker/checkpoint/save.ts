import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { syncFolder } from '../../proto/durable-file.ts';
import { writeFailure } from './checkpoint-error.ts';
import type { FileWriter, Piece, SavedFile } from './file-writer.ts';
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
  const saved: SavedFile[] = [];
  try {
    for (const kind of ['model', 'optimizer'] as const) {
      const own = new Map([...tensors].filter(([name]) => kindOf(name) === kind));
      if (own.size === 0) continue;
      const path = join(dir, fileName(kind, rank, worldSize));
      saved.push(await writer.write(path, piecesOf(own, metadata)));
    }
    if (rank === 0) {
      const index = Buffer.from(JSON.stringify(indexOf(sizes, worldSize), undefined, 2) + '\n');
      const path = join(dir, 'model.safetensors.index.json');
      saved.push(await writer.write(path, only(index)));
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
