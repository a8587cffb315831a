import type { TimeLedger } from './gen/videoloom/v1/run.ts';

/** No time at all. */
export const NO_TIME: TimeLedger = {
  decodeSeconds: 0,
  waitSeconds: 0,
  computeSeconds: 0,
  reduceSeconds: 0,
  checkpointSeconds: 0,
  evaluateSeconds: 0,
  setupSeconds: 0,
  wallSeconds: 0,
  fetchSeconds: 0,
  redoSeconds: 0,
  idleSeconds: 0,
  waitByRankSeconds: [],
};

/** The classes that a worker's wall clock falls into, in the order of a step; each second is in one. */
export const ACTIVITIES = [
  'fetch',
  'decode',
  'wait',
  'compute',
  'reduce',
  'checkpoint',
  'redo',
  'idle',
  'evaluate',
  'setup',
] as const;
export type Activity = (typeof ACTIVITIES)[number];

/** What a step takes, and what is lost with it. */
export const STEP_ACTIVITIES = ['fetch', 'decode', 'wait', 'compute', 'reduce'] as const;

/** Time in one class, seconds. */
export function secondsOf(ledger: TimeLedger, activity: Activity): number {
  return ledger[`${activity}Seconds`];
}

/** The sum of two ledgers, field by field. */
export function addLedgers(a: TimeLedger, b: TimeLedger): TimeLedger {
  return combine(a, b, (x, y) => x + y);
}

/** What `a` has more than `b`, field by field. */
export function subtractLedgers(a: TimeLedger, b: TimeLedger): TimeLedger {
  return combine(a, b, (x, y) => x - y);
}

/** The same time, that of the step itself being spent on one that had been committed before. */
export function asRedone(ledger: TimeLedger): TimeLedger {
  const seconds = STEP_ACTIVITIES.reduce((sum, name) => sum + secondsOf(ledger, name), 0);
  const cleared = Object.fromEntries(STEP_ACTIVITIES.map((name) => [`${name}Seconds`, 0]));
  return {
    ...ledger,
    ...cleared,
    redoSeconds: ledger.redoSeconds + seconds,
    waitByRankSeconds: [],
  };
}

/** Share of the wall clock in computation that counts: of steps that are committed, the first time. */
export function goodputOf({ computeSeconds, wallSeconds }: TimeLedger): number {
  return wallSeconds === 0 ? 0 : computeSeconds / wallSeconds;
}

function combine(a: TimeLedger, b: TimeLedger, of: (x: number, y: number) => number): TimeLedger {
  const sums = ACTIVITIES.map((name) => [
    `${name}Seconds`,
    of(secondsOf(a, name), secondsOf(b, name)),
  ]);
  const numRanks = Math.max(a.waitByRankSeconds.length, b.waitByRankSeconds.length);
  return {
    ...(Object.fromEntries(sums) as Record<`${Activity}Seconds`, number>),
    wallSeconds: of(a.wallSeconds, b.wallSeconds),
    waitByRankSeconds: Array.from({ length: numRanks }, (_, rank) =>
      of(a.waitByRankSeconds[rank] ?? 0, b.waitByRankSeconds[rank] ?? 0),
    ),
  };
}
