/**
 * A folder of files by the SHA-256 of their bytes, of a bounded size, that several processes share without talking to
 * each other. What is in use is held by a hard link, which the system counts: a file with a second name is never
 * thrown out, and a name that is thrown out takes no bytes from whoever holds another one.
 *
 *     content/<sha256>     the files; the time of change is that of the last use
 *     names/<key>          symbolic links whose target is the SHA-256 of what was found under a name
 *     process-<owner>/     what one process is writing and what it holds; removed once the process is dead
 */

import { createHash } from 'node:crypto';
import { unlinkSync } from 'node:fs';
import {
  copyFile,
  link,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readlink,
  rename,
  rm,
  stat,
  symlink,
  unlink,
  utimes,
} from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDead, ownName } from './cache-owner.ts';
import { StorageError } from './store.ts';

/** A file that stays where it is until it is let go. */
export interface HeldFile {
  readonly path: string;
  readonly release: () => void;
}

export interface CacheFolder {
  /** The file with that SHA-256, if it is here. */
  hold(sha256: string): Promise<HeldFile | undefined>;
  /** The SHA-256 that {@link CacheFolder.name} has put under a key. */
  find(key: string): Promise<string | undefined>;
  /** Puts a file's SHA-256 under a key. */
  name(key: string, sha256: string): Promise<void>;
  /**
   * Takes a file in: `chunks` gives its bytes, as many as `sizeBytes` says, and they appear all or not at all. Others
   * go to make room, the least lately used first. Gives its SHA-256.
   * @throws StorageError STORAGE_FULL, CACHE_TOO_SMALL, CACHE_FULL, STORAGE_CHANGED where `sha256` is another one;
   *   what `chunks` throws
   */
  add(
    chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
    options: {
      readonly sizeBytes: number;
      /** What the file is, for messages. */
      readonly what: string;
      readonly sha256?: string | undefined;
      readonly signal?: AbortSignal | undefined;
    },
  ): Promise<string>;
  /** Lets everything go. */
  close(): Promise<void>;
}

export interface CacheFolderOptions {
  readonly folder: string;
  /** Of everything in it. With several processes at once, each may go over by a thirty-second of it. */
  readonly maxBytes: number;
  /** How long to wait for room while all of it is in use (60 s by default). */
  readonly waitMs?: number;
}

