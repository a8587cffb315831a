import { join } from 'node:path';
import { openFrameDisk, type FrameDisk } from './frame-disk.ts';
import { openDecoderPool, type DecoderPool } from '../decode/decoder.ts';
import { openMediaCache, type MediaCache } from '../storage/media-cache.ts';
import { openStore } from '../storage/open.ts';
import type { Store } from '../storage/store.ts';

/** All that it takes to read data: the files, copies of those that are elsewhere, and processes that decode them. */
export interface DataAccess {
  readonly store: Store;
  readonly media: MediaCache;
  readonly pool: DecoderPool;
  /** Absent: none are kept. */
  readonly frames: FrameDisk | undefined;
  /** Whether bytes are on their way and there is nothing to decode until they come. */
  isOnlyFetching(): boolean;
  /** Grows with every frame that is decoded and every piece of a file that comes. */
  progress(): number;
  close(): Promise<void>;
}

export interface DataAccessOptions {
  /** A folder, `http(s)://` or `s3://bucket/prefix`. */
  readonly root: string;
  /** Decoder processes. */
  readonly decoders: number;
  readonly decodeTimeoutSeconds?: number;
  /** Bound of the copies on this machine of files that are elsewhere. */
  readonly mediaCacheBytes?: number;
  /** Bound of the decoded frames on this machine's disk; 0 keeps none. */
  readonly frameDiskBytes?: number;
  /** Whether addresses of private networks may be read from, as a store of one's own has. */
  readonly allowPrivateHosts?: boolean;
  /** The user's cache. */
  readonly cacheDir: string;
}

/** @throws StorageError URL_REFUSED; DecodeError DECODER_UNAVAILABLE */
export async function openDataAccess(options: DataAccessOptions): Promise<DataAccess> {
  const { root, decoders, decodeTimeoutSeconds = 30, mediaCacheBytes = 10 * 2 ** 30 } = options;
  const frameDiskBytes = options.frameDiskBytes ?? 0;
  const frames =
    frameDiskBytes === 0
      ? undefined
      : openFrameDisk({ folder: join(options.cacheDir, 'frames'), maxBytes: frameDiskBytes });
  const network = { allowPrivate: options.allowPrivateHosts ?? false };
  const store = openStore(root, network);
  const folder = join(options.cacheDir, 'media');
  const media = openMediaCache({ folder, maxBytes: mediaCacheBytes, store, options: network });
  const pool = await openDecoderPool({
    numProcesses: decoders,
    timeoutMs: decodeTimeoutSeconds * 1000,
  });
  return {
    store,
    media,
    pool,
    frames,
    isOnlyFetching: () => pool.numBusy === 0 && media.stats.numFetching > 0,
    progress: () => pool.stats.numDecoded + media.stats.fetchedBytes,
    async close() {
      await Promise.all([pool.close(), media.close(), frames?.close()]);
    },
  };
}
