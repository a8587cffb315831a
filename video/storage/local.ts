import { realpathSync, type Dirent, type Stats } from 'node:fs';
import { open, opendir, realpath, stat } from 'node:fs/promises';
import { join, resolve, sep } from 'node:path';
import { Readable } from 'node:stream';
import { messageOf } from '../../proto/errors.ts';
import { checkPath, comparePaths, pathOutside } from './paths.ts';
import {
  fileChanged,
  MAX_READ_BYTES,
  rangeOutside,
  StorageError,
  tooLarge,
  type FileState,
  type ReadOptions,
  type Store,
  type StoredFile,
} from './store.ts';

/**
 * The files below a folder. Symbolic links are followed as long as what they lead to lies below it too; pipes, sockets
 * and devices are no files.
 */
export function openLocalStore(root: string): Store {
  const folder = resolve(root);
  const shown = (path: string): string => join(root, path);

  /** Where the file really is. */
  const locate = async (path: string): Promise<string> => {
    const wanted = join(folder, checkPath(path));
    const found = await attempt(shown(path), () =>
      Promise.all([realpath(folder), realpath(wanted)]),
    );
    return inside(path, found);
  };
  const stateOf = async (path: string, version?: string): Promise<FileState & { at: string }> => {
    const at = await locate(path);
    const stats = await attempt(shown(path), () => stat(at));
    if (!stats.isFile()) throw notFound(shown(path), 'is no file');
    const state = { at, sizeBytes: stats.size, version: versionOf(stats) };
    if (version !== undefined && version !== state.version) throw fileChanged(shown(path));
    return state;
  };

  return {
    root,
    async *list(signal, onOutside) {
      const top = await attempt(root, () => realpath(folder));
      yield* filesBelow({ path: '', real: top }, { top, chain: [top], shown, signal, onOutside });
    },
    async sizeOf(path) {
      return (await stateOf(path)).sizeBytes;
    },
    async stat(path) {
      const { sizeBytes, version } = await stateOf(path);
      return { sizeBytes, version };
    },
    async read(path, { range, maxBytes = MAX_READ_BYTES, version, signal } = {}) {
      const { at, sizeBytes } = await stateOf(path, version);
      const wanted = range ?? { offset: 0, sizeBytes };
      if (wanted.offset + wanted.sizeBytes > sizeBytes)
        throw rangeOutside(shown(path), wanted, sizeBytes);
      if (wanted.sizeBytes > maxBytes) throw tooLarge(shown(path), wanted.sizeBytes, maxBytes);
      signal?.throwIfAborted();
      return attempt(shown(path), () =>
        readRange(at, wanted.offset, wanted.sizeBytes, shown(path)),
      );
    },
    async stream(path, options: ReadOptions & { offset?: number; sizeBytes?: number } = {}) {
      const { offset = 0, signal } = options;
      const { at, sizeBytes } = await stateOf(path, options.version);
      const wanted = { offset, sizeBytes: options.sizeBytes ?? Math.max(0, sizeBytes - offset) };
      if (offset + wanted.sizeBytes > sizeBytes) throw rangeOutside(shown(path), wanted, sizeBytes);
      if (wanted.sizeBytes === 0) return Readable.from([]); // `end` below names the last byte: it cannot say "none"
      const handle = await attempt(shown(path), () => open(at, 'r'));
      return handle.createReadStream({
        start: offset,
        end: offset + wanted.sizeBytes - 1,
        highWaterMark: CHUNK_BYTES,
        ...(signal === undefined ? {} : { signal }),
      });
    },
    localPath(path) {
      const wanted = join(folder, checkPath(path));
      try {
        return inside(path, [realpathSync(folder), realpathSync(wanted)]);
      } catch (error) {
        throw storageError(shown(path), error);
      }
    },
  };
}

interface Walk {
  /** The root's real path. */
  readonly top: string;
  /** The real paths of the folders that are being walked: a link to one of them would never end. */
  readonly chain: readonly string[];
  readonly shown: (path: string) => string;
  readonly signal: AbortSignal | undefined;
  readonly onOutside: ((path: string) => void) | undefined;
}

