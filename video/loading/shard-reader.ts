/**
 * The stored bytes of an index's samples, in any order, out of tar shards or whatever the media lie in. What comes next
 * is known, so the places of many rows are sorted by file and offset and read in large stretches ahead of their turn.
 */
import { close, open, read } from 'node:fs';
import { promisify } from 'node:util';
import type { VideoloomError } from '../../proto/errors.ts';
import { planReads, type PlannedRead } from './coalesced-reads.ts';
import { isFileFault } from './file-fault.ts';
import { locationShown, type MediaFile, type Sample } from '../index/sample.ts';
import type { SampleIndex } from '../index/sample-index.ts';
import type { LocalMedia, MediaCache } from '../storage/media-cache.ts';
import { redactUrl } from '../storage/paths.ts';
import { rangeOutside, StorageError } from '../storage/store.ts';

export interface ShardReaderOptions {
  readonly index: SampleIndex;
  /** Gives the bytes of the index's files, wherever they are. */
  readonly media: MediaCache;
  readonly split?: 'train' | 'heldOut';
  /** Samples that are handed out together; 64 by default. */
  readonly batchSize?: number;
  /** Rows whose places are sorted together, at most; 4096 by default. */
  readonly windowRows?: number;
  /** Memory for bytes read ahead, at most, unless one sample alone takes more; 256 MiB by default. */
  readonly maxBytesAhead?: number;
  readonly signal?: AbortSignal;
}

/** A sample as it is stored. */
export interface StoredSample {
  readonly row: number;
  readonly sample: Sample;
  /**
   * The bytes of each of its media, which other bytes take the place of once the next batch is asked for: memory is
   * used again, since fresh memory costs more than reading into it. Empty where there is a fault.
   */
  readonly media: readonly Uint8Array[];
  /** Why its bytes cannot be had; the message names the file and the place in it. */
  readonly fault?: VideoloomError;
}

/** Of what is read, to what is wanted. */
const MAX_SPREAD = 3;
const MAX_READ_BYTES = 2 ** 20;
/** Reads under way; Node has four threads for them. */
const MAX_READS = 4;
const MAX_OPEN_FILES = 32;

/**
 * Samples of the given rows, in this order, in batches (the last one may be smaller).
 * @throws StorageError where no file is to blame; the signal's reason when aborted; RangeError for a row there is not.
 */
export async function* readSamples(
  rows: Iterable<number> | AsyncIterable<number>,
  options: ShardReaderOptions,
): AsyncGenerator<StoredSample[]> {
  const { batchSize = 64, signal } = options;
  const stop = new AbortController();
  const reader = new WindowReader(
    options,
    signal ? AbortSignal.any([signal, stop.signal]) : stop.signal,
  );
  const windows = windowsOf(rows, options);
  const start = async (): Promise<
    { samples: Promise<StoredSample[]>; memory: Buffer[] } | undefined
  > => {
    const next = await windows.next();
    if (next.done === true) return undefined;
    const memory: Buffer[] = [];
    const samples = reader.read(next.value, memory);
    samples.catch(() => undefined); // awaited in its turn
    return { samples, memory };
  };
  let ahead: Awaited<ReturnType<typeof start>>;
  try {
    let batch: StoredSample[] = [];
    let spent: Buffer[] = []; // all of whose samples are handed out, or in the batch at hand
    ahead = await start();
    while (ahead !== undefined) {
      const { memory } = ahead;
      const samples: StoredSample[] = await ahead.samples;
      ahead = await start(); // half of the bytes are read while the other half is handed out
      for (const sample of samples) {
        batch.push(sample);
        if (batch.length < batchSize) continue;
        signal?.throwIfAborted();
        yield batch;
        batch = [];
        reader.takeBack(spent);
        spent = [];
      }
      spent.push(...memory);
    }
    if (batch.length > 0) yield batch;
  } finally {
    stop.abort();
    await ahead?.samples.catch(() => undefined);
    await windows.return(undefined);
    await reader.close();
  }
}

