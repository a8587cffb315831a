import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { openCacheFolder, type CacheFolder } from '../storage/cache-folder.ts';
import { StorageError } from '../storage/store.ts';

/**
 * Decoded frames on disk, shared by the processes of a host and by runs: a clip that is looked at in the same way every
 * epoch is decoded once. Reading raw frames costs a small part of decoding them, and takes many times the room of H.264.
 */
export interface FrameDisk {
  /** What was put under a key; undefined where it is not there, or is not what was put. */
  get(key: string): Promise<Uint8Array | undefined>;
  /** Keeps frames while there is room for them; the least lately used go first. A full disk keeps none. */
  put(key: string, frames: Uint8Array): Promise<void>;
  close(): Promise<void>;
}

/** The folder is made when it is first needed. */
export function openFrameDisk(options: { folder: string; maxBytes: number }): FrameDisk {
  let opened: Promise<CacheFolder> | undefined;
  const cacheFolder = (): Promise<CacheFolder> => (opened ??= openCacheFolder(options));
  const underWay = new Set<Promise<void>>();
  const write = async (key: string, frames: Uint8Array): Promise<void> => {
    try {
      const cache = await cacheFolder();
      const sizeBytes = frames.byteLength;
      await cache.name(key, await cache.add([frames], { sizeBytes, what: 'decoded frames' }));
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
    }
  };
  return {
    async get(key) {
      try {
        const cache = await cacheFolder();
        const sha256 = await cache.find(key);
        const held = sha256 === undefined ? undefined : await cache.hold(sha256);
        if (held === undefined) return undefined;
        try {
          const frames = await readFile(held.path);
          return createHash('sha256').update(frames).digest('hex') === sha256 ? frames : undefined;
        } finally {
          held.release();
        }
      } catch (error) {
        if (error instanceof StorageError) return undefined;
        throw error;
      }
    },
    async put(key, frames) {
      const writing = write(key, frames);
      underWay.add(writing);
      await writing.finally(() => underWay.delete(writing));
    },
    async close() {
      await Promise.all(underWay);
      await (await opened?.catch(() => undefined))?.close();
    },
  };
}
