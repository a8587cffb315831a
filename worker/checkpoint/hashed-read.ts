import type { Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';

/** A file is read and hashed in such pieces. */
const READ_BYTES = 4 << 20;

/**
 * The bytes of a file, piece by piece as they go into `hash`: large files are read once, and what is used of them is what
 * was hashed.
 */
export async function* hashedRead(
  file: string,
  hash: Hash,
  onPiece?: () => void,
): AsyncGenerator<Buffer, void, undefined> {
  const pieces = createReadStream(file, { highWaterMark: READ_BYTES }) as AsyncIterable<Buffer>;
  for await (const piece of pieces) {
    hash.update(piece);
    onPiece?.();
    yield piece;
  }
}
