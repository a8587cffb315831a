import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { VideoloomError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { COORDINATOR_FILE } from '../proto/run-plan.ts';

const LOOK_MS = 500;

/**
 * Waits until somebody leads the run of a folder: by then it is prepared, and its certificates are there. After `limitMs`
 * whoever reads the folder says what is missing.
 * @throws VideoloomError LEFT when `leaving` aborts
 */
export async function awaitRun(
  folder: string,
  limitMs: number,
  leaving: AbortSignal,
): Promise<void> {
  const file = join(folder, COORDINATOR_FILE);
  const endMs = performance.now() + limitMs;
  for (let isTold = false; !(await exists(file)) && performance.now() < endMs; isTold = true) {
    if (!isTold) process.stderr.write(`waiting for somebody to lead the run in ${folder}\n`);
    await delay(LOOK_MS, undefined, { signal: leaving }).catch(() => undefined);
    if (leaving.aborted)
      throw new VideoloomError('LEFT', 'this worker has left', { retryable: true });
  }
}
