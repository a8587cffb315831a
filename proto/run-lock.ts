import { createHash, randomUUID } from 'node:crypto';
import { linkSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import { VideoloomError } from './errors.ts';
import { GRACE_SECONDS } from './parent-process.ts';
import { isAlive, lookUpProcess } from './process-look.ts';
import { shellWord } from './shell-word.ts';

/** Name of the lock inside a run folder. */
export const LOCK_FILE = 'coordinator.lock';

/** Who holds a run folder. */
interface Holder {
  readonly pid: number;
  readonly host: string;
  /** Start of the process as the kernel counts it; a pid that was given to another process has another one. */
  readonly startedAt: string;
  readonly nonce: string;
  /** What a scheduler runs it in. */
  readonly job?: SchedulerJob | undefined;
}

/** A job of a scheduler that starts it again, perhaps on another machine, once it has ended all of it. */
export interface SchedulerJob {
  readonly id: string;
  /** How often it was started again. */
  readonly restarts: number;
}

export interface LockOptions {
  /** Take it from a process that nobody knows to be dead. */
  readonly takeOver?: boolean;
  /** What this process runs in: a lock of the same job, before it was started again, holds nobody up. */
  readonly job?: SchedulerJob | undefined;
}

/** The right to write into a run folder. */
export interface RunLock {
  /**
   * Whether the one before may still write: it is on another machine, or lives. What a machine that is cut off from the
   * file server has not written yet is written when it is back.
   */
  readonly isContested: boolean;
  /** Whether the lock file is still ours: it is not once somebody has removed or replaced it. */
  isHeld(): boolean;
  /** Gives the folder free; may be called twice. */
  release(): void;
}

/**
 * Takes a run folder for this process. A lock of a process of this machine that has ended is taken over; that of any
 * other where `takeOver` says so: the journal then keeps that one from writing.
 * @throws VideoloomError RUN_LOCKED, naming the holder and the folder
 */
export function lockRun(folder: string, { takeOver = false, job }: LockOptions = {}): RunLock {
  const path = join(folder, LOCK_FILE);
  const holder: Holder = {
    pid: process.pid,
    host: hostname(),
    startedAt: lookUpProcess(process.pid)?.startedAt ?? '',
    nonce: randomUUID(),
    job,
  };
  const own = JSON.stringify(holder);
  // A link to a whole file appears at once and only where none is: nobody ever reads half a lock.
  const draft = `${path}.${holder.nonce}`;
  writeFileSync(draft, own, { flag: 'wx' });
  let isContested = false;
  try {
    for (let isOurs = false; !isOurs;) {
      const found = contentOf(path);
      isOurs =
        found === undefined
          ? linkedAs(draft, path)
          : replaced(path, found, { draft, folder, takeOver, job });
      isContested = found !== undefined && mayLive(parseHolder(found), undefined);
    }
  } finally {
    rmSync(draft, { force: true });
  }
  let isReleased = false;
  return {
    isContested,
    isHeld: () => !isReleased && contentOf(path) === own,
    release() {
      if (isReleased) return;
      isReleased = true;
      try {
        if (contentOf(path) === own) rmSync(path, { force: true });
      } catch {
        // It cannot be read: once this process has ended, it holds nobody up.
      }
    },
  };
}

/** How long a run folder that is locked is waited for: a coordinator whose launcher was killed ends within it. */
export const LOCK_PATIENCE_MS = 1000 * (GRACE_SECONDS + 15);
/** Who waits for longer is told what for. */
export const TELL_OF_LOCK_MS = 2000;

/** To who waits for the lock of a run folder. */
export function waitsForLock(folder: string): string {
  return (
    `another coordinator holds ${folder}, perhaps of a launcher that is gone: waiting up to ` +
    `${LOCK_PATIENCE_MS / 1000} s for the end of its step`
  );
}

/** {@link lockRun} as soon as the folder is free. @throws VideoloomError RUN_LOCKED where it stays locked */
export async function lockRunWhenFree(
  folder: string,
  options: LockOptions,
  say: (line: string) => void,
): Promise<RunLock> {
  const startMs = performance.now();
  for (let isTold = false; ;) {
    try {
      return lockRun(folder, options);
    } catch (error) {
      const isLocked = error instanceof VideoloomError && error.code === 'RUN_LOCKED';
      const waitedMs = performance.now() - startMs;
      if (!isLocked || waitedMs > LOCK_PATIENCE_MS) throw error;
      if (!isTold && waitedMs > TELL_OF_LOCK_MS) {
        isTold = true;
        say(waitsForLock(folder));
      }
      await delay(500);
    }
  }
}

/** Whether somebody else holds a run folder, as far as can be seen from here. */
export function isRunLocked(folder: string, { job }: Pick<LockOptions, 'job'> = {}): boolean {
  const found = contentOf(join(folder, LOCK_FILE));
  if (found === undefined) return false;
  const holder = parseHolder(found);
  return mayLive(holder, job);
}

/**
 * Puts the own lock, of which `draft` is a link, in the place of `found`, whose process is dead; whether that was done,
 * for another process may have been quicker.
 *
 * The right to it is a link named after `found`, which one process gets. Where that one died too, the right to its place
 * is one named after its lock, and so on: nobody ever removes the link of another before the lock itself has changed, and
 * a right that was got later than that shows by the lock being another one than `found`.
 * @throws VideoloomError RUN_LOCKED when the holder lives, or whoever is just taking its place
 */
function replaced(
  path: string,
  found: string,
  {
    draft,
    folder,
    takeOver,
    job,
  }: { draft: string; folder: string; takeOver: boolean } & Pick<LockOptions, 'job'>,
): boolean {
  const rights: string[] = [];
  for (let before = found; ;) {
    const holder = parseHolder(before);
    // Who takes the place on this machine needs a moment for it; of another machine nobody can tell that it will.
    const mayTake = takeOver && (before === found || holder?.host !== hostname());
    if (!mayTake && mayLive(holder, job)) {
      if (contentOf(path) !== found) return false;
      throw runLocked(folder, holder);
    }
    const right = `${path}.after-${createHash('sha256').update(before).digest('hex').slice(0, 16)}`;
    rights.push(right);
    if (linkedAs(draft, right)) break;
    const taker = contentOf(right);
    if (taker === undefined) return false;
    before = taker;
  }
  const isMine = contentOf(path) === found;
  if (isMine) renameSync(draft, path);
  // Those of the dead as well, once they are of no use.
  for (const right of isMine ? rights : rights.slice(-1)) rmSync(right, { force: true });
  return isMine;
}

function runLocked(folder: string, holder: Holder | undefined): VideoloomError {
  const who =
    holder === undefined ? 'an unknown process' : `process ${holder.pid} on host ${holder.host}`;
  return new VideoloomError(
    'RUN_LOCKED',
    `run folder ${folder} belongs to ${who}: two coordinators must not write to one run. ` +
      'End that one first. If it does not answer or its host is gone, take the run from it: ' +
      `videoloom coordinator --run ${shellWord(folder)} --take-over. That serves it to workers; Ctrl-C there gives it ` +
      'free for `videoloom resume`.',
  );
}

function linkedAs(from: string, to: string): boolean {
  try {
    linkSync(from, to);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
}

function contentOf(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code!)) return undefined;
    throw error;
  }
}

function parseHolder(text: string): Holder | undefined {
  try {
    const { pid, host, startedAt, nonce, job } = JSON.parse(text) as Partial<Holder>;
    if (typeof pid !== 'number' || typeof host !== 'string') return undefined;
    return { pid, host, startedAt: startedAt ?? '', nonce: nonce ?? '', job };
  } catch {
    return undefined;
  }
}

/** Whether a holder may still be there; of another machine, or an unknown one, nobody here can tell: it counts as alive. */
function mayLive(holder: Holder | undefined, own: SchedulerJob | undefined): boolean {
  if (holder === undefined) return true;
  const { pid, host, startedAt, job } = holder;
  if (job !== undefined && job.id === own?.id && job.restarts !== own.restarts) return false;
  return host !== hostname() || isAlive(pid, startedAt);
}
