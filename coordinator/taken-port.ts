import { setTimeout as sleep } from 'node:timers/promises';

import { VideoloomError } from '../proto/errors.ts';

const TRY_AGAIN_MS = 200;

/**
 * What `listen` gives; tried again while its port is taken, for up to `limitMs`. Undefined when `signal` aborts before.
 * @throws VideoloomError PORT_IN_USE after that time; at once what else `listen` throws
 */
export async function whenFree<T>(
  listen: () => Promise<T>,
  limitMs: number,
  signal: AbortSignal,
): Promise<T | undefined> {
  for (const endMs = performance.now() + limitMs; ;) {
    try {
      return await listen();
    } catch (error) {
      const isTaken = error instanceof VideoloomError && error.code === 'PORT_IN_USE';
      if (!isTaken || performance.now() >= endMs) throw error;
    }
    await sleep(TRY_AGAIN_MS, undefined, { signal }).catch(() => undefined);
    if (signal.aborted) return undefined;
  }
}
