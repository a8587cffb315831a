/** Where a media file's bytes are: a file, or a part of one, as a member of a tar shard is. */
import { open } from 'node:fs/promises';
import type { ByteRange } from '../storage/store.ts';
import { DecodeError, type DecodeErrorCode } from './decode-error.ts';

export interface MediaPlace {
  readonly path: string;
  /** The part of the file that is meant; absent: all of it. Nothing outside of it is read. */
  readonly range?: ByteRange | undefined;
}

/** How messages call a place. */
export function placeName({ path, range }: MediaPlace): string {
  return range ? `${path} (bytes ${range.offset} to ${range.offset + range.sizeBytes})` : path;
}

/**
 * The URL by which FFmpeg opens a place, and the protocols that this takes, for its whitelist.
 * Source: ffmpeg.org/ffmpeg-protocols.html#subfile.
 * @throws DecodeError VIDEO_UNREADABLE if the range is empty: `subfile` would take its end for "to the end of the file".
 */
export function ffmpegInput(place: MediaPlace): {
  readonly url: string;
  readonly protocols: string;
} {
  const { path, range } = place;
  if (!range) return { url: `file:${path}`, protocols: 'file' };
  if (range.sizeBytes <= 0) {
    throw new DecodeError('VIDEO_UNREADABLE', path, `${placeName(place)} is empty`);
  }
  const end = range.offset + range.sizeBytes;
  return {
    url: `subfile,,start,${range.offset},end,${end},,:file:${path}`,
    protocols: 'subfile,file',
  };
}

/**
 * All bytes of a place.
 * @throws DecodeError with one of `codes`: `missing` if there is no such file, `tooLarge` if it has more than
 * `maxBytes`, `unreadable` if it cannot be read or the file ends before the range does.
 */
export async function readPlace(
  place: MediaPlace,
  maxBytes: number,
  codes: Readonly<Record<'missing' | 'tooLarge' | 'unreadable', DecodeErrorCode>>,
): Promise<Buffer> {
  const fail = (code: DecodeErrorCode, what: string, cause?: unknown): never => {
    throw new DecodeError(code, place.path, `${placeName(place)} ${what}`, cause);
  };
  const file = await open(place.path).catch((cause: unknown) =>
    (cause as { code?: string }).code === 'ENOENT'
      ? fail(codes.missing, 'does not exist', cause)
      : fail(codes.unreadable, `cannot be opened: ${String(cause)}`, cause),
  );
  try {
    const { offset, sizeBytes } = place.range ?? { offset: 0, sizeBytes: (await file.stat()).size };
    if (sizeBytes > maxBytes) {
      fail(codes.tooLarge, `has ${sizeBytes} bytes; at most ${maxBytes} are read`);
    }
    const bytes = Buffer.alloc(sizeBytes);
    for (let at = 0; at < sizeBytes;) {
      const { bytesRead } = await file.read(bytes, at, sizeBytes - at, offset + at);
      if (bytesRead === 0) fail(codes.unreadable, `ends after ${at} of its ${sizeBytes} bytes`);
      at += bytesRead;
    }
    return bytes;
  } catch (cause) {
    if (cause instanceof DecodeError) throw cause;
    return fail(codes.unreadable, `cannot be read: ${String(cause)}`, cause);
  } finally {
    await file.close();
  }
}
