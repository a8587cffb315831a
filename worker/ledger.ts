import type { TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import { NO_TIME, subtractLedgers } from '../proto/time-ledger.ts';

export type Phase = 'setup' | 'decode' | 'wait' | 'compute' | 'reduce' | 'checkpoint' | 'evaluate';

/**
 * Where the training loop's wall clock goes. Exactly one phase runs at any time, so the phases add up to the wall by
 * construction; what happens beside the loop (decoding ahead, writing a checkpoint) counts only while the loop waits
 * for it. By default it begins with the process, where `performance.now()` is 0.
 */
export interface Ledger {
  readonly phase: Phase;
  /** How far the running phase is, for the beats. */
  pulse(): Pulse;
  /** A sign of progress in the running phase: a clip, a microbatch, a chunk. */
  progress(): void;
  /** Ends the running phase and begins another. */
  enter(phase: Phase): void;
  /** Runs `work` in a phase and returns to the one before. */
  within<T>(phase: Phase, work: () => Promise<T>): Promise<T>;
  /** Since the start. */
  total(): TimeLedger;
  /** What no report has carried yet; no part is ever below zero. */
  unreported(): TimeLedger;
  /** The report made of the last `unreported()` has arrived. */
  markReported(): void;
}

/** What the beats tell of a worker: that it moves, or since when it stands still. */
export interface Pulse {
  readonly phase: Phase;
  /** Signs of progress since the start. */
  readonly progress: number;
  /** Since the last of them, or since the phase began. */
  readonly stillMs: number;
  readonly phaseMs: number;
}

export function openLedger({ now = () => performance.now(), startMs = 0 } = {}): Ledger {
  const spentMs = new Map<Phase, number>();
  let [phase, phaseStartMs]: [Phase, number] = ['setup', startMs];
  let [signs, signMs, sinceMs] = [0, startMs, startMs];
  const progress = (): void => {
    signs++;
    signMs = now();
  };
  const enter = (next: Phase): void => {
    const time = now();
    if (next !== phase) [signMs, sinceMs] = [time, time];
    // In this order it never shrinks: a rounded difference of rising times is not negative.
    spentMs.set(phase, (spentMs.get(phase) ?? 0) + (time - phaseStartMs));
    [phase, phaseStartMs] = [next, time];
  };
  const total = (): TimeLedger => {
    enter(phase);
    const seconds = (of: Phase): number => (spentMs.get(of) ?? 0) / 1000;
    return {
      ...NO_TIME,
      decodeSeconds: seconds('decode'),
      waitSeconds: seconds('wait'),
      computeSeconds: seconds('compute'),
      reduceSeconds: seconds('reduce'),
      checkpointSeconds: seconds('checkpoint'),
      evaluateSeconds: seconds('evaluate'),
      setupSeconds: seconds('setup'),
      wallSeconds: (phaseStartMs - startMs) / 1000,
    };
  };
  // Totals, not a sum of reports: the rounding of such a sum can overtake the total.
  let [offered, reported] = [total(), NO_TIME];
  return {
    get phase() {
      return phase;
    },
    pulse() {
      const time = now();
      return {
        phase,
        progress: signs,
        stillMs: Math.round(time - signMs),
        phaseMs: Math.round(time - sinceMs),
      };
    },
    progress,
    enter,
    async within(inner, work) {
      const outer = phase;
      enter(inner);
      try {
        return await work();
      } finally {
        enter(outer);
      }
    },
    total,
    unreported() {
      offered = total();
      return subtractLedgers(offered, reported);
    },
    markReported() {
      reported = offered;
    },
  };
}
