/**
 * Decodes in processes of their own: a fault in a codec, an endless loop or a memory bomb costs one file, not the
 * training process. A process that dies or hangs is replaced and its request tried once more in the new one.
 */
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { readSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import { promisify } from 'node:util';
import type {
  AudioRequest,
  DecodedFrames,
  DecodeRequest,
  ImageBatchRequest,
  ImageInfo,
  ImageRequest,
  VideoInfo,
} from './decoder-backend.ts';
import { audioSpan } from './decoder-backend.ts';
import { DecodeError, type DecodeErrorCode } from './decode-error.ts';
import {
  KIND,
  REPLY_FD,
  SHARED_HALF_BYTES,
  ReplyReader,
  unpackFrames,
  type DecoderCall,
  type ReplyHeader,
} from './decoder-protocol.ts';
import type { Framing } from './framing.ts';
import type { ImageFault } from './image-batch.ts';
import { placeName, type MediaPlace } from './media-place.ts';
import { closeSharedMemory, createSharedMemory } from './shared-memory.ts';
import { compiled } from '../../proto/compiled.mjs';
import { withoutTrainingMemory } from '../../proto/memory-environment.ts';

export type { AudioRequest, DecodedFrames, DecodeRequest, ImageInfo, ImageRequest, VideoInfo };
export { DecodeError, type DecodeErrorCode };

/** How a pool is opened. */
export interface DecoderPoolOptions {
  readonly numProcesses: number;
  /** For one request, from when a process starts on it. */
  readonly timeoutMs?: number;
  /** Address space a process may take beyond what it has when it is ready; where `prlimit` exists. */
  readonly memoryLimitBytes?: number;
  /** `auto` takes node-av and, where that is not installed, the system's ffmpeg. */
  readonly backend?: 'auto' | 'node-av' | 'ffmpeg';
  /** `cuda` decodes by NVDEC (node-av alone) what that can; the frames are the same. */
  readonly device?: 'cpu' | 'cuda';
}

/** What a pool has done so far. */
export interface DecoderPoolStats {
  numRequests: number;
  /** Frames handed out, and frames that the decoders had to output for them. */
  numFrames: number;
  numDecoded: number;
  numBytes: number;
  /** Summed over the processes. */
  busySeconds: number;
  /** Processes that were replaced because they died or hung. */
  numReplaced: number;
}

/** What `decodeImages` takes. */
export interface DecodeImagesOptions {
  /** Where the pixels go, at its beginning. Fresh memory costs as much as a third of the decoding: use it again. */
  readonly into?: Uint8Array;
  readonly signal?: AbortSignal;
}

/** Pictures of one size. */
export interface DecodedImages {
  /** RGB, 8 bits, [N, H, W, 3]; what did not decode holds anything. */
  readonly frames: Uint8Array;
  /** What did not decode, by its place among those asked for. */
  readonly errors: ReadonlyMap<number, DecodeError>;
}

/** Decoder processes; `openDecoderPool` makes it. */
export interface DecoderPool {
  readonly backend: 'node-av' | 'ffmpeg';
  /** Process ids, for whoever watches them. */
  readonly pids: readonly number[];
  /** Requests that a process is working on. */
  readonly numBusy: number;
  readonly stats: Readonly<DecoderPoolStats>;
  /** @throws DecodeError naming the file; the signal's reason when aborted. */
  decode(request: DecodeRequest, signal?: AbortSignal): Promise<DecodedFrames>;
  /** @throws DecodeError naming the file; the signal's reason when aborted. */
  probe(place: MediaPlace, signal?: AbortSignal): Promise<VideoInfo>;
  /** A picture as one frame, shown at 0. @throws as `decode`. */
  decodeImage(request: ImageRequest, signal?: AbortSignal): Promise<DecodedFrames>;
  /**
   * Many pictures, each the same as `decodeImage` gives it, at a fraction of the cost: neighbours in a shard are read
   * together, and pixels come through shared memory. One process works on them, up to 64 at a time: ask for several
   * batches at once. @throws DecodeError if there is nothing to decode with; the signal's reason when aborted.
   */
  decodeImages(
    places: readonly MediaPlace[],
    framing: Framing,
    options?: DecodeImagesOptions,
  ): Promise<DecodedImages>;
  /** @throws as `decode`. */
  probeImage(place: MediaPlace, signal?: AbortSignal): Promise<ImageInfo>;
  /**
   * Sound in [-1, 1] (louder where the file is), exactly round((endSeconds - startSeconds) * sampleRate) samples.
   * @throws as `decode`; AUDIO_NO_STREAM if the file has no sound.
   */
  decodeAudio(request: AudioRequest, signal?: AbortSignal): Promise<Float32Array>;
  /** Ends all processes; waits until they are gone. Requests under way fail with DECODER_CLOSED. */
  close(): Promise<void>;
}

const START_TIMEOUT_MS = 30_000;
/** A process that ends before it is ready is started again this often in a row. */
const MAX_START_FAILURES = 3;
const MAX_ATTEMPTS = 2;
/** Pictures in one request: few enough that all of them fit into the time limit of one. */
const MAX_IMAGES = 64;

/** @throws DecodeError DECODER_UNAVAILABLE if there is nothing to decode with. */
export async function openDecoderPool(options: DecoderPoolOptions): Promise<DecoderPool> {
  const pool = new ProcessPool(options);
  try {
    await pool.ready();
  } catch (error) {
    await pool.close();
    throw error;
  }
  return pool;
}

interface Job {
  readonly place: MediaPlace;
  readonly call: CallOf;
  readonly settle: (answer: Answer) => void;
  readonly reject: (error: Error) => void;
  isSettled: boolean;
  numAttempts: number;
}

class ProcessPool implements DecoderPool {
  backend: 'node-av' | 'ffmpeg' = 'node-av';
  readonly stats: DecoderPoolStats = {
    numRequests: 0,
    numFrames: 0,
    numDecoded: 0,
    numBytes: 0,
    busySeconds: 0,
    numReplaced: 0,
  };
  readonly #options: Required<DecoderPoolOptions>;
  readonly #processes = new Set<DecoderProcess>();
  readonly #waiting: Job[] = [];
  readonly #starting: Promise<void>[] = [];
  #numStartFailures = 0;
  #numBusy = 0;
  #broken: DecodeError | undefined;

  constructor(options: DecoderPoolOptions) {
    this.#options = {
      timeoutMs: 30_000,
      memoryLimitBytes: 2 ** 30,
      backend: 'auto',
      device: 'cpu',
      ...options,
    };
    for (let i = 0; i < options.numProcesses; i++) this.#starting.push(this.#start());
  }

  get pids(): readonly number[] {
    return [...this.#processes].map(({ pid }) => pid);
  }

  get numBusy(): number {
    return this.#numBusy;
  }

  async ready(): Promise<void> {
    await Promise.all(this.#starting);
    if (this.#broken) throw this.#broken;
  }

  decode(request: DecodeRequest, signal?: AbortSignal): Promise<DecodedFrames> {
    return this.#submit(request, (id) => ({ id, call: 'decode', request }), signal, this.#frames);
  }

  probe(request: MediaPlace, signal?: AbortSignal): Promise<VideoInfo> {
    const call = (id: number): DecoderCall => ({ id, call: 'probe', request });
    return this.#submit(request, call, signal, (_, body) => parseBody(body) as VideoInfo);
  }

  async decodeImage(request: ImageRequest, signal?: AbortSignal): Promise<DecodedFrames> {
    const { width, height } = request;
    const { frames, errors } = await this.decodeImages([request], request, {
      ...(signal && { signal }),
    });
    for (const error of errors.values()) throw error;
    return { frames, ptsSeconds: Float64Array.of(0), width, height, numDecoded: 1 };
  }

  async decodeImages(
    places: readonly MediaPlace[],
    framing: Framing,
    { signal, into }: DecodeImagesOptions = {},
  ): Promise<DecodedImages> {
    const frameBytes = framing.width * framing.height * 3;
    const numBytes = places.length * frameBytes;
    const frames = into?.subarray(0, numBytes) ?? new Uint8Array(numBytes);
    if (frames.length < numBytes) throw new RangeError(`${numBytes} bytes of pixels do not fit`);
    const errors = new Map<number, DecodeError>();
    const count = Math.min(MAX_IMAGES, Math.max(1, Math.floor(SHARED_HALF_BYTES / frameBytes)));
    const decode = async (first: number): Promise<void> => {
      const some = places.slice(first, first + count);
      const part = frames.subarray(first * frameBytes, (first + some.length) * frameBytes);
      for (const { place, ...fault } of await this.#imageBatch(some, framing, part, signal)) {
        const { path } = some[place]!;
        errors.set(first + place, new DecodeError(fault.code, path, fault.message));
      }
    };
    const firsts = Array.from({ length: Math.ceil(places.length / count) }, (_, i) => i * count);
    await Promise.all(firsts.map(decode));
    return { frames, errors };
  }

  /** Fills `into`; tells what could not be decoded. */
  async #imageBatch(
    places: readonly MediaPlace[],
    framing: Framing,
    into: Uint8Array,
    signal: AbortSignal | undefined,
  ): Promise<ImageFault[]> {
    const { width, height, fit, crop, flip } = framing; // and nothing else that a caller's object may hold
    let isShared = false;
    const call = (id: number, sharedOffset?: number): DecoderCall => {
      isShared = sharedOffset !== undefined && into.length <= SHARED_HALF_BYTES;
      const request: ImageBatchRequest = {
        places: places.map(({ path, range }) => ({ path, range })),
        framing: { width, height, fit, crop, flip },
      };
      return isShared
        ? { id, call: 'decodeImages', request: { ...request, sharedOffset } }
        : { id, call: 'decodeImages', request };
    };
    try {
      return await this.#submit(places[0]!, call, signal, (_, body, readShared) => {
        if (isShared) readShared(into);
        else into.set(body.subarray(0, into.length));
        const faults = parseBody(isShared ? body : body.subarray(into.length)) as ImageFault[];
        const numDecoded = places.length - faults.length;
        this.stats.numFrames += numDecoded;
        this.stats.numDecoded += numDecoded;
        this.stats.numBytes += into.length;
        return faults;
      });
    } catch (error) {
      const isOneOfThem =
        error instanceof DecodeError &&
        (error.code === 'DECODER_CRASHED' || error.code === 'VIDEO_TIMEOUT');
      if (!isOneOfThem) throw error;
      const { code, message } = error;
      if (places.length === 1) return [{ place: 0, code, message }];
      // One of them ends the process or hangs: by itself it costs no other.
      const frameBytes = into.length / places.length;
      const alone = await Promise.all(
        places.map(async (place, i) => {
          const frame = into.subarray(i * frameBytes, (i + 1) * frameBytes);
          const [fault] = await this.#imageBatch([place], framing, frame, signal);
          return fault === undefined ? [] : [{ ...fault, place: i }];
        }),
      );
      return alone.flat();
    }
  }

  probeImage(request: MediaPlace, signal?: AbortSignal): Promise<ImageInfo> {
    const call = (id: number): DecoderCall => ({ id, call: 'probeImage', request });
    return this.#submit(request, call, signal, (_, body) => parseBody(body) as ImageInfo);
  }

  async decodeAudio(request: AudioRequest, signal?: AbortSignal): Promise<Float32Array> {
    audioSpan(request); // throws
    const call = (id: number): DecoderCall => ({ id, call: 'decodeAudio', request });
    return this.#submit(request, call, signal, (_, { buffer, byteOffset, byteLength }) => {
      this.stats.numBytes += byteLength;
      return new Float32Array(buffer, byteOffset, byteLength / 4);
    });
  }

  async close(): Promise<void> {
    this.#breakWith(new DecodeError('DECODER_CLOSED', '', 'the decoder pool has been closed'));
    await Promise.all([...this.#processes].map((process) => process.kill()));
    await Promise.all(this.#starting);
  }

  readonly #frames = (header: ReplyHeader, body: Uint8Array): DecodedFrames => {
    const decoded = unpackFrames(header, body);
    this.stats.numFrames += header.numFrames;
    this.stats.numDecoded += header.numDecoded;
    this.stats.numBytes += decoded.frames.length;
    return decoded;
  };

  #submit<T>(
    place: MediaPlace,
    call: CallOf,
    signal: AbortSignal | undefined,
    convert: (header: ReplyHeader, body: Uint8Array, readShared: Answer['readShared']) => T,
  ): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.#broken) {
        reject(this.#broken);
        return;
      }
      if (signal?.aborted) {
        reject(signal.reason as Error);
        return;
      }
      const onAbort = (): void => {
        job.reject(signal?.reason as Error);
      };
      const done = (): void => {
        job.isSettled = true;
        signal?.removeEventListener('abort', onAbort);
      };
      const job: Job = {
        place,
        call,
        isSettled: false,
        numAttempts: 0,
        settle: ({ header, body, readShared }) => {
          if (job.isSettled) return; // given up on; the process has only now finished with it
          if (header.kind === KIND.ERROR) {
            job.reject(errorOf(place.path, body));
            return;
          }
          done();
          resolve(convert(header, body, readShared));
        },
        reject: (error) => {
          done();
          reject(error);
        },
      };
      signal?.addEventListener('abort', onAbort, { once: true });
      this.stats.numRequests++;
      this.#waiting.push(job);
      this.#dispatch();
    });
  }

  #dispatch(): void {
    for (const process of this.#processes) {
      if (!process.isIdle) continue;
      let job = this.#waiting.shift();
      while (job?.isSettled) job = this.#waiting.shift();
      if (!job) return;
      void this.#run(process, job);
    }
  }

  async #run(process: DecoderProcess, job: Job): Promise<void> {
    const started = performance.now();
    job.numAttempts++;
    this.#numBusy++;
    try {
      const answer = await process.call(job.call, this.#options.timeoutMs);
      this.#dispatch(); // first, so that the process does not wait until pixels have been taken out
      job.settle(answer);
    } catch (error) {
      if (this.#broken) {
        job.reject(this.#broken);
        return;
      }
      const { code, reason } = error as ProcessFailure;
      if (!job.isSettled && job.numAttempts < MAX_ATTEMPTS) this.#waiting.unshift(job);
      else
        job.reject(
          new DecodeError(
            code,
            job.place.path,
            `${placeName(job.place)}: ${reason}, ${MAX_ATTEMPTS} times`,
          ),
        );
    } finally {
      this.#numBusy--;
      this.stats.busySeconds += (performance.now() - started) / 1000;
    }
    this.#dispatch();
  }

  /** Starts one process and sees to it that another takes its place when it ends. */
  async #start(): Promise<void> {
    if (this.#broken) return;
    const process = new DecoderProcess(this.#options.backend, this.#options.device);
    this.#processes.add(process);
    void process.ended.then(() => {
      this.#processes.delete(process);
      if (this.#broken || !process.wasReady) return;
      this.stats.numReplaced++;
      this.#starting.push(this.#start());
    });
    try {
      this.backend = await process.ready(START_TIMEOUT_MS);
      await limitMemory(process.pid, this.#options.memoryLimitBytes);
      this.#numStartFailures = 0;
      process.isIdle = true;
      this.#dispatch();
    } catch (error) {
      await process.kill();
      const { reason } = error as ProcessFailure;
      if (++this.#numStartFailures < MAX_START_FAILURES) {
        await this.#start();
        return;
      }
      const cure =
        this.#options.device === 'cuda'
          ? 'Install NVIDIA’s driver and the package node-av, or decode on the CPU'
          : 'Install the package node-av (npm install node-av), or ffmpeg and ffprobe with the system’s package manager';
      const message = `no decoder could be started (${reason}). ${cure}`;
      this.#breakWith(new DecodeError('DECODER_UNAVAILABLE', '', message));
    }
  }

  #breakWith(error: DecodeError): void {
    this.#broken ??= error;
    for (const job of this.#waiting.splice(0)) job.reject(this.#broken);
    for (const process of this.#processes) process.abandon(this.#broken);
  }
}

/** A request as it is sent; `sharedOffset` is where in shared memory it may put pixels, if there is any. */
type CallOf = (id: number, sharedOffset?: number) => DecoderCall;

interface Answer {
  readonly header: ReplyHeader;
  readonly body: Uint8Array;
  /** Fills `into` from the shared memory; at once, or the next request but one will have changed it. */
  readonly readShared: (into: Uint8Array) => void;
}

/** Why a process did not answer. */
interface ProcessFailure {
  readonly code: DecodeErrorCode;
  readonly reason: string;
}

class DecoderProcess {
  isIdle = false;
  wasReady = false;
  readonly ended: Promise<void>;
  readonly #child: ChildProcess;
  readonly #shared = createSharedMemory(2 * SHARED_HALF_BYTES);
  readonly #hello: Promise<'node-av' | 'ffmpeg'>;
  #answer: ((header: ReplyHeader, body: Uint8Array) => void) | undefined;
  #fail: ((failure: unknown) => void) | undefined;
  #nextId = 1;
  #stderr = '';
  #killedFor: ProcessFailure | undefined;

  constructor(backend: string, device: string) {
    this.#child = spawn(
      process.execPath,
      [
        compiled(new URL('decoder-process.ts', import.meta.url)),
        ...[String(process.pid), backend, device],
      ],
      // A group of its own: whatever it starts ends with it, and Ctrl-C in a terminal goes to the parent alone.
      {
        stdio: ['pipe', 'ignore', 'pipe', 'pipe', this.#shared ?? 'ignore'],
        detached: true,
        env: withoutTrainingMemory(process.env),
      },
    );
    const reader = new ReplyReader(
      (header, body) => this.#answer?.(header, body),
      () => void this.kill({ code: 'DECODER_CRASHED', reason: 'the decoder process sent garbage' }),
    );
    (this.#child.stdio[REPLY_FD] as Readable).on('data', (chunk: Buffer) => {
      reader.push(chunk);
    });
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-2000);
    });
    this.#child.stdin!.on('error', () => undefined); // EPIPE: `ended` reports it
    this.ended = new Promise((resolve) => {
      const end = (how: string): void => {
        this.isIdle = false;
        this.#fail?.(this.#killedFor ?? { code: 'DECODER_CRASHED', reason: how });
        this.#fail = undefined;
        resolve();
      };
      this.#child.once('error', (error) => {
        end(error.message);
      });
      this.#child.once('close', (code, signal) => {
        const last = this.#stderr.trim().split('\n').at(-1) ?? '';
        end(
          `the decoder process ended (${signal ?? `exit code ${code ?? '?'}`}${last ? `: ${last}` : ''})`,
        );
      });
    });
    void this.ended.then(() => {
      if (this.#shared !== undefined) closeSharedMemory(this.#shared);
    });
    this.#hello = this.#exchange(0).then(({ header, body }) => {
      const said = parseBody(body) as { backend: 'node-av' | 'ffmpeg'; message: string };
      if (header.kind === KIND.HELLO) return said.backend;
      const failure: ProcessFailure = { code: 'DECODER_UNAVAILABLE', reason: said.message };
      // eslint-disable-next-line @typescript-eslint/only-throw-error -- becomes an error in the pool
      throw failure;
    });
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  async ready(timeoutMs: number): Promise<'node-av' | 'ffmpeg'> {
    const backend = await this.#within(timeoutMs, this.#hello);
    this.wasReady = true;
    return backend;
  }

  /** Rejects with a ProcessFailure; the process is dead then. */
  async call(call: CallOf, timeoutMs: number): Promise<Answer> {
    this.isIdle = false;
    const id = this.#nextId++;
    const reply = this.#exchange(id);
    const offset = (id % 2) * SHARED_HALF_BYTES;
    const shared = this.#shared;
    const request = shared === undefined ? call(id) : call(id, offset);
    this.#child.stdin!.write(`${JSON.stringify(request)}\n`);
    const answer = await this.#within(timeoutMs, reply);
    this.isIdle = this.#child.exitCode === null && this.#child.signalCode === null;
    return {
      ...answer,
      readShared: (into) => {
        for (let at = 0; at < into.length;) {
          at += readSync(shared!, into, at, into.length - at, offset + at);
        }
      },
    };
  }

  /** Kills the process with all it has started, and waits for its end. */
  async kill(failure?: ProcessFailure): Promise<void> {
    this.#killedFor ??= failure;
    this.isIdle = false;
    if (this.#child.pid !== undefined && this.#child.exitCode === null) {
      try {
        process.kill(-this.#child.pid, 'SIGKILL');
      } catch {
        this.#child.kill('SIGKILL'); // no process groups here
      }
    }
    await this.ended;
  }

  /** Lets the request under way fail without waiting for the process. */
  abandon(error: DecodeError): void {
    this.#fail?.({ code: error.code, reason: error.message });
    this.#fail = undefined;
  }

  #exchange(id: number): Promise<{ header: ReplyHeader; body: Uint8Array }> {
    return new Promise((resolve, reject) => {
      this.#fail = reject;
      this.#answer = (header, body) => {
        if (header.id !== id) return;
        this.#fail = undefined;
        resolve({ header, body });
      };
    });
  }

  async #within<T>(timeoutMs: number, promise: Promise<T>): Promise<T> {
    const timer = setTimeout(() => {
      const reason = `the decoder process gave no answer within ${timeoutMs} ms`;
      void this.kill({ code: 'VIDEO_TIMEOUT', reason });
    }, timeoutMs);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
    }
  }
}

function parseBody(body: Uint8Array): unknown {
  return JSON.parse(Buffer.from(body).toString());
}

function errorOf(path: string, body: Uint8Array): DecodeError {
  const { code, message } = parseBody(body) as { code: DecodeErrorCode; message: string };
  return new DecodeError(code, path, message);
}

/** Bounds the memory of a running process; where the tools for it are missing (not Linux) there is no bound. */
async function limitMemory(pid: number, extraBytes: number): Promise<void> {
  try {
    const status = await readFile(`/proc/${pid}/status`, 'utf8');
    const sizeBytes = Number(/^VmSize:\s+(\d+) kB$/m.exec(status)![1]) * 1024;
    const limits = [`--as=${sizeBytes + extraBytes}`, '--core=0', '--fsize=0'];
    await promisify(execFile)('prlimit', ['--pid', String(pid), ...limits]);
  } catch {
    // Best effort by contract: the time limit and the process boundary still hold.
  }
}
