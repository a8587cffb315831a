import { basename } from 'node:path';
import { Worker } from 'node:worker_threads';
import { writeFailure } from './checkpoint-error.ts';
import { rangeOf, type MemoryRange } from './memory-range.ts';
import { compiled } from '../../proto/compiled.mjs';

/** A file that is whole and durable. */
export interface SavedFile {
  /** Without its folder. */
  readonly name: string;
  readonly sizeBytes: number;
  readonly sha256: string;
}

/** Bytes to be written: an array, or memory that somebody keeps until the file is written. */
export type Piece = Uint8Array | MemoryRange;

/** Writes files on threads of their own, which read the memory of this one: nothing is copied here, nobody waits here. */
export interface FileWriter {
  /** Pieces that have been written so far. */
  readonly numWritten: number;
  /**
   * Writes the pieces under a temporary name, hashes them on the way, and gives the file its name once it is durable.
   * Files that are written at the same time share the threads. Pieces must not change until then.
   * @throws CheckpointError as `writeFailure`; whatever `pieces` throws. Nothing is left behind then.
   */
  write(
    path: string,
    pieces: AsyncIterable<readonly Piece[]>,
    options?: WriteOptions,
  ): Promise<SavedFile>;
  /** Ends the threads; a write under way is given up. */
  close(): Promise<void>;
}

export interface WriteOptions {
  /** A file. Where it is there when all is written, nothing gets the final name, and the write fails. */
  readonly unless?: string;
}

/** Files that are written at the same time; more than hash a file as fast as a disk takes it would take cores from training. */
export const NUM_THREADS = 2;

/** What the thread is told; one answer each, in order. */
export type FileCommand = { readonly id: number } & (
  | { readonly type: 'open'; readonly path: string }
  | { readonly type: 'append'; readonly ranges: readonly MemoryRange[] }
  | { readonly type: 'finish'; readonly unless: string | undefined }
  | { readonly type: 'abandon' }
);
type CommandBody = FileCommand extends infer C
  ? C extends unknown
    ? Omit<C, 'id'>
    : never
  : never;

export interface FileAnswer {
  readonly id: number;
  readonly saved?: Omit<SavedFile, 'name'>;
  readonly failure?: { readonly code: string | undefined; readonly message: string };
}

interface Waiting {
  readonly resolve: (answer: FileAnswer) => void;
  readonly reject: (error: Error) => void;
}

/** The threads begin with the first file that each gets. */
export function openFileWriter(): FileWriter {
  const threads: { readonly writer: FileWriter; queue: Promise<void>; numFiles: number }[] = [];
  return {
    get numWritten() {
      return threads.reduce((sum, { writer }) => sum + writer.numWritten, 0);
    },
    async write(path, pieces, options) {
      let free = threads.find(({ numFiles }) => numFiles === 0);
      if (free === undefined && threads.length < NUM_THREADS) {
        free = { writer: openFileThread(), queue: Promise.resolve(), numFiles: 0 };
        threads.push(free);
      }
      const thread = free ?? threads.reduce((a, b) => (b.numFiles < a.numFiles ? b : a));
      thread.numFiles++;
      const saved = thread.queue.then(() => thread.writer.write(path, pieces, options));
      thread.queue = saved.then(
        () => undefined,
        () => undefined,
      );
      return saved.finally(() => {
        thread.numFiles--;
      });
    },
    async close() {
      await Promise.all(threads.map(({ writer }) => writer.close()));
    },
  };
}

/** One thread; one file at a time. */
function openFileThread(): FileWriter {
  const thread = new Worker(compiled(new URL('./file-thread.ts', import.meta.url)), {
    execArgv: [],
  });
  // An open writer keeps no process alive; a write under way does.
  thread.unref();
  const waiting = new Map<number, Waiting>();
  let lastId = 0;
  let numWritten = 0;
  let death: Error | undefined;
  const die = (error: Error): void => {
    death ??= error;
    for (const { reject } of waiting.values()) reject(death);
    waiting.clear();
  };
  thread.on('message', (answer: FileAnswer) => {
    waiting.get(answer.id)?.resolve(answer);
    waiting.delete(answer.id);
    if (waiting.size === 0) thread.unref();
  });
  thread.on('error', die);
  thread.on('exit', () => {
    die(new Error('the thread that writes checkpoints has ended'));
  });

  const tell = async (body: CommandBody): Promise<FileAnswer> => {
    if (death !== undefined) throw death;
    const id = ++lastId;
    thread.ref();
    const answer = await new Promise<FileAnswer>((resolve, reject) => {
      waiting.set(id, { resolve, reject });
      thread.postMessage({ id, ...body } satisfies FileCommand);
    });
    if (answer.failure === undefined) return answer;
    const { code, message } = answer.failure;
    throw Object.assign(new Error(message), { code });
  };

  return {
    get numWritten() {
      return numWritten;
    },
    async write(path, pieces, { unless } = {}) {
      try {
        await tell({ type: 'open', path });
        // One batch is written while the next one is fetched; each is referred to until the thread is through with it.
        let written: Promise<unknown> = Promise.resolve();
        for await (const batch of pieces) {
          await written;
          const ranges = batch.map((piece) =>
            piece instanceof Uint8Array ? rangeOf(piece) : piece,
          );
          written = tell({ type: 'append', ranges }).finally(() => (numWritten += batch.length));
          written.catch(() => undefined); // told by whoever waits for it
        }
        await written;
        const { saved } = await tell({ type: 'finish', unless });
        return { name: basename(path), ...saved! };
      } catch (error) {
        if (death === undefined) await tell({ type: 'abandon' });
        throw writeFailure(error, path);
      }
    },
    async close() {
      await thread.terminate();
    },
  };
}
