import type { Readable } from 'node:stream';
import { VideoloomError } from '../../proto/errors.ts';

/** A file of a store. */
export interface StoredFile {
  /** Relative to the store's root, with `/`. */
  readonly path: string;
  readonly sizeBytes: number;
}

/** A part of a file. */
export interface ByteRange {
  readonly offset: number;
  readonly sizeBytes: number;
}

/** What a store says of a file. */
export interface FileState {
  readonly sizeBytes: number;
  /** Another one once the file has changed, as far as the store can tell: its ETag, or its time of change. */
  readonly version: string;
}

/** What every reading call takes. */
export interface ReadOptions {
  /** As {@link Store.stat} gave it. @throws StorageError STORAGE_CHANGED where the file is another one by now. */
  readonly version?: string;
  readonly signal?: AbortSignal;
}

/** A folder of files, wherever it is. Paths are relative to its root and never lead out of it. */
export interface Store {
  /** The folder or URL that it was opened with. */
  readonly root: string;
  /**
   * All files below the root, by code unit of their paths; hidden ones are left out.
   * @param onOutside is called with the path of each link that leads out of the root, which is left out too
   * @throws StorageError STORE_UNLISTABLE where the store cannot tell (plain HTTP)
   */
  list(signal?: AbortSignal, onOutside?: (path: string) => void): AsyncIterable<StoredFile>;
  /** @throws StorageError NOT_FOUND, and what every call throws. */
  sizeOf(path: string, signal?: AbortSignal): Promise<number>;
  stat(path: string, signal?: AbortSignal): Promise<FileState>;
  /**
   * All of a file or a part of it, in memory.
   * @throws StorageError TOO_LARGE beyond `maxBytes` (256 MiB by default), RANGE_OUTSIDE where the file ends before
   */
  read(
    path: string,
    options?: ReadOptions & { range?: ByteRange; maxBytes?: number },
  ): Promise<Uint8Array>;
  /** The bytes from `offset` on, all or `sizeBytes` of them. @throws StorageError RANGE_OUTSIDE where there are fewer */
  stream(
    path: string,
    options?: ReadOptions & { offset?: number; sizeBytes?: number },
  ): Promise<Readable>;
  /** Where the file really lies on this machine, links followed; undefined for a store that is elsewhere. */
  localPath(path: string): string | undefined;
}

/** A store that does not give what is asked of it; the message names the file and the cure. */
export class StorageError extends VideoloomError {}

/** What {@link Store.read} gives at most, unless told otherwise. */
export const MAX_READ_BYTES = 256 * 2 ** 20;

/** That something is larger than what may be held in memory. */
export function tooLarge(what: string, sizeBytes: number, maxBytes: number): StorageError {
  return new StorageError(
    'TOO_LARGE',
    `${what} has ${sizeBytes} bytes, and ${maxBytes} are the most that are read at once: leave it out, or split it up`,
  );
}

/** That a file ends before the part of it that was asked for. */
export function rangeOutside(what: string, range: ByteRange, sizeBytes: number): StorageError {
  return new StorageError(
    'RANGE_OUTSIDE',
    `${what} has ${sizeBytes} bytes, and bytes ${range.offset} to ${range.offset + range.sizeBytes} of it were asked ` +
      'for: it was cut short or replaced; index it again',
  );
}

/** That a file is not the one that was looked at before. */
export function fileChanged(what: string): StorageError {
  return new StorageError(
    'STORAGE_CHANGED',
    `${what} has changed while it was in use: index it again, and leave files of a running job alone`,
  );
}