/** Rows cut where they are enough to be sorted, or as many bytes as one of two windows may take. */
async function* windowsOf(
  rows: Iterable<number> | AsyncIterable<number>,
  { index, split = 'train', windowRows = 4096, maxBytesAhead = 256 * 2 ** 20 }: ShardReaderOptions,
): AsyncGenerator<number[]> {
  const samples = index[split];
  const maxBytes = maxBytesAhead / 2 / MAX_SPREAD;
  let window: number[] = [];
  let windowBytes = 0;
  /** Adds a row; gives those before it where they are enough. */
  const add = (row: number): number[] | undefined => {
    const sample = samples[row];
    if (sample === undefined)
      throw new RangeError(`there is no row ${row} among ${samples.length}`);
    let sizeBytes = 0;
    for (const { file } of sample.media) sizeBytes += index.files[file]!.sizeBytes;
    const isFull = window.length === windowRows || windowBytes + sizeBytes > maxBytes;
    const full = isFull && window.length > 0 ? window : undefined;
    if (full !== undefined) [window, windowBytes] = [[], 0];
    window.push(row);
    windowBytes += sizeBytes;
    return full;
  };
  // Waiting for each row of a list would cost as much as reading it.
  if (Symbol.iterator in rows) {
    for (const row of rows) {
      const full = add(row);
      if (full !== undefined) yield full;
    }
  } else {
    for await (const row of rows) {
      const full = add(row);
      if (full !== undefined) yield full;
    }
  }
  if (window.length > 0) yield window;
}

const readFile = promisify(read);

class WindowReader {
  readonly #options: ShardReaderOptions;
  readonly #signal: AbortSignal;
  readonly #files = new OpenFiles();
  readonly #free: Buffer[] = [];
  /** Where shards lie that are on this machine already. */
  readonly #localPaths = new Map<string, string>();

  constructor(options: ShardReaderOptions, signal: AbortSignal) {
    this.#options = options;
    this.#signal = signal;
  }

  /** The samples of a window; `memory` is filled with what they lie in. */
  async read(rows: readonly number[], memory: Buffer[]): Promise<StoredSample[]> {
    const { index, split = 'train' } = this.#options;
    const parts: Part[] = [];
    const places = new Map<number, number>(); // of files among the parts: several rows may be of one film
    for (const row of rows) {
      for (const { file } of index[split][row]!.media) {
        if (places.has(file)) continue;
        places.set(file, parts.length);
        parts.push(partOf(index.files[file]!));
      }
    }
    const held: LocalMedia[] = [];
    try {
      await this.#locate(parts, held);
      const located = parts.filter(({ fault }) => fault === undefined);
      const plan = { maxSpread: MAX_SPREAD, maxReadBytes: MAX_READ_BYTES };
      const stretches = planReads(located, plan);
      const all = this.#allocate(stretches.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0));
      memory.push(all);
      let at = 0;
      const reads = stretches.map((stretch) => ({
        stretch,
        into: all.subarray(at, (at += stretch.sizeBytes)),
      }));
      await inParallel(
        reads,
        ({ stretch, into }) => this.#readStretch(stretch, into, located),
        MAX_READS,
      );
    } finally {
      for (const { release } of held) release();
    }
    return rows.map((row) => {
      const sample = index[split][row]!;
      const media = sample.media.map(({ file }) => parts[places.get(file)!]!);
      const fault = media.find((part) => part.fault !== undefined)?.fault;
      if (fault !== undefined) return { row, sample, media: [], fault };
      return { row, sample, media: media.map(({ bytes }) => bytes) };
    });
  }

  /** Finds out where each part lies on this machine; what is elsewhere is fetched. */
  async #locate(parts: readonly Part[], held: LocalMedia[]): Promise<void> {
    const unknown: Part[] = [];
    for (const part of parts) {
      const path = part.file.cell === undefined ? this.#localPaths.get(part.file.path) : undefined;
      if (path === undefined) unknown.push(part);
      else part.path = path;
    }
    // One of each shard tells where the others are.
    const first = new Map(unknown.map((part) => [part.file.path, part]));
    await inParallel([...first.values()], (part) => this.#acquire(part, held), MAX_READS);
    const rest = unknown.filter((part) => first.get(part.file.path) !== part);
    await inParallel(
      rest,
      async (part) => {
        const path = part.file.cell === undefined && this.#localPaths.get(part.file.path);
        if (path === undefined || path === false) await this.#acquire(part, held);
        else part.path = path;
      },
      MAX_READS,
    );
  }