/** Opens the folder, made if it is not there, and removes what dead processes left. */
export async function openCacheFolder(options: CacheFolderOptions): Promise<CacheFolder> {
  const { folder, maxBytes, waitMs = 60_000 } = options;
  const [content, names] = [join(folder, 'content'), join(folder, 'names')];
  const own = await prepare(folder).catch((error: unknown) => {
    throw diskError(folder, error);
  });
  // Where only the time can tell that a process is dead (another machine), this one says that it is not.
  const heartbeat = setInterval(() => {
    utimes(own, new Date(), new Date()).catch(() => undefined); // the folder was taken for a dead one's: what it held is gone
  }, HEARTBEAT_MS);
  heartbeat.unref();

  let numNames = 0;
  let reservedBytes = 0; // of files that are being written
  let usedBytes = Infinity; // as last seen, with what was added since
  let unseenBytes = 0; // added since others' use was last looked at
  let turn: Promise<unknown> = Promise.resolve();

  /** Waits until `sizeBytes` more fit, and reserves them. One caller at a time. */
  const makeRoom = async (sizeBytes: number, what: string, signal?: AbortSignal): Promise<void> => {
    if (sizeBytes > maxBytes) {
      throw new StorageError(
        'CACHE_TOO_SMALL',
        `${what} has ${sizeBytes} bytes and the cache in ${folder} takes ${maxBytes} in all: give it more room`,
      );
    }
    signal?.throwIfAborted();
    const fits = (): boolean => usedBytes + reservedBytes + sizeBytes <= maxBytes;
    const deadline = performance.now() + waitMs;
    while (!fits() || unseenBytes + sizeBytes > maxBytes / 32) {
      signal?.throwIfAborted();
      const leaveBytes = maxBytes - reservedBytes - sizeBytes;
      usedBytes = await trim({ folder, own, maxBytes: leaveBytes }).catch((error: unknown) => {
        throw diskError(folder, error);
      });
      unseenBytes = 0;
      if (fits()) break;
      if (performance.now() > deadline) {
        throw new StorageError(
          'CACHE_FULL',
          `${what} has found no room in the cache in ${folder} for ${waitMs / 1000} s: all of its ${maxBytes} bytes ` +
            'are in use. Give it more room, or fetch less ahead.',
          { retryable: true },
        );
      }
      await sleep(WAIT_MS, undefined, signal === undefined ? {} : { signal });
    }
    reservedBytes += sizeBytes;
  };

  return {
    async hold(sha256) {
      const [from, path] = [join(content, sha256), join(own, `held-${numNames++}`)];
      try {
        await link(from, path).catch(async (error: unknown) => {
          if (isGone(error)) throw error;
          await copyFile(from, path); // a file system without links
        });
        await utimes(path, new Date(), new Date());
      } catch (error) {
        if (isGone(error)) return undefined;
        throw diskError(folder, error);
      }
      return {
        path,
        release: () => {
          unlinkQuietly(path);
        },
      };
    },
    async find(key) {
      return readlink(join(names, key)).catch(() => undefined);
    },
    async name(key, sha256) {
      const temporary = join(own, `name-${numNames++}`);
      try {
        await symlink(sha256, temporary);
        await rename(temporary, join(names, key));
      } catch (error) {
        throw diskError(folder, error);
      }
    },
    async add(chunks, { sizeBytes, what, sha256, signal }) {
      const room = turn.then(() => makeRoom(sizeBytes, what, signal));
      turn = room.catch(() => undefined);
      await room;
      const temporary = join(own, `part-${numNames++}`);
      try {
        const found = await write(temporary, chunks, { sizeBytes, folder, signal });
        if (sha256 !== undefined && found !== sha256) {
          throw new StorageError(
            'STORAGE_CHANGED',
            `${what} is not the file that was indexed (SHA-256 ${found.slice(0, 12)} instead of ${sha256.slice(0, 12)}): ` +
              'index it again',
          );
        }
        await rename(temporary, join(content, found)).catch((error: unknown) => {
          throw diskError(folder, error);
        });
        usedBytes += sizeBytes;
        unseenBytes += sizeBytes;
        return found;
      } catch (error) {
        await rm(temporary, { force: true });
        throw error;
      } finally {
        reservedBytes -= sizeBytes;
      }
    },
    async close() {
      clearInterval(heartbeat);
      await rm(own, { recursive: true, force: true });
    },
  };
}

/** Makes the folders; gives the one that is this process's alone. */
async function prepare(folder: string): Promise<string> {
  for (const name of ['content', 'names'])
    await mkdir(join(folder, name), { recursive: true, mode: 0o700 });
  const own = await mkdtemp(join(folder, `process-${ownName()}-`));
  await sweep(folder, own);
  return own;
}

/** Writes a file and gives its SHA-256. */
async function write(
  path: string,
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  options: { sizeBytes: number; folder: string; signal: AbortSignal | undefined },
): Promise<string> {
  const { sizeBytes, folder, signal } = options;
  const hash = createHash('sha256');
  const onDisk = async <T>(call: Promise<T>): Promise<T> =>
    call.catch((error: unknown) => {
      throw diskError(folder, error);
    });
  const handle = await onDisk(open(path, 'wx', 0o600));
  try {
    await onDisk(handle.truncate(sizeBytes)); // other processes see how large it is going to be
    let at = 0;
    for await (const chunk of chunks) {
      signal?.throwIfAborted();
      hash.update(chunk);
      for (let done = 0; done < chunk.length;) {
        const { bytesWritten } = await onDisk(
          handle.write(chunk, done, chunk.length - done, at + done),
        );
        done += bytesWritten;
      }
      at += chunk.length;
    }
    if (at !== sizeBytes) await onDisk(handle.truncate(at));
  } finally {
    await handle.close();
  }
  return hash.digest('hex');
}

/**
 * Throws out what was not used for longest until what is left takes at most `maxBytes`, or all of it is in use, and
 * what dead processes left. Gives the bytes that are left, without what this process is writing.
 */
