import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { locationShown, type MediaFile, type MediaLocation } from '../index/sample.ts';
import { openCacheFolder, type CacheFolder, type HeldFile } from './cache-folder.ts';
import { openPlaces, type StoredPlace, type StoreOptions } from './open.ts';
import { openColumnCache } from './column-cache.ts';
import {
  bytesOfCell,
  findCell,
  readColumn,
  readTableMetadata,
  type Table,
  type TableMetadata,
} from './parquet-cell.ts';
import { redactUrl } from './paths.ts';
import { shared, type SharedWork } from './shared-work.ts';
import {
  MAX_READ_BYTES,
  StorageError,
  tooLarge,
  type ByteRange,
  type FileState,
  type Store,
} from './store.ts';

/** Where bytes are, and as far as an index knows it, which: what it knows is checked, and found again under any name. */
export type WantedMedia = MediaLocation & Partial<Pick<MediaFile, 'sha256' | 'sizeBytes'>>;

/** A file on this machine, and the part of it that is meant. It stays until it is let go. */
export interface LocalMedia {
  readonly path: string;
  /** Absent: all of it. */
  readonly range?: ByteRange;
  readonly release: () => void;
}

/** What a cache has done so far. */
export interface MediaCacheStats {
  /** Files that are on their way. */
  readonly numFetching: number;
  /** Bytes that have come from elsewhere. */
  readonly fetchedBytes: number;
}

export interface MediaCache {
  readonly stats: MediaCacheStats;
  /**
   * The bytes at a location as a file of this machine: of a folder the file itself, of anything else a copy, which is
   * fetched once for all who want it.
   * @throws StorageError
   */
  acquire(wanted: WantedMedia, signal?: AbortSignal): Promise<LocalMedia>;
  /**
   * What tells a file of a folder from the same file changed, as far as its store can; empty for others, of which a copy is
   * made that is known by its SHA-256.
   * @throws StorageError
   */
  versionOf(location: MediaLocation): Promise<string>;
  /** The bytes themselves, for small things. @throws StorageError, TOO_LARGE beyond `maxBytes` (256 MiB by default) */
  readBytes(
    wanted: WantedMedia,
    options?: { readonly maxBytes?: number; readonly signal?: AbortSignal },
  ): Promise<Uint8Array>;
  /** Lets go what is still held. Copies stay for the next time. */
  close(): Promise<void>;
}

export interface MediaCacheOptions {
  /** Of the copies; made when the first one is needed. Several processes may use one. */
  readonly folder: string;
  /** Of all copies; the least lately used go first. */
  readonly maxBytes: number;
  /** What relative paths are relative to. */
  readonly store: Store;
  /** For stores over the network. */
  readonly options?: StoreOptions;
}

