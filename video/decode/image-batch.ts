/** Many pictures in one request, in the decoder processes: few reads, and pixels that go nowhere but to their place. */
import { close as closeFile, open as openFile, readSync } from 'node:fs';
import { promisify } from 'node:util';
import { planReads, type PlannedRead } from '../loading/coalesced-reads.ts';
import { DecodeError, type DecodeErrorCode } from './decode-error.ts';
import type { ImageBatchRequest } from './decoder-backend.ts';
import { decodeImageInto, MAX_FILE_BYTES, readImage } from './image-backend.ts';
import type { ByteRange } from '../storage/store.ts';

/** A picture of a batch that cannot be decoded, by its place in it. */
export interface ImageFault {
  readonly place: number;
  readonly code: DecodeErrorCode;
  readonly message: string;
}

const READS = { maxSpread: 3, maxReadBytes: 2 ** 20 } as const;

/** Fills `frames`, RGB [N, height, width, 3]; frames of pictures that are listed as faulty hold anything. */
export async function decodeImages(
  { places, framing }: ImageBatchRequest,
  frames: Uint8Array,
): Promise<ImageFault[]> {
  const faults: ImageFault[] = [];
  const frameBytes = framing.width * framing.height * 3;
  const decodeOne = async (place: number, known: Buffer | undefined): Promise<void> => {
    const request = { ...places[place]!, ...framing };
    try {
      const frame = frames.subarray(place * frameBytes, (place + 1) * frameBytes);
      await decodeImageInto(request, known ?? (await readImage(request)), frame);
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      faults.push({ place, code: error.code, message: error.message });
    }
  };

  // Parts of files together; whole files, and what is too large to be read, one by one.
  const parts: { place: number; path: string; range: ByteRange }[] = [];
  for (const [place, { path, range }] of places.entries()) {
    if (range === undefined || range.sizeBytes > MAX_FILE_BYTES) await decodeOne(place, undefined);
    else parts.push({ place, path, range });
  }
  const opened = new Map<string, number | undefined>();
  try {
    for (const read of planReads(parts, READS)) {
      if (!opened.has(read.path)) {
        opened.set(read.path, await promisify(openFile)(read.path, 'r').catch(() => undefined));
      }
      const bytes = readStretch(opened.get(read.path), read);
      for (const part of read.parts) {
        const { place, range } = parts[part]!;
        const start = range.offset - read.offset;
        const isThere = start + range.sizeBytes <= bytes.length;
        // What is not there is looked for once more by itself, which says what is wrong.
        await decodeOne(
          place,
          isThere ? bytes.subarray(start, start + range.sizeBytes) : undefined,
        );
      }
    }
  } finally {
    for (const file of opened.values()) {
      if (file !== undefined) await promisify(closeFile)(file);
    }
  }
  return faults;
}

let buffer = Buffer.alloc(0);

/** As much of a stretch as there is; valid until the next call. */
function readStretch(file: number | undefined, { offset, sizeBytes }: PlannedRead): Buffer {
  if (file === undefined) return buffer.subarray(0, 0);
  if (buffer.length < sizeBytes)
    buffer = Buffer.allocUnsafeSlow(Math.max(sizeBytes, READS.maxReadBytes));
  let filled = 0;
  try {
    while (filled < sizeBytes) {
      const numRead = readSync(file, buffer, filled, sizeBytes - filled, offset + filled);
      if (numRead === 0) break;
      filled += numRead;
    }
  } catch {
    // A disk that fails: as for a file that ends here.
  }
  return buffer.subarray(0, filled);
}