async function trim({
  folder,
  own,
  maxBytes,
}: {
  readonly folder: string;
  readonly own: string;
  readonly maxBytes: number;
}): Promise<number> {
  const files = await filesIn(join(folder, 'content'));
  const seen = new Set(files.map(({ inode }) => inode));
  let usedBytes = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  for (const process of await sweep(folder, own)) {
    for (const { path, inode, sizeBytes } of await filesIn(process)) {
      const isCounted = seen.has(inode) || (process === own && path.includes('/part-'));
      if (!isCounted) usedBytes += sizeBytes;
      seen.add(inode);
    }
  }

  // Some room to spare, so that not every file that comes in has to look at all the others.
  const lowBytes = usedBytes > maxBytes ? maxBytes - maxBytes / 32 : maxBytes;
  const leavable = files
    .filter(({ numNames }) => numNames === 1)
    .sort((a, b) => a.usedAtMs - b.usedAtMs);
  let numLeft = 0;
  for (const { path, sizeBytes } of leavable) {
    if (usedBytes <= lowBytes) break;
    await unlink(path).catch(() => undefined); // another process was faster
    usedBytes -= sizeBytes;
    numLeft++;
  }
  if (numLeft > 0) await forgetNames(folder);
  return usedBytes;
}

/** Removes what dead processes left; gives the folders of the living. */
async function sweep(folder: string, own: string): Promise<string[]> {
  const living: string[] = [];
  for (const name of await readdir(folder)) {
    if (!name.startsWith('process-')) continue;
    const path = join(folder, name);
    if (path !== own && (await isDead(name.slice('process-'.length), path)))
      await rm(path, { recursive: true, force: true });
    else living.push(path);
  }
  return living;
}

/** Removes the names of what is no longer here. */
async function forgetNames(folder: string): Promise<void> {
  const names = await readdir(join(folder, 'names'));
  await inGroups(names, async (name) => {
    const path = join(folder, 'names', name);
    const sha256 = await readlink(path).catch(() => undefined); // another process was faster
    const isHere =
      sha256 === undefined ||
      (await stat(join(folder, 'content', sha256)).then(
        () => true,
        () => false,
      ));
    if (!isHere) await rm(path, { force: true });
  });
}

interface SeenFile {
  readonly path: string;
  readonly inode: number;
  readonly numNames: number;
  readonly sizeBytes: number;
  readonly usedAtMs: number;
}

async function filesIn(folder: string): Promise<SeenFile[]> {
  const names = await readdir(folder).catch((): string[] => []);
  const files: SeenFile[] = [];
  await inGroups(names, async (name) => {
    const path = join(folder, name);
    const stats = await stat(path).catch(() => undefined); // gone by now
    if (stats?.isFile() !== true) return;
    const { ino: inode, nlink: numNames, size: sizeBytes, mtimeMs: usedAtMs } = stats;
    files.push({ path, inode, numNames, sizeBytes, usedAtMs });
  });
  return files;
}

async function inGroups<T>(items: readonly T[], call: (item: T) => Promise<void>): Promise<void> {
  for (let start = 0; start < items.length; start += STATS_AT_ONCE)
    await Promise.all(items.slice(start, start + STATS_AT_ONCE).map(call));
}

function unlinkQuietly(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (!isGone(error)) throw error;
  }
}

function isGone(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === 'ENOENT';
}

function diskError(folder: string, cause: unknown): unknown {
  const { code } = cause as NodeJS.ErrnoException;
  if (code === 'ENOSPC' || code === 'EDQUOT' || code === 'EFBIG') {
    return new StorageError(
      'STORAGE_FULL',
      `there is no room left for the media cache in ${folder} (${code}): free some, give it a smaller size, or put it ` +
        'on another disk',
      { cause },
    );
  }
  if (code === undefined) return cause;
  return new StorageError(
    'STORAGE_FAILED',
    `the media cache in ${folder} cannot be written (${code}): give this user the right to, or choose another folder`,
    { cause },
  );
}

const HEARTBEAT_MS = 10 * 60_000;
const WAIT_MS = 100;
const STATS_AT_ONCE = 64;
