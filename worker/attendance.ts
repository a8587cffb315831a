import { Worker } from 'node:worker_threads';
import { compiled } from '../proto/compiled.mjs';
import { VideoloomError } from '../proto/errors.ts';
import type { Generation } from '../proto/gen/videoloom/v1/run.ts';
import type { Security } from '../proto/security.ts';
import type { TimeLimits } from '../proto/time-limits.ts';
import type { LedgerCells } from './ledger-cells.ts';

/** What the thread is started with. */
export interface AttendanceSetting {
  readonly coordinatorAddress: string;
  readonly security: Security;
  readonly keepalive: { readonly timeMs: number; readonly timeoutMs: number };
  /** Of the ledger's cells. */
  readonly buffer: SharedArrayBuffer;
}

export type AttendanceCommand =
  | { readonly type: 'attend'; readonly session: string; readonly beatMs: number }
  /** Send a beat now. */
  | { readonly type: 'beat' }
  /** Send a last beat and end the stream in order. */
  | { readonly type: 'finish' }
  /** End the stream at once. */
  | { readonly type: 'cut' };

export type AttendanceEvent =
  | { readonly type: 'ready' }
  | { readonly type: 'generation'; readonly generation: Generation }
  | { readonly type: 'released' }
  | {
      readonly type: 'ended';
      readonly session: string;
      readonly failure?: {
        readonly code: string;
        readonly message: string;
        readonly retryable: boolean;
      };
    };

/** Code of the error of a worker that cannot send beats any more. */
export const BEATS_LOST = 'BEATS_LOST';

/** A worker's Attend stream, kept by a thread of its own; one stream at a time. */
export interface Attendance {
  /** Settles when the thread has loaded what it needs: from then on no beat is late. */
  readonly ready: Promise<void>;
  /** Attends until the stream ends. @throws VideoloomError why the coordinator or the connection ended it */
  attend(session: string, beatMs: number): Promise<void>;
  /** Sends a beat now. */
  beat(): void;
  /** Ends the stream in order, after a last beat. */
  finish(): void;
  /** Ends the stream at once. */
  cut(): void;
  close(): Promise<void>;
}

export function openAttendance({
  cells,
  onGeneration,
  onReleased,
  limits,
  ...reach
}: {
  readonly coordinatorAddress: string;
  readonly security: Security;
  readonly limits: TimeLimits;
  readonly cells: LedgerCells;
  readonly onGeneration: (generation: Generation) => void;
  readonly onReleased: () => void;
}): Attendance {
  const setting: AttendanceSetting = {
    ...{ ...reach, buffer: cells.buffer },
    keepalive: { timeMs: limits.keepaliveTimeMs, timeoutMs: limits.keepaliveTimeoutMs },
  };
  const thread = new Worker(compiled(new URL('./attendance-thread.ts', import.meta.url)), {
    workerData: setting,
    execArgv: [],
  });
  // What trains keeps the process alive, not what tells of it.
  thread.unref();
  let death: Error | undefined;
  let waiting: { session: string; resolve: () => void; reject: (error: Error) => void } | undefined;
  let beReady: () => void = () => undefined;
  const ready = new Promise<void>((resolve, reject) => {
    beReady = resolve;
    thread.once('error', reject);
  });
  ready.catch(() => undefined);
  const settle = (error?: Error): void => {
    if (error === undefined) waiting?.resolve();
    else waiting?.reject(error);
    waiting = undefined;
  };
  thread.on('message', (event: AttendanceEvent) => {
    if (event.type === 'ready') beReady();
    else if (event.type === 'generation') onGeneration(event.generation);
    else if (event.type === 'released') onReleased();
    // What is left of an earlier session says nothing about this one.
    else if (event.session !== waiting?.session) return;
    else if (event.failure === undefined) settle();
    else {
      const { code, message, retryable } = event.failure;
      settle(new VideoloomError(code, message, { retryable }));
    }
  });
  const die = (why: string): void => {
    death ??= new VideoloomError(BEATS_LOST, `the thread that sends the beats has ended: ${why}`, {
      retryable: true,
    });
    settle(death);
  };
  thread.on('error', ({ message }: Error) => {
    die(message);
  });
  thread.on('exit', (code) => {
    die(`code ${code}`);
  });
  const tell = (command: AttendanceCommand): void => {
    thread.postMessage(command);
  };
  return {
    ready,
    attend: (session, beatMs) =>
      new Promise((resolve, reject) => {
        if (death !== undefined) {
          reject(death);
          return;
        }
        waiting = { session, resolve, reject };
        tell({ type: 'attend', session, beatMs });
      }),
    beat: () => {
      tell({ type: 'beat' });
    },
    finish: () => {
      tell({ type: 'finish' });
    },
    cut: () => {
      tell({ type: 'cut' });
    },
    async close() {
      await thread.terminate();
    },
  };
}
