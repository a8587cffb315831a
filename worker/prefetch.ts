/**
 * Makes what the next steps need while the current one is computed, as many steps ahead as it takes that training does
 * not wait, and no more than bounds on steps and bytes allow.
 */

import { VideoloomError } from '../proto/errors.ts';

/** How far ahead to work, and what that is decided on. */
export interface PrefetchDepth {
  readonly steps: number;
  /** Takes in a row at which everything ahead was ready. */
  readonly idleTakes: number;
  /** So many of them, and one step less is enough. */
  readonly patience: number;
}

/** What a take found. */
export interface TakeOutcome {
  /** What was asked for was not ready. */
  readonly hadToWait: boolean;
  /** All that was begun for later steps was ready. */
  readonly allReady: boolean;
}

const FIRST_PATIENCE = 16;
const MAX_PATIENCE = 1024;

/** Where a source of batches begins. */
export const FIRST_DEPTH: PrefetchDepth = { steps: 1, idleTakes: 0, patience: FIRST_PATIENCE };

/**
 * The depth after a take: one step more when training had to wait, one less when it never did for long. Every wait
 * doubles what "long" means, so that a depth that was needed once is not given up again and again.
 */
export function adaptDepth(
  { steps, idleTakes, patience }: PrefetchDepth,
  { hadToWait, allReady }: TakeOutcome,
  maxSteps: number,
): PrefetchDepth {
  if (hadToWait) {
    const grown = Math.min(steps + 1, maxSteps);
    return { steps: grown, idleTakes: 0, patience: Math.min(2 * patience, MAX_PATIENCE) };
  }
  const idle = allReady ? idleTakes + 1 : 0;
  if (idle < patience || steps === 1) return { steps, idleTakes: idle, patience };
  return { steps: steps - 1, idleTakes: 0, patience };
}

/** What lies ready, for metrics. */
export interface PrefetchState {
  /** Steps ahead that are worked on or ready. */
  readonly depth: number;
  readonly readyBytes: number;
}

export interface PrefetcherOptions<T> {
  /** Makes what a step needs; undefined where it is too early for that. */
  readonly make: (step: number) => Promise<T | undefined>;
  readonly sizeBytes: (made: T) => number;
  /** Bounds of what is ahead of the step that is taken. One step ahead is made however large it is. */
  readonly maxSteps: number;
  readonly maxBytes: number;
  readonly lastStep: number;
  readonly onTake?: ((state: PrefetchState) => void) | undefined;
}

export interface Prefetcher<T> {
  /** Begins with a step that will be asked for. */
  prepare(step: number): void;
  /** What a step needs; steps are asked for in order. */
  take(step: number): Promise<T>;
}

interface Ahead<T> {
  readonly made: Promise<T | undefined>;
  /** Known once it is made. */
  sizeBytes: number | undefined;
}

/** Holds nothing that has to be closed; what nobody takes is let go of with it. */
export function openPrefetcher<T>(options: PrefetcherOptions<T>): Prefetcher<T> {
  const { make, sizeBytes, maxSteps, maxBytes, lastStep, onTake } = options;
  const ahead = new Map<number, Ahead<T>>();
  let depth = FIRST_DEPTH;
  let hasBegun = false;
  let largestBytes = 0;

  const begin = (step: number): Ahead<T> => {
    const known = ahead.get(step);
    if (known !== undefined) return known;
    const entry: Ahead<T> = {
      sizeBytes: undefined,
      made: make(step).then((made) => {
        if (made === undefined) {
          ahead.delete(step);
          return undefined;
        }
        entry.sizeBytes = sizeBytes(made);
        largestBytes = Math.max(largestBytes, entry.sizeBytes);
        return made;
      }),
    };
    // A step that nobody comes to take (the generation ended) must not count as unhandled.
    entry.made.catch(() => undefined);
    ahead.set(step, entry);
    return entry;
  };

  /** How many steps may be ahead; one until it is known how large they are. */
  const allowed = (): number => {
    const fitting = largestBytes === 0 ? 1 : Math.floor(maxBytes / largestBytes);
    return Math.max(1, Math.min(maxSteps, fitting));
  };

  return {
    prepare(step) {
      void begin(step);
    },
    async take(step) {
      const taken = begin(step);
      ahead.delete(step);
      const others = [...ahead.values()];
      // The first one is always waited for.
      if (hasBegun) {
        const hadToWait = taken.sizeBytes === undefined;
        const allReady = others.every((other) => other.sizeBytes !== undefined);
        depth = adaptDepth(depth, { hadToWait, allReady }, allowed());
      }
      hasBegun = true;
      const steps = Math.min(depth.steps, allowed());
      for (let next = step + 1; next <= Math.min(lastStep, step + steps); next++) void begin(next);
      onTake?.({
        depth: steps,
        readyBytes: others.reduce((sum, other) => sum + (other.sizeBytes ?? 0), 0),
      });
      const made = (await taken.made) ?? (await make(step));
      if (made !== undefined) return made;
      throw new VideoloomError(
        'LEASE_OUT_OF_WINDOW',
        `the coordinator gives no samples for step ${step}, which is the next one here`,
        { retryable: true },
      );
    },
  };
}