  async #acquire(part: Part, held: LocalMedia[]): Promise<void> {
    const { file } = part;
    try {
      const local = await this.#options.media.acquire(file, this.#signal);
      held.push(local);
      part.path = local.path;
      const isInPlace = file.range !== undefined && local.range === file.range;
      if (isInPlace) this.#localPaths.set(file.path, local.path);
      else part.range = local.range ?? { offset: 0, sizeBytes: file.sizeBytes };
    } catch (error) {
      if (!isFileFault(error)) throw error;
      part.fault = error;
    }
  }

  async #readStretch(stretch: PlannedRead, buffer: Buffer, parts: readonly Part[]): Promise<void> {
    this.#signal.throwIfAborted();
    let filled = 0;
    let failure: unknown;
    try {
      await this.#files.use(stretch.path, async (file) => {
        while (filled < stretch.sizeBytes) {
          const left = stretch.sizeBytes - filled;
          const { bytesRead } = await readFile(file, buffer, filled, left, stretch.offset + filled);
          if (bytesRead === 0) return;
          filled += bytesRead;
        }
      });
    } catch (error) {
      failure = error;
    }
    for (const place of stretch.parts) {
      const part = parts[place]!;
      const start = part.range.offset - stretch.offset;
      if (start + part.range.sizeBytes <= filled) {
        part.bytes = buffer.subarray(start, start + part.range.sizeBytes);
      } else if (failure === undefined) {
        part.fault = rangeOutside(redactUrl(part.file.path), part.range, stretch.offset + filled);
      } else part.fault = unreadable(part, failure);
    }
  }

  /** Memory that nobody looks into any more. */
  takeBack(memory: readonly Buffer[]): void {
    this.#free.push(...memory);
    this.#free.sort((a, b) => b.length - a.length).splice(2);
  }

  #allocate(sizeBytes: number): Buffer {
    const known = this.#free.shift();
    if (known !== undefined && known.length >= sizeBytes) return known;
    return Buffer.allocUnsafeSlow(Math.ceil(sizeBytes / MAX_READ_BYTES) * MAX_READ_BYTES);
  }

  close(): Promise<void> {
    return this.#files.close();
  }
}

/** A medium of the window: where it lies, then its bytes or what is wrong with it. */
interface Part {
  readonly file: MediaFile;
  path: string;
  range: { readonly offset: number; readonly sizeBytes: number };
  bytes: Uint8Array;
  fault: VideoloomError | undefined;
}

const NOTHING = new Uint8Array(0);

function partOf(file: MediaFile): Part {
  const range = file.range ?? { offset: 0, sizeBytes: file.sizeBytes };
  return { file, path: '', range, bytes: NOTHING, fault: undefined };
}

function unreadable({ file }: Part, cause: unknown): StorageError {
  const isGone = (cause as { code?: string }).code === 'ENOENT';
  const what = isGone ? 'is not there any more' : `cannot be read: ${String(cause)}`;
  return new StorageError(
    isGone ? 'NOT_FOUND' : 'STORAGE_FAILED',
    `${locationShown(file)} ${what}; put the shard back, or index it again`,
    { cause },
  );
}

/** Files that stay open while they are in use, and the last ones of them a little longer. */
class OpenFiles {
  readonly #files = new Map<string, { opened: Promise<number>; numUsers: number }>(); // by last use

  async use(path: string, work: (file: number) => Promise<void>): Promise<void> {
    const file = this.#files.get(path) ?? { opened: promisify(open)(path, 'r'), numUsers: 0 };
    this.#files.delete(path);
    this.#files.set(path, file);
    file.numUsers++;
    try {
      const descriptor = await file.opened.catch((error: unknown) => {
        if (this.#files.get(path) === file) this.#files.delete(path);
        throw error;
      });
      await work(descriptor);
    } finally {
      file.numUsers--;
      await this.#trim(MAX_OPEN_FILES);
    }
  }

  close(): Promise<void> {
    return this.#trim(0);
  }

  async #trim(count: number): Promise<void> {
    for (const [path, { opened, numUsers }] of this.#files) {
      if (this.#files.size <= count) return;
      if (numUsers > 0) continue;
      this.#files.delete(path);
      await promisify(close)(await opened);
    }
  }
}

/** Runs `work` on all items, so many at a time; the first error ends it once those under way are done. */
async function inParallel<T>(
  items: readonly T[],
  work: (item: T) => Promise<void>,
  count: number,
): Promise<void> {
  let next = 0;
  let isOver = false;
  const run = async (): Promise<void> => {
    while (next < items.length && !isOver) {
      try {
        await work(items[next++]!);
      } catch (error) {
        isOver = true;
        throw error;
      }
    }
  };
  const results = await Promise.allSettled(Array.from({ length: count }, run));
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}
