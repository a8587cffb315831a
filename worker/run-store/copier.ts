import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { compiled } from '../../proto/compiled.mjs';
import type { Log } from '../../proto/log.ts';
import type { CopyOutcome, CopyRetention } from './copy-run.ts';

/** What is copied, and where to. */
export interface CopierSetting extends CopyRetention {
  /** Run folder. */
  readonly folder: string;
  readonly runId: string;
  /** `s3://bucket/prefix` */
  readonly store: string;
}

/** What the thread is told; one at a time. */
export interface CopyCommand {
  readonly step: number;
}

export type CopyAnswer =
  | { readonly type: 'progress'; readonly numBytes: number }
  | {
      readonly type: 'ended';
      readonly step: number;
      readonly outcome: CopyOutcome;
      /** Steps of older copies that were removed. */
      readonly removed: readonly number[];
      readonly pruneFailure: string | undefined;
    }
  | {
      readonly type: 'failed';
      readonly step: number;
      readonly code: string;
      readonly message: string;
      readonly isRetryable: boolean;
    };

/** Told of what becomes of copies. */
export interface CopyMetrics {
  copied(step: number, seconds: number): void;
  copyFailed(code: string): void;
  copyBytes(numBytes: number): void;
}

/** Copies complete checkpoints into a store in the background. Its failures are told, and stop nothing. */
export interface Copier {
  /** Has the checkpoint of a step copied; one that still waits gives way to a newer one. */
  copy(step: number): void;
  /**
   * Until nothing is left to copy. Given up after `limitMs`, or when nothing moves for `stillMs`.
   * @param onProgress told whenever bytes have gone
   */
  settled(limits: {
    readonly limitMs: number;
    readonly stillMs: number;
    readonly onProgress?: () => void;
  }): Promise<void>;
  close(): Promise<void>;
}

/** Attempts at one checkpoint, each of which makes several at each request. */
const MAX_ATTEMPTS = 4;
const FIRST_DELAY_MS = 1000;

export function openCopier(
  setting: CopierSetting,
  {
    log,
    metrics,
    retryDelayMs = FIRST_DELAY_MS,
  }: { log: Log; metrics: CopyMetrics; retryDelayMs?: number },
): Copier {
  const start = (): Worker => {
    const started = new Worker(compiled(new URL('./copier-thread.ts', import.meta.url)), {
      ...{ execArgv: [], workerData: setting },
    });
    // A copy under way keeps the process alive; the thread itself does not.
    started.unref();
    started.on('error', (error) => {
      log.error(`the thread that copies checkpoints failed: ${String(error)}`);
    });
    started.on('exit', () => {
      if (thread === started) thread = undefined;
    });
    return started;
  };
  // At once: until it has loaded what it needs, the first checkpoint is written.
  let thread: Worker | undefined = start();
  let wanted: number | undefined;
  let work: Promise<void> | undefined;
  let lastSignMs = performance.now();
  const closing = new AbortController();
  const listeners = new Set<() => void>();

  const attempt = (step: number): Promise<Exclude<CopyAnswer, { type: 'progress' }>> =>
    new Promise((resolve, reject) => {
      thread ??= start();
      const own = thread;
      const end = (): void => {
        own.off('message', onMessage).off('error', onEnd).off('exit', onEnd);
        own.unref();
      };
      const onMessage = (answer: CopyAnswer): void => {
        lastSignMs = performance.now();
        if (answer.type === 'progress') {
          metrics.copyBytes(answer.numBytes);
          for (const listener of listeners) listener();
          return;
        }
        end();
        resolve(answer);
      };
      const onEnd = (error: unknown): void => {
        end();
        thread = undefined;
        reject(
          error instanceof Error
            ? error
            : new Error('the thread that copies checkpoints has ended'),
        );
      };
      own.on('message', onMessage).on('error', onEnd).on('exit', onEnd);
      own.ref();
      own.postMessage({ step } satisfies CopyCommand);
    });

  /** Copies one checkpoint, unless a newer one comes in between. */
  const copyOne = async (step: number): Promise<void> => {
    const startMs = performance.now();
    for (let attempts = 1; ; attempts++) {
      const answer = await attempt(step);
      if (answer.type === 'ended') {
        const { outcome, removed, pruneFailure } = answer;
        if (outcome !== 'gone from the disk')
          metrics.copied(step, (performance.now() - startMs) / 1000);
        log.info({ step, outcome, removed }, 'checkpoint in the store');
        if (pruneFailure !== undefined)
          log.warn({ step }, `older checkpoints stay in the store: ${pruneFailure}`);
        return;
      }
      const { code, message, isRetryable } = answer;
      metrics.copyFailed(code);
      const isLast = attempts === MAX_ATTEMPTS || !isRetryable;
      log.error(
        { step, code, attempts },
        `the checkpoint is not in ${setting.store}: ${message}${isLast ? '; the next one is tried again' : ''}`,
      );
      if (isLast || wanted !== undefined) return;
      lastSignMs = performance.now();
      await sleep(retryDelayMs * 2 ** (attempts - 1), undefined, { signal: closing.signal });
      if ((wanted as number | undefined) !== undefined) return;
    }
  };

  const run = async (): Promise<void> => {
    try {
      while (wanted !== undefined && !closing.signal.aborted) {
        const step = wanted;
        wanted = undefined;
        await copyOne(step);
      }
    } catch (error) {
      if (closing.signal.aborted) return;
      metrics.copyFailed('BUG');
      log.error(`checkpoints are not copied: ${String(error)}`);
    } finally {
      work = undefined;
    }
  };

  return {
    copy(step) {
      wanted = Math.max(step, wanted ?? 0);
      work ??= run();
    },
    async settled({ limitMs, stillMs, onProgress }) {
      const startMs = performance.now();
      lastSignMs = startMs;
      if (onProgress !== undefined) listeners.add(onProgress);
      try {
        while (work !== undefined) {
          const now = performance.now();
          const leftMs = Math.min(limitMs - (now - startMs), stillMs - (now - lastSignMs));
          if (leftMs <= 0) {
            log.error(
              `the last checkpoint is not in ${setting.store} yet: it is not waited for any longer; ` +
                'the next start of the run copies it',
            );
            return;
          }
          await Promise.race([work, sleep(Math.min(leftMs, 200))]);
        }
      } finally {
        if (onProgress !== undefined) listeners.delete(onProgress);
      }
    },
    async close() {
      closing.abort();
      await thread?.terminate();
    },
  };
}
