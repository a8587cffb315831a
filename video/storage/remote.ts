/** What stores over the network share: attempts, a limit on silence, transfers that go on where they broke off. */

import { Readable } from 'node:stream';
import { openRetries, retrying, type RetryOptions } from './retry.ts';
import {
  fileChanged,
  MAX_READ_BYTES,
  rangeOutside,
  StorageError,
  tooLarge,
  type FileState,
  type Store,
} from './store.ts';

export interface RemoteOptions extends RetryOptions {
  /** How long a server may be silent before the attempt is given up (30 s by default). */
  readonly stallMs?: number;
}

/** One attempt at a part of a file. */
export interface RemoteRequest {
  readonly offset: number;
  /** Absent: to the end. At least 1. */
  readonly sizeBytes?: number | undefined;
  /** What the file has to be still. */
  readonly version?: string | undefined;
  readonly signal: AbortSignal;
}

/** What a server gave. */
export interface RemoteAnswer {
  readonly body: Readable;
  /** The byte that `body` begins with: the wanted one, or one before. It may also end later than wanted. */
  readonly from: number;
  /** Of the whole file, where the server tells. */
  readonly sizeBytes: number | undefined;
  readonly version: string | undefined;
}

/** A protocol: single attempts, whose errors say by `retryable` whether another one is worth while. */
export interface RemoteFiles {
  /** Names the file in messages, without secrets. @throws StorageError for a path that the store does not take */
  describe(path: string): string;
  head(path: string, signal: AbortSignal): Promise<FileState>;
  get(path: string, request: RemoteRequest): Promise<RemoteAnswer>;
}

/** A store's reading half over a protocol. */
export function remoteStore(
  files: RemoteFiles,
  options: RemoteOptions,
): Pick<Store, 'sizeOf' | 'stat' | 'read' | 'stream' | 'localPath'> {
  const stat: Store['stat'] = (path, signal) => {
    const what = files.describe(path);
    return retrying(what, { ...options, signal }, () =>
      withStallLimit(what, { ...options, signal }, (attempt) =>
        attempt.waitFor(() => files.head(path, attempt.signal)),
      ),
    );
  };
  return {
    stat,
    async sizeOf(path, signal) {
      return (await stat(path, signal)).sizeBytes;
    },
    async read(path, { range, maxBytes = MAX_READ_BYTES, version, signal } = {}) {
      const what = files.describe(path);
      if (range !== undefined && range.sizeBytes > maxBytes)
        throw tooLarge(what, range.sizeBytes, maxBytes);
      const { offset = 0, sizeBytes } = range ?? {};
      const transfer = openTransfer(files, path, { offset, sizeBytes, version, signal }, options);
      return collect(what, transfer, { sizeBytes, maxBytes });
    },
    async stream(path, { offset = 0, sizeBytes, version, signal } = {}) {
      const closed = new AbortController();
      const either =
        signal === undefined ? closed.signal : AbortSignal.any([signal, closed.signal]);
      const wanted = { offset, sizeBytes, version, signal: either };
      const transfer = openTransfer(files, path, wanted, options);
      // The first bytes are waited for, so that a missing file is the error of this call.
      const first = await transfer.chunks.next();
      const stream = Readable.from(resumed(first, transfer.chunks), { objectMode: false });
      stream.once('close', () => {
        closed.abort();
      });
      return stream;
    },
    localPath(path) {
      files.describe(path);
      return undefined;
    },
  };
}

interface Transfer {
  readonly chunks: AsyncGenerator<Buffer, void>;
  /** Of the whole file, as soon as a server has told it. */
  totalBytes(): number | undefined;
}

interface TransferOptions {
  readonly offset: number;
  readonly sizeBytes: number | undefined;
  readonly version: string | undefined;
  readonly signal: AbortSignal | undefined;
}

/** The bytes of one file in order, over as many attempts as it takes; all of one version of it. */
function openTransfer(
  files: RemoteFiles,
  path: string,
  wanted: TransferOptions,
  options: RemoteOptions,
): Transfer {
  const what = files.describe(path);
  const { signal, offset } = wanted;
  const retries = openRetries(what, options);
  let { version } = wanted;
  let totalBytes: number | undefined;
  let at = offset;
  let end = wanted.sizeBytes === undefined ? undefined : offset + wanted.sizeBytes;

  /** @throws whatever ends the attempt; returns when all bytes are there */
  const attempt = async function* (limit: StallLimit): AsyncGenerator<Buffer, void> {
    const request: RemoteRequest = {
      offset: at,
      ...(end === undefined ? {} : { sizeBytes: end - at }),
      version,
      signal: limit.signal,
    };
    const answer = await limit.waitFor(() => files.get(path, request));
    try {
      if (
        (version !== undefined && answer.version !== version) ||
        (totalBytes ?? answer.sizeBytes) !== (answer.sizeBytes ?? totalBytes)
      )
        throw fileChanged(what);
      version = answer.version;
      totalBytes ??= answer.sizeBytes;
      if (totalBytes !== undefined) {
        end ??= totalBytes;
        if (end > totalBytes || at > totalBytes)
          throw rangeOutside(what, { offset, sizeBytes: Math.max(0, end - offset) }, totalBytes);
      }
      const body = answer.body[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
      for (let read = answer.from; end === undefined || read < end;) {
        const next = await limit.waitFor(() => body.next());
        if (next.done === true) break;
        const chunk = next.value.subarray(Math.max(0, at - read), (end ?? Infinity) - read);
        read += next.value.length;
        limit.progress(next.value.length);
        if (chunk.length === 0) continue;
        at += chunk.length;
        yield chunk;
      }
    } finally {
      answer.body.destroy();
    }
    if (end !== undefined && at < end) throw brokenOff(what, at);
  };

  return {
    totalBytes: () => totalBytes,
    chunks: (async function* () {
      if (end === offset) return;
      for (;;) {
        const before = at;
        const limit = openStallLimit(what, { ...options, signal });
        try {
          yield* attempt(limit);
          return;
        } catch (error) {
          if (at - before >= MIN_ADVANCE_BYTES) retries.reset();
          await retries.after(asTransferError(what, at, limit.errorOf(error)), signal);
        } finally {
          limit.close();
        }
      }
    })(),
  };
}

async function collect(
  what: string,
  transfer: Transfer,
  { sizeBytes, maxBytes }: { readonly sizeBytes: number | undefined; readonly maxBytes: number },
): Promise<Uint8Array> {
  const chunks: Buffer[] = [];
  let numBytes = 0;
  for await (const chunk of transfer.chunks) {
    const total = sizeBytes ?? transfer.totalBytes() ?? 0;
    numBytes += chunk.length;
    if (Math.max(total, numBytes) > maxBytes)
      throw tooLarge(what, Math.max(total, numBytes), maxBytes);
    chunks.push(chunk);
  }
  return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, numBytes);
}

