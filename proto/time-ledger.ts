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
  waitByRankSeconds: {},
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

const FIELDS = [...ACTIVITIES.map((name) => `${name}Seconds` as const), 'wallSeconds'] as const;

/** What a step takes, and what is lost with it. */
export const STEP_ACTIVITIES = ['fetch', 'decode', 'wait', 'compute', 'reduce'] as const;

/** Time in one class, seconds. */
export function secondsOf(ledger: TimeLedger, activity: Activity): number {
  return ledger[`${activity}Seconds`];
}

/** The sum of ledgers, field by field. */
export function sumLedgers(ledgers: Iterable<TimeLedger>): TimeLedger {
  // A coordinator of a thousand workers sums as many each time that somebody looks: with nothing made on the way.
  const sum = { ...NO_TIME };
  const waits = new Map<string, number>();
  for (const ledger of ledgers) {
    for (const field of FIELDS) sum[field] += ledger[field];
    for (const rank in ledger.waitByRankSeconds)
      waits.set(rank, (waits.get(rank) ?? 0) + ledger.waitByRankSeconds[rank]!);
  }
  return { ...sum, waitByRankSeconds: Object.fromEntries(waits) };
}

/** For the worker of which rank others waited, and how long, seconds. */
export function waitsByRank({ waitByRankSeconds }: TimeLedger): [rank: number, seconds: number][] {
  return Object.entries(waitByRankSeconds).map(([rank, seconds]) => [Number(rank), seconds]);
}

/** The same time, that of the step itself being spent on one that had been committed before. */
export function asRedone(ledger: TimeLedger): TimeLedger {
  const seconds = STEP_ACTIVITIES.reduce((sum, name) => sum + secondsOf(ledger, name), 0);
  const cleared = Object.fromEntries(STEP_ACTIVITIES.map((name) => [`${name}Seconds`, 0]));
  return {
    ...ledger,
    ...cleared,
    redoSeconds: ledger.redoSeconds + seconds,
    waitByRankSeconds: {},
  };
}

/** Share of the wall clock in computation that counts: of steps that are committed, the first time. */
export function goodputOf({ computeSeconds, wallSeconds }: TimeLedger): number {
  return wallSeconds === 0 ? 0 : computeSeconds / wallSeconds;
}