/** Opens a cache of media over a store and the URLs that its locations name. */
export function openMediaCache({
  folder,
  maxBytes,
  store,
  options = {},
}: MediaCacheOptions): MediaCache {
  const placeOf = openPlaces(store, options);
  let opened: Promise<CacheFolder> | undefined;
  const cacheFolder = (): Promise<CacheFolder> =>
    (opened ??= openCacheFolder({ folder, maxBytes }).catch((error: unknown) => {
      opened = undefined;
      throw error;
    }));
  const downloads = new Map<string, SharedWork<void>>();
  let fetchedBytes = 0;
  const counted = async function* (chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of chunks) {
      fetchedBytes += chunk.byteLength;
      yield chunk;
    }
  };
  const states = new BoundedMap<string, FileState>(MAX_STATES);
  const tables = new BoundedMap<string, Promise<TableMetadata>>(MAX_TABLES);
  const columns = openColumnCache(MAX_COLUMN_BYTES);

  const stateOf = async (place: StoredPlace, signal?: AbortSignal): Promise<FileState> => {
    const key = keyOf(place);
    const state = states.get(key) ?? (await place.store.stat(place.path, signal));
    states.set(key, state);
    return state;
  };

  /** A copy, fetched if it is not here. */
  const copyOf = async (
    place: StoredPlace,
    wanted: WantedMedia,
    signal: AbortSignal | undefined,
  ): Promise<HeldFile> => {
    const cache = await cacheFolder();
    const key = wanted.sha256 ?? nameOf(place, wanted, await stateOf(place, signal));
    const known = async (): Promise<string | undefined> => wanted.sha256 ?? (await cache.find(key));
    for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
      const sha256 = await known();
      const held = sha256 === undefined ? undefined : await cache.hold(sha256);
      if (held !== undefined) return held;
      await shared(downloads, key, signal, async (own) => {
        const found = await fetchInto(cache, place, wanted, own);
        if (wanted.sha256 === undefined) await cache.name(key, found);
      });
    }
    throw new StorageError(
      'CACHE_FULL',
      `${locationShown(wanted)} was thrown out of the cache in ${folder} by others before it could be used: give the ` +
        'cache more room',
      { retryable: true },
    );
  };

  const fetchInto = async (
    cache: CacheFolder,
    place: StoredPlace,
    wanted: WantedMedia,
    signal: AbortSignal,
  ): Promise<string> => {
    const { sha256, range, cell } = wanted;
    const what = locationShown(wanted);
    try {
      if (cell !== undefined) {
        const bytes = await readCellAt(place, cell, signal);
        return await cache.add([bytes], { sizeBytes: bytes.length, what, sha256, signal });
      }
      // Of an indexed file the SHA-256 tells whether it is still the same.
      const state = sha256 === undefined ? await stateOf(place, signal) : undefined;
      const sizeBytes =
        range?.sizeBytes ?? wanted.sizeBytes ?? (await stateOf(place, signal)).sizeBytes;
      const bytes = streamed(place, {
        ...(range === undefined ? {} : { offset: range.offset }),
        ...(state === undefined ? {} : { version: state.version }),
        sizeBytes,
        signal,
      });
      return await cache.add(counted(bytes), { sizeBytes, what, sha256, signal });
    } catch (error) {
      throw forgotten(place, error);
    }
  };

  /** A file that has changed is looked at anew the next time. */
  const forgotten = (place: StoredPlace, error: unknown): unknown => {
    if (error instanceof StorageError && error.code === 'STORAGE_CHANGED')
      states.delete(keyOf(place));
    return error;
  };

  const readCellAt = async (
    place: StoredPlace,
    cell: NonNullable<MediaLocation['cell']>,
    signal: AbortSignal | undefined,
  ): Promise<Uint8Array> => {
    const state = await stateOf(place, signal);
    const key = `${keyOf(place)}\n${state.version}`;
    let metadata = tables.get(key);
    if (metadata === undefined) {
      metadata = readTableMetadata(tableAt(place, state)); // for all who wait: no one's signal ends it
      tables.set(key, metadata);
      metadata.catch(() => {
        tables.delete(key);
      });
    }
    const told = await metadata;
    const { what } = tableAt(place, state);
    const found = findCell(what, told, cell);
    const { column, rowStart, sizeBytes } = found;
    const load = (own?: AbortSignal) => readColumn(tableAt(place, state, own), told, found);
    const values = found.hasPages
      ? await load(signal)
      : await columns.read(`${key}\n${column}\n${rowStart}`, sizeBytes, signal, load);
    return bytesOfCell(what, cell, values[cell.row - rowStart], found.inner);
  };

  const tableAt = (place: StoredPlace, state: FileState, signal?: AbortSignal): Table => {
    const { sizeBytes, version } = state;
    const what = redactUrl(place.path);
    const isHere = place.store.localPath(place.path) !== undefined;
    return {
      what,
      sizeBytes,
      async readRange(range) {
        if (range.sizeBytes > MAX_READ_BYTES)
          throw tooLarge(`a column of ${what}`, range.sizeBytes, MAX_READ_BYTES);
        if (isHere || range.sizeBytes < MIN_COPY_BYTES) {
          const options = signal === undefined ? { version } : { version, signal };
          return place.store.read(place.path, { range, ...options });
        }
        // The column of a row group holds many cells: it is fetched once.
        const held = await copyOf(place, { path: place.path, range }, signal);
        try {
          return await readFile(held.path);
        } finally {
          held.release();
        }
      },
    };
  };

  return {
    get stats() {
      return { numFetching: downloads.size, fetchedBytes };
    },
    async acquire(wanted, signal) {
      signal?.throwIfAborted();
      const place = placeOf(wanted.path);
      const path = inPlace(place, wanted);
      if (path === undefined) return copyOf(place, wanted, signal);
      return {
        path,
        ...(wanted.range === undefined ? {} : { range: wanted.range }),
        release: () => undefined,
      };
    },
    async versionOf(location) {
      const place = placeOf(location.path);
      if (inPlace(place, location) === undefined) return '';
      const { version, sizeBytes } = await place.store.stat(place.path); // as it is now
      return `${version} ${sizeBytes}`;
    },
    async readBytes(wanted, { maxBytes = MAX_READ_BYTES, signal } = {}) {
      const place = placeOf(wanted.path);
      const { range, cell } = wanted;
      const isHere = place.store.localPath(place.path) !== undefined;
      if (isHere && cell === undefined) {
        const options = { maxBytes, ...(signal === undefined ? {} : { signal }) };
        return place.store.read(place.path, range === undefined ? options : { ...options, range });
      }
      const known = range?.sizeBytes ?? wanted.sizeBytes;
      if (cell === undefined || known !== undefined) {
        const sizeBytes = known ?? (await stateOf(place, signal)).sizeBytes;
        if (sizeBytes > maxBytes) throw tooLarge(locationShown(wanted), sizeBytes, maxBytes);
      }
      if (isHere && cell !== undefined) {
        return readCellAt(place, cell, signal).catch((error: unknown) => {
          throw forgotten(place, error);
        });
      }
      const held = await copyOf(place, wanted, signal);
      try {
        return await readFile(held.path);
      } finally {
        held.release();
      }
    },
    async close() {
      for (const { leave } of downloads.values()) leave();
      await Promise.allSettled([...downloads.values()].map(({ done }) => done));
      await (await opened?.catch(() => undefined))?.close();
    },
  };
}

