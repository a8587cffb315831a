import type { FileHandle } from 'node:fs/promises';

/** Node 20 aborts the whole process for a read of 2^31 bytes or more; Linux itself gives at most 2^31 - 4096. */
const MAX_READ_BYTES = 2 ** 30;

/**
 * `length` bytes from `at` on, in memory of their own that any typed array can lie over.
 * @throws Error where the file ends early; what reading throws
 */
export async function readRange(
  handle: Pick<FileHandle, 'read'>,
  at: number,
  length: number,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  for (let filled = 0; filled < length;) {
    const wanted = Math.min(length - filled, MAX_READ_BYTES);
    const { bytesRead } = await handle.read(bytes, filled, wanted, at + filled);
    if (bytesRead === 0) throw new Error(`it ends ${length - filled} bytes early`);
    filled += bytesRead;
  }
  return bytes;
}
