import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, rename, rm, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';

/** Makes the names in a folder survive a loss of power. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Writes a file, whole or in pieces, so that, whatever happens, either the old content is there or the new: temporary
 * file, fsync, rename, fsync of the folder.
 */
export async function writeFileDurably(
  path: string,
  content: string | Iterable<string | Uint8Array>,
  mode = 0o644,
): Promise<void> {
  const temporary = `${path}.tmp-${process.pid}`;
  try {
    const handle = await open(temporary, 'w', mode);
    try {
      await writeFile(handle, content);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  await syncFolder(dirname(path));
}

/** SHA-256 of a file's content or a part of it, lower-case hex, and how many bytes that are. */
export async function digestFile(
  path: string,
  range?: { readonly offset: number; readonly sizeBytes: number },
): Promise<{ sha256: string; sizeBytes: number }> {
  const hash = createHash('sha256');
  let sizeBytes = 0;
  if (range?.sizeBytes === 0) return { sha256: hash.digest('hex'), sizeBytes };
  const part =
    range === undefined ? {} : { start: range.offset, end: range.offset + range.sizeBytes - 1 };
  for await (const chunk of createReadStream(path, {
    highWaterMark: 1 << 20,
    ...part,
  }) as AsyncIterable<Buffer>) {
    hash.update(chunk);
    sizeBytes += chunk.length;
  }
  return { sha256: hash.digest('hex'), sizeBytes };
}