async function* streamed(
  { store, path }: StoredPlace,
  options: NonNullable<Parameters<Store['stream']>[1]>,
): AsyncGenerator<Uint8Array> {
  yield* (await store.stream(path, options)) as AsyncIterable<Uint8Array>;
}

/** Where a location's bytes lie as they are; undefined where a copy is made of them. */
function inPlace({ store, path }: StoredPlace, { cell }: MediaLocation): string | undefined {
  return cell === undefined ? store.localPath(path) : undefined;
}

/** What a location's bytes are found under as long as the file is the same. */
function nameOf(place: StoredPlace, { range, cell }: MediaLocation, state: FileState): string {
  const parts = [keyOf(place), state.version, state.sizeBytes, range, cell];
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex');
}

function keyOf({ store, path }: StoredPlace): string {
  return `${store.root}\n${path}`;
}

/** Forgets the oldest. */
class BoundedMap<K, V> extends Map<K, V> {
  readonly #maxSize: number;

  constructor(maxSize: number) {
    super();
    this.#maxSize = maxSize;
  }

  override set(key: K, value: V): this {
    this.delete(key);
    super.set(key, value);
    if (this.size > this.#maxSize) this.delete(this.keys().next().value!);
    return this;
  }
}

const MAX_STATES = 65_536;
/** Of columns without an index of pages, unpacked: what a cell needs is what those beside it need too. */
const MAX_COLUMN_BYTES = 256 * 2 ** 20;
/** Their metadata may take megabytes. */
const MAX_TABLES = 16;
const MAX_ATTEMPTS = 3;
/** Smaller parts of a table are read anew each time. */
const MIN_COPY_BYTES = 256 * 1024;
