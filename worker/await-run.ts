import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { messageOf, UsageError, VideoloomError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { LeaderFailureWatch } from '../proto/leader-failure.ts';
import { COORDINATOR_FILE, SUMMARY_FILE } from '../proto/run-plan.ts';

const LOOK_MS = 500;

/**
 * What `open` gives, once somebody has led the run of a folder and `open` finds what it needs, such as a certificate that
 * the next leader makes. After `limitMs` it is called in any case. Undefined where the run is finished and `open` does not
 * find it: nobody makes it any more.
 * @throws VideoloomError LEFT when `leaving` aborts; LEADER_FAILED where nobody will lead it; what `open` throws
 */
export async function awaitRun<T>(
  folder: string,
  open: () => Promise<T>,
  limitMs: number,
  leaving: AbortSignal,
): Promise<T | undefined> {
  const endMs = performance.now() + limitMs;
  const leader = new LeaderFailureWatch(folder);
  for (let told = ''; ;) {
    const isOver = performance.now() >= endMs;
    let why = 'nobody has led it';
    if (isOver || (await exists(join(folder, COORDINATOR_FILE)))) {
      try {
        return await open();
      } catch (error) {
        if (isOver || !(error instanceof UsageError)) throw error;
        if (await exists(join(folder, SUMMARY_FILE))) return undefined;
        why = messageOf(error);
      }
    }
    await leader.check();
    if (why !== told) process.stderr.write(`waiting for the run in ${folder}: ${why}\n`);
    told = why;
    await delay(LOOK_MS, undefined, { signal: leaving }).catch(() => undefined);
    if (leaving.aborted)
      throw new VideoloomError('LEFT', 'this worker has left', { retryable: true });
  }
}
