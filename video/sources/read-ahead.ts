import type { Store, StoredFile } from '../storage/store.ts';

const MIN_BLOCK_BYTES = 64 * 2 ** 10;
const MAX_BLOCK_BYTES = 4 * 2 ** 20;

/** Small reads of one file in ascending order, out of blocks that are fetched ahead. */
export interface ReadAhead {
  /** The bytes, valid until the next call. The caller sees to it that they are within the file. */
  read(offset: number, sizeBytes: number): Promise<Uint8Array>;
}

/**
 * Reads of a file through one block in memory. The block grows while the reads lie close together, as in a shard of small
 * pictures (few requests), and shrinks when they jump over large members (few bytes).
 */
export function openReadAhead(
  store: Store,
  { path, sizeBytes: end }: StoredFile,
  signal?: AbortSignal,
): ReadAhead {
  let block: { readonly offset: number; readonly bytes: Uint8Array } | undefined;
  let blockBytes = MIN_BLOCK_BYTES;
  return {
    async read(offset, sizeBytes) {
      const skip = block && offset - block.offset;
      if (block && skip! >= 0 && skip! + sizeBytes <= block.bytes.length) {
        return block.bytes.subarray(skip, skip! + sizeBytes);
      }
      if (block) {
        const gap = Math.abs(offset - (block.offset + block.bytes.length));
        blockBytes =
          gap <= blockBytes ? Math.min(2 * blockBytes, MAX_BLOCK_BYTES) : MIN_BLOCK_BYTES;
      }
      const range = { offset, sizeBytes: Math.min(Math.max(blockBytes, sizeBytes), end - offset) };
      const bytes = await store.read(path, signal === undefined ? { range } : { range, signal });
      block = { offset, bytes };
      return bytes.subarray(0, sizeBytes);
    },
  };
}
