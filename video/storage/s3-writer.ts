import { createHash, type Hash } from 'node:crypto';
import { open, type FileHandle } from 'node:fs/promises';
import type { CompletedPart } from '@aws-sdk/client-s3';
import { checkPath, redactUrl } from './paths.ts';
import { withStallLimit } from './remote.ts';
import { retrying } from './retry.ts';
import { attempt, openClient, parseS3Url, shown, type S3, type S3Options } from './s3.ts';
import { fileChanged } from './store.ts';

/** Puts objects below an `s3://bucket/prefix` and removes them. An object is there whole or not at all. */
export interface S3Writer {
  /** With the password of its URL taken out. */
  readonly root: string;
  /** @throws StorageError */
  put(path: string, bytes: Uint8Array, signal?: AbortSignal): Promise<void>;
  /**
   * Puts a local file, in parts where it is large, so that any size fits into the same memory.
   * @throws StorageError STORAGE_CHANGED where the file does not have the SHA-256; nothing is put then
   */
  putFile(path: string, file: LocalFile, signal?: AbortSignal): Promise<void>;
  /** An object that is not there is no error. @throws StorageError */
  remove(path: string, signal?: AbortSignal): Promise<void>;
  close(): void;
}

/** A file to be put. */
export interface LocalFile {
  readonly path: string;
  readonly sizeBytes: number;
  /** Of the bytes that are meant, hex. */
  readonly sha256: string;
}

export interface S3WriterOptions extends S3Options {
  /** Told of every part that the server has. */
  readonly onProgress?: (numBytes: number) => void;
  /** Files that are larger go in parts of this size (16 MiB by default, 5 MiB are the least that S3 takes). */
  readonly partBytes?: number;
}

const PART_BYTES = 16 << 20;
/** The most that S3 takes of an object. */
const MAX_PARTS = 10_000;

/**
 * Credentials and endpoint come from where `openS3Store` takes them. Every transfer bears an MD5, so that the server
 * refuses what was damaged on its way.
 * @throws StorageError URL_REFUSED
 */
export function openS3Writer(root: string, options: S3WriterOptions = {}): S3Writer {
  const { bucket, key } = parseS3Url(root, options);
  const prefix = key === '' || key.endsWith('/') ? key : `${key}/`;
  const { onProgress = () => undefined } = options;
  let opened: Promise<S3> | undefined;

  /** Makes one call as often as it takes. */
  const call = async <T>(
    path: string,
    signal: AbortSignal | undefined,
    send: (s3: S3, place: { Bucket: string; Key: string }, signal: AbortSignal) => Promise<T>,
  ): Promise<T> => {
    const place = { bucket, key: prefix + checkPath(path) };
    const s3 = await (opened ??= openClient());
    const what = shown(place);
    return retrying(what, { ...options, signal }, () =>
      withStallLimit(what, { ...options, signal }, (limit) =>
        limit.waitFor(() =>
          attempt(place, () => send(s3, { Bucket: bucket, Key: place.key }, limit.signal)),
        ),
      ),
    );
  };

  const put = async (path: string, bytes: Uint8Array, signal?: AbortSignal): Promise<void> => {
    const body = { Body: bytes, ContentLength: bytes.byteLength, ContentMD5: md5Of(bytes) };
    await call(path, signal, ({ sdk, s3 }, place, abortSignal) =>
      s3.send(new sdk.PutObjectCommand({ ...place, ...body }), { abortSignal }),
    );
    onProgress(bytes.byteLength);
  };

  const putParts = async (
    path: string,
    parts: AsyncIterable<Uint8Array>,
    signal?: AbortSignal,
  ): Promise<void> => {
    const { UploadId } = await call(path, signal, ({ sdk, s3 }, place, abortSignal) =>
      s3.send(new sdk.CreateMultipartUploadCommand(place), { abortSignal }),
    );
    try {
      const completed: CompletedPart[] = [];
      for await (const bytes of parts) {
        const PartNumber = completed.length + 1;
        const body = { Body: bytes, ContentLength: bytes.byteLength, ContentMD5: md5Of(bytes) };
        const { ETag } = await call(path, signal, ({ sdk, s3 }, place, abortSignal) =>
          s3.send(new sdk.UploadPartCommand({ ...place, UploadId, PartNumber, ...body }), {
            abortSignal,
          }),
        );
        completed.push({ PartNumber, ETag });
        onProgress(bytes.byteLength);
      }
      const MultipartUpload = { Parts: completed };
      await call(path, signal, ({ sdk, s3 }, place, abortSignal) =>
        s3.send(new sdk.CompleteMultipartUploadCommand({ ...place, UploadId, MultipartUpload }), {
          abortSignal,
        }),
      );
    } catch (error) {
      // Parts that nobody completes are paid for as long as they lie there.
      await call(path, undefined, ({ sdk, s3 }, place, abortSignal) =>
        s3.send(new sdk.AbortMultipartUploadCommand({ ...place, UploadId }), { abortSignal }),
      ).catch(() => undefined); // the bucket's lifecycle rule is left to do it
      throw error;
    }
  };

  return {
    root: redactUrl(root),
    put,
    async putFile(path, file, signal) {
      const least = options.partBytes ?? PART_BYTES;
      const partBytes = Math.max(least, Math.ceil(file.sizeBytes / MAX_PARTS));
      const parts = partsOf(file, partBytes);
      if (file.sizeBytes > partBytes) {
        await putParts(path, parts, signal);
        return;
      }
      const whole: Uint8Array[] = [];
      for await (const part of parts) whole.push(part);
      await put(path, Buffer.concat(whole), signal);
    },
    async remove(path, signal) {
      await call(path, signal, ({ sdk, s3 }, place, abortSignal) =>
        s3.send(new sdk.DeleteObjectCommand(place), { abortSignal }),
      );
    },
    close() {
      opened?.then(
        ({ s3 }) => {
          s3.destroy();
        },
        () => undefined, // told by the call that opened it
      );
    },
  };
}

/** A file's bytes; what comes after them tells that they were the right ones, or throws. */
async function* partsOf(
  { path, sizeBytes, sha256 }: LocalFile,
  partBytes: number,
): AsyncGenerator<Uint8Array> {
  const hash = createHash('sha256');
  const handle = await open(path, 'r');
  try {
    for (let at = 0; at < sizeBytes; at += partBytes)
      yield await readPart(handle, { at, length: Math.min(partBytes, sizeBytes - at) }, path, hash);
    const { size } = await handle.stat();
    if (size !== sizeBytes || hash.digest('hex') !== sha256) throw fileChanged(path);
  } finally {
    await handle.close();
  }
}

async function readPart(
  handle: FileHandle,
  { at, length }: { readonly at: number; readonly length: number },
  path: string,
  hash: Hash,
): Promise<Uint8Array> {
  const part = Buffer.allocUnsafe(length);
  for (let filled = 0; filled < length;) {
    const { bytesRead } = await handle.read(part, filled, length - filled, at + filled);
    if (bytesRead === 0) throw fileChanged(path);
    filled += bytesRead;
  }
  hash.update(part);
  return part;
}

function md5Of(bytes: Uint8Array): string {
  return createHash('md5').update(bytes).digest('base64');
}
