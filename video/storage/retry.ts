import { setTimeout as sleep } from 'node:timers/promises';
import { VideoloomError } from '../../proto/errors.ts';
import { openRng } from '../../proto/random.ts';

/** How often and how soon a call on a remote store is made again. */
export interface RetryOptions {
  /** Before the second attempt; doubles with each one (0.25 s by default). */
  readonly retryDelayMs?: number;
}

/** Counts the failures of one file's transfer and waits between them. */
export interface Retries {
  /** Waits before the next attempt. @throws the error itself if it is not retryable, or the last attempt has failed */
  after(error: unknown, signal: AbortSignal | undefined): Promise<void>;
  /** Forgets the failures: the transfer has come on. */
  reset(): void;
}

/** Exponential back-off; half of each delay is jitter, a function of the process, of what is fetched and the attempt. */
export function openRetries(what: string, { retryDelayMs = 250 }: RetryOptions): Retries {
  let numFailures = 0;
  return {
    async after(error, signal) {
      signal?.throwIfAborted();
      if (!(error instanceof VideoloomError) || !error.retryable) throw error;
      if (++numFailures === MAX_ATTEMPTS) throw error;
      const jitter = openRng(process.pid, `retry ${what}`, numFailures).uniform();
      const delayMs = Math.min(retryDelayMs * 2 ** (numFailures - 1), MAX_DELAY_MS);
      await sleep(
        delayMs * (0.5 + 0.5 * jitter),
        undefined,
        signal === undefined ? {} : { signal },
      );
    },
    reset() {
      numFailures = 0;
    },
  };
}

/** Calls until it succeeds, as often as {@link openRetries} allows. */
export async function retrying<T>(
  what: string,
  options: RetryOptions & { readonly signal: AbortSignal | undefined },
  call: () => Promise<T>,
): Promise<T> {
  const retries = openRetries(what, options);
  for (;;) {
    try {
      return await call();
    } catch (error) {
      await retries.after(error, options.signal);
    }
  }
}

const MAX_ATTEMPTS = 4;
const MAX_DELAY_MS = 8000;
