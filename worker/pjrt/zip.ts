import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { PassThrough, Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createInflateRaw } from 'node:zlib';

/**
 * Extracts one file of a zip archive (stored or deflated, not zip64) to `destination` and gives its SHA-256 in hex.
 * Source: APPNOTE.TXT 6.3.10, secs. 4.3.7, 4.3.12 and 4.3.16.
 * @throws Error when the archive is damaged or has no such file
 */
export async function extractFromZip(
  archive: string,
  name: string,
  destination: string,
): Promise<string> {
  const { offset, compressedSize, method } = await findEntry(archive, name);
  if (method !== STORED && method !== DEFLATED) {
    throw new Error(
      `${name} in ${archive} is packed with method ${method}, which is not supported`,
    );
  }
  const hash = createHash('sha256');
  await pipeline(
    createReadStream(archive, { start: offset, end: offset + compressedSize - 1 }),
    method === DEFLATED ? createInflateRaw() : new PassThrough(),
    new Transform({
      transform(chunk: Buffer, _encoding, done) {
        hash.update(chunk);
        done(null, chunk);
      },
    }),
    createWriteStream(destination, { flush: true }),
  );
  return hash.digest('hex');
}

const STORED = 0;
const DEFLATED = 8;
const END_RECORD_BYTES = 22;
const MAX_COMMENT_BYTES = 0xffff;

async function findEntry(
  archive: string,
  name: string,
): Promise<{ offset: number; compressedSize: number; method: number }> {
  const file = await open(archive);
  try {
    const read = async (position: number, length: number): Promise<Buffer> => {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, position);
      if (bytesRead < length) throw new Error(`${archive} is cut short`);
      return buffer;
    };

    const { size } = await file.stat();
    const tailBytes = Math.min(size, END_RECORD_BYTES + MAX_COMMENT_BYTES);
    const tail = await read(size - tailBytes, tailBytes);
    const end = tail.lastIndexOf(Buffer.from([0x50, 0x4b, 5, 6]));
    if (end < 0 || end + END_RECORD_BYTES > tail.length) {
      throw new Error(`${archive} is not a zip archive`);
    }
    const directory = await read(tail.readUInt32LE(end + 16), tail.readUInt32LE(end + 12));

    for (let at = 0; at + 46 <= directory.length;) {
      if (directory.readUInt32LE(at) !== 0x02014b50) break;
      const nameLength = directory.readUInt16LE(at + 28);
      if (directory.toString('utf8', at + 46, at + 46 + nameLength) === name) {
        const header = directory.readUInt32LE(at + 42);
        const local = await read(header, 30);
        return {
          // The local header's own lengths of name and extra field may differ from the directory's.
          offset: header + 30 + local.readUInt16LE(26) + local.readUInt16LE(28),
          compressedSize: directory.readUInt32LE(at + 20),
          method: directory.readUInt16LE(at + 10),
        };
      }
      at += 46 + nameLength + directory.readUInt16LE(at + 30) + directory.readUInt16LE(at + 32);
    }
    throw new Error(`${archive} has no file ${name}`);
  } finally {
    await file.close();
  }
}