async function* resumed(
  first: IteratorResult<Buffer, void>,
  rest: AsyncGenerator<Buffer, void>,
): AsyncGenerator<Buffer, void> {
  try {
    if (first.done !== true) yield first.value;
    yield* rest;
  } finally {
    await rest.return();
  }
}

// --- The limit on silence

interface StallLimit {
  /** Of the attempt: ends it with the caller's own signal or when the limit is passed. */
  readonly signal: AbortSignal;
  /** Makes a call and waits at most for what is left of the time. */
  waitFor<T>(call: () => Promise<T>): Promise<T>;
  /** Bytes have come; enough of them give the full time again. A trickle does not. */
  progress(numBytes: number): void;
  /** The error of the limit or of the caller's signal, where that is what `error` comes of. */
  errorOf(error: unknown): unknown;
  close(): void;
}

/** Time in which the reader of the bytes is busy itself does not count. */
function openStallLimit(
  what: string,
  { stallMs = 30_000, signal }: RemoteOptions & { readonly signal: AbortSignal | undefined },
): StallLimit {
  const attempt = new AbortController();
  let leftMs = stallMs;
  let numBytes = 0;
  const leave = (): void => {
    attempt.abort(signal!.reason);
  };
  if (signal?.aborted === true) leave();
  else signal?.addEventListener('abort', leave, { once: true });
  return {
    signal: attempt.signal,
    async waitFor(call) {
      attempt.signal.throwIfAborted();
      const begin = performance.now();
      const timer = setTimeout(() => {
        attempt.abort(stalled(what, stallMs));
      }, leftMs);
      let fail: (() => void) | undefined;
      const aborted = new Promise<never>((_, reject) => {
        fail = () => {
          reject(attempt.signal.reason as Error);
        };
        attempt.signal.addEventListener('abort', fail, { once: true });
      });
      try {
        return await Promise.race([call(), aborted]);
      } finally {
        clearTimeout(timer);
        attempt.signal.removeEventListener('abort', fail!);
        leftMs -= performance.now() - begin;
      }
    },
    progress(count) {
      numBytes += count;
      if (numBytes < MIN_PROGRESS_BYTES) return;
      [leftMs, numBytes] = [stallMs, 0];
    },
    errorOf: (error) => (attempt.signal.aborted ? (attempt.signal.reason as unknown) : error),
    close() {
      signal?.removeEventListener('abort', leave);
      attempt.abort(); // ends what is still under way
    },
  };
}

/** One call under the limit. */
export async function withStallLimit<T>(
  what: string,
  options: RemoteOptions & { readonly signal: AbortSignal | undefined },
  call: (limit: StallLimit) => Promise<T>,
): Promise<T> {
  const limit = openStallLimit(what, options);
  try {
    return await call(limit);
  } catch (error) {
    throw limit.errorOf(error);
  } finally {
    limit.close();
  }
}

function stalled(what: string, stallMs: number): StorageError {
  return new StorageError(
    'STORAGE_TIMED_OUT',
    `${what} gave next to nothing for ${stallMs / 1000} s: look whether the server is overloaded or a firewall is in ` +
      'between',
    { retryable: true },
  );
}

function brokenOff(what: string, at: number, cause?: unknown): StorageError {
  return new StorageError(
    'STORAGE_UNREACHABLE',
    `${what} broke off after byte ${at}, and did so again: look after the network or the server`,
    { retryable: true, cause },
  );
}

/** An error in the middle of a body is the connection's. */
function asTransferError(what: string, at: number, error: unknown): unknown {
  const { code } = error as NodeJS.ErrnoException;
  const isNetwork = code !== undefined && !(error instanceof StorageError) && code !== 'ABORT_ERR';
  return isNetwork ? brokenOff(what, at, error) : error;
}

/** That many bytes are no trickle. */
const MIN_PROGRESS_BYTES = 16 * 1024;
/** An attempt that gave that much counts as no failure. */
const MIN_ADVANCE_BYTES = 2 ** 20;
