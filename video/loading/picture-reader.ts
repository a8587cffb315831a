/** Pictures of an index's samples in any order, decoded in batches ahead of their turn. */
import type { DecoderPool } from '../decode/decoder.ts';
import { isFileFault } from './file-fault.ts';
import type { Framing } from '../decode/framing.ts';
import type { Sample } from '../index/sample.ts';
import type { SampleIndex } from '../index/sample-index.ts';
import type { LocalMedia, MediaCache } from '../storage/media-cache.ts';
import type { VideoloomError } from '../../proto/errors.ts';

export interface PictureReaderOptions {
  readonly index: SampleIndex;
  readonly media: MediaCache;
  readonly pool: DecoderPool;
  readonly split?: 'train' | 'heldOut';
  /** What each picture is to be like. */
  readonly framing: Framing;
  /** 64 by default. */
  readonly batchSize?: number;
  /** Batches decoded or being decoded that are not handed out yet; two for each process by default. */
  readonly numAhead?: number;
  readonly signal?: AbortSignal;
}

/** The first picture of each of some samples. */
export interface PictureBatch {
  readonly samples: readonly Sample[];
  /** RGB, [B, H, W, 3]. It is written over once the next batch is asked for. */
  readonly frames: Uint8Array;
  /** Pictures that cannot be had, by place in the batch; their frames hold anything. */
  readonly faults: ReadonlyMap<number, VideoloomError>;
}

/**
 * Pictures of the given rows, in this order; the last batch may be smaller.
 * @throws StorageError, DecodeError where no file is to blame; the signal's reason when aborted.
 */
export async function* readPictures(
  rows: Iterable<number>,
  options: PictureReaderOptions,
): AsyncGenerator<PictureBatch> {
  const { index, pool, framing, batchSize = 64 } = options;
  const { numAhead = 2 * Math.max(1, pool.pids.length) } = options;
  const samples = index[options.split ?? 'train'];
  const bytes = batchSize * framing.width * framing.height * 3;
  const stop = new AbortController();
  const signal = options.signal ? AbortSignal.any([options.signal, stop.signal]) : stop.signal;
  const localPaths = new Map<string, string>();
  const free: Uint8Array[] = [];
  const ahead: { batch: Promise<PictureBatch>; memory: Uint8Array }[] = [];
  const source = batchesOf(rows, batchSize);
  const fill = (): void => {
    while (ahead.length < numAhead) {
      const next = source.next();
      if (next.done === true) return;
      const some = next.value.map((row) => samples[row]!);
      const memory = free.pop() ?? new Uint8Array(bytes);
      const batch = decodeBatch(some, memory, { ...options, signal }, localPaths);
      batch.catch(() => undefined); // awaited in its turn
      ahead.push({ batch, memory });
    }
  };
  try {
    fill();
    while (ahead.length > 0) {
      const { batch, memory } = ahead.shift()!;
      const done = await batch;
      fill();
      yield done;
      free.push(memory);
      fill();
    }
  } finally {
    stop.abort();
    await Promise.allSettled(ahead.map(({ batch }) => batch));
  }
}

async function decodeBatch(
  samples: readonly Sample[],
  into: Uint8Array,
  { index, media, pool, framing, signal }: PictureReaderOptions,
  localPaths: Map<string, string>,
): Promise<PictureBatch> {
  const faults = new Map<number, VideoloomError>();
  const held: LocalMedia[] = [];
  try {
    const places = [];
    for (const [place, { media: spans }] of samples.entries()) {
      const file = index.files[spans[0]!.file]!;
      // A shard that is here is looked for once.
      const path = file.range && localPaths.get(file.path);
      if (path !== undefined) {
        places.push({ path, range: file.range });
        continue;
      }
      try {
        const local = await media.acquire(file, signal);
        held.push(local);
        if (file.range !== undefined && local.range === file.range) {
          localPaths.set(file.path, local.path);
        }
        places.push({ path: local.path, range: local.range });
      } catch (error) {
        if (!isFileFault(error)) throw error;
        faults.set(place, error);
        places.push(undefined);
      }
    }
    const there = places.flatMap((place, i) => (place === undefined ? [] : [{ place, i }]));
    const decoded = await pool.decodeImages(
      there.map(({ place }) => place),
      framing,
      { into, ...(signal && { signal }) },
    );
    for (const [at, error] of decoded.errors) faults.set(there[at]!.i, error);
    const frameBytes = framing.width * framing.height * 3;
    // What is missing has left a gap: from the last one on, each goes to its place.
    for (let at = there.length - 1; at >= 0 && there[at]!.i !== at; at--) {
      into.copyWithin(there[at]!.i * frameBytes, at * frameBytes, (at + 1) * frameBytes);
    }
    return { samples, frames: into.subarray(0, samples.length * frameBytes), faults };
  } finally {
    for (const { release } of held) release();
  }
}

function* batchesOf(rows: Iterable<number>, size: number): Generator<number[]> {
  let batch: number[] = [];
  for (const row of rows) {
    batch.push(row);
    if (batch.length < size) continue;
    yield batch;
    batch = [];
  }
  if (batch.length > 0) yield batch;
}
