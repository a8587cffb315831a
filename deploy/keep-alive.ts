import type { ChildProcess } from 'node:child_process';
import { setTimeout as delay } from 'node:timers/promises';
import { exitOf, type Exit } from './processes.ts';

/** How often a process is started anew: one that dies soon after its start, and any within an hour. */
const MAX_RESTARTS = { soon: 3, anHour: 20 } as const;
/** Who has lived so long has not died of its start. */
const LONG_LIFE_MS = 20_000;
const HOUR_MS = 3_600_000;
const FIRST_RESTART_MS = 20;

export interface Keeping {
  /** Starts it anew. */
  readonly again: () => ChildProcess;
  /** Told of each end. */
  readonly onExit: (child: ChildProcess, exit: Exit) => void;
  /** Whether nothing is to be started any more. */
  readonly isOver: () => boolean;
  /** Whether it may go well when it is started again after such an end. */
  readonly mayGoWell: (exit: Exit) => boolean;
}

/** Why a process is not started anew. */
export interface LastDeath extends Exit {
  /** The last lines that it wrote to stderr. */
  readonly said: string;
}

/**
 * Starts a process anew whenever it dies, up to the limits. Ends with undefined when it has ended well or nothing is to
 * be started any more.
 */
export async function keepAlive(
  child: ChildProcess,
  { again, onExit, isOver, mayGoWell }: Keeping,
): Promise<LastDeath | undefined> {
  const deaths: number[] = [];
  for (let restarts = 0; ; restarts++) {
    const bornMs = performance.now();
    const said = lastLines(child);
    const exit = await exitOf(child);
    onExit(child, exit);
    if (isOver() || exit.code === 0) return undefined;
    const nowMs = performance.now();
    if (nowMs - bornMs > LONG_LIFE_MS) restarts = 0;
    deaths.push(nowMs);
    const isTooOften = (deaths.at(-1 - MAX_RESTARTS.anHour) ?? -Infinity) > nowMs - HOUR_MS;
    if (!mayGoWell(exit) || isTooOften || restarts === MAX_RESTARTS.soon)
      return { ...exit, said: said() };
    await delay(FIRST_RESTART_MS * 4 ** restarts);
    if (isOver()) return undefined;
    child = again();
  }
}

/** Keeps the last lines that a child writes to stderr. */
export function lastLines(child: ChildProcess): () => string {
  let tail = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    tail = (tail + chunk.toString()).slice(-4000);
  });
  return () => tail.trim();
}