async function* filesBelow(
  folder: { readonly path: string; readonly real: string },
  walk: Walk,
): AsyncGenerator<StoredFile> {
  const { chain, shown, signal } = walk;
  signal?.throwIfAborted();
  const found: Dirent[] = [];
  await attempt(shown(folder.path), async () => {
    for await (const entry of await opendir(folder.real, { bufferSize: 1024 }))
      if (!entry.name.startsWith('.')) found.push(entry);
  });
  const entries: Entry[] = [];
  for (let start = 0; start < found.length; start += STATS_AT_ONCE) {
    const some = found.slice(start, start + STATS_AT_ONCE);
    const looked = await Promise.all(some.map((entry) => lookAt(entry, folder, walk)));
    entries.push(...looked.filter((entry) => entry !== undefined));
  }
  // A folder's `/` takes part in the order of what is in it: `a-b` comes before `a/b`.
  entries.sort((a, b) => comparePaths({ path: a.key }, { path: b.key }));
  for (const { path, real, sizeBytes } of entries) {
    if (sizeBytes !== undefined) yield { path, sizeBytes };
    else if (!chain.includes(real))
      yield* filesBelow({ path, real }, { ...walk, chain: [...chain, real] });
  }
}

interface Entry {
  readonly path: string;
  readonly real: string;
  readonly key: string;
  /** Absent: a folder. */
  readonly sizeBytes?: number;
}

/** What an entry of a folder stands for; undefined for what is no file, leads out of the root or is gone by now. */
async function lookAt(
  entry: Dirent,
  folder: { readonly path: string; readonly real: string },
  { top, shown, onOutside }: Walk,
): Promise<Entry | undefined> {
  const path = folder.path === '' ? entry.name : `${folder.path}/${entry.name}`;
  try {
    const wanted = join(folder.real, entry.name);
    const real = entry.isSymbolicLink() ? await realpath(wanted) : wanted;
    if (!isBelow(real, top)) {
      onOutside?.(path);
      return undefined;
    }
    const stats = await stat(real);
    if (stats.isDirectory()) return { path, real, key: `${path}/` };
    return stats.isFile() ? { path, real, key: path, sizeBytes: stats.size } : undefined;
  } catch (error) {
    if (GONE.includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw storageError(shown(path), error);
  }
}

async function readRange(
  at: string,
  offset: number,
  sizeBytes: number,
  what: string,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(sizeBytes);
  const handle = await open(at, 'r');
  try {
    for (let filled = 0; filled < sizeBytes;) {
      const length = Math.min(sizeBytes - filled, CHUNK_BYTES);
      const { bytesRead } = await handle.read(bytes, filled, length, offset + filled);
      if (bytesRead === 0) throw rangeOutside(what, { offset, sizeBytes }, offset + filled);
      filled += bytesRead;
    }
  } finally {
    await handle.close();
  }
  return bytes;
}

function inside(path: string, [top, real]: readonly [string, string]): string {
  if (!isBelow(real, top)) throw pathOutside(path, 'is a link that leads out of the root');
  return real;
}

function isBelow(real: string, top: string): boolean {
  return real === top || real.startsWith(top.endsWith(sep) ? top : `${top}${sep}`);
}

function versionOf({ size, mtimeMs, ino }: Stats): string {
  return `${size}-${mtimeMs}-${ino}`;
}

async function attempt<T>(what: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw storageError(what, error);
  }
}

function storageError(what: string, cause: unknown): unknown {
  const { code } = cause as NodeJS.ErrnoException;
  if (cause instanceof StorageError || code === undefined) return cause;
  if (GONE.includes(code) || code === 'ENAMETOOLONG') return notFound(what, 'is not there', cause);
  if (code === 'EACCES' || code === 'EPERM') {
    return new StorageError(
      'STORAGE_DENIED',
      `${what} may not be read: give this user the right to (chmod), or run as another user`,
      { cause },
    );
  }
  return new StorageError(
    'STORAGE_FAILED',
    `${what} cannot be read: ${messageOf(cause)}. Look after the disk or the mount it lies on.`,
    { cause },
  );
}

function notFound(what: string, how: string, cause?: unknown): StorageError {
  return new StorageError(
    'NOT_FOUND',
    `${what} ${how}: correct the path, or index again if the file was moved`,
    { cause },
  );
}

const GONE = ['ENOENT', 'ENOTDIR', 'ELOOP'];
const CHUNK_BYTES = 1 << 20;
const STATS_AT_ONCE = 64;
