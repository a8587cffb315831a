import type { TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import { NO_TIME } from '../proto/time-ledger.ts';

export type Phase = 'setup' | 'decode' | 'wait' | 'compute' | 'reduce' | 'checkpoint' | 'evaluate';

/**
 * Where the training loop's wall clock goes. Exactly one phase runs at any time, so the phases add up to the wall by
 * construction; what happens beside the loop (decoding ahead, writing a checkpoint) counts only while the loop waits
 * for it. By default it begins with the process, where `performance.now()` is 0.
 */
export interface Ledger {
  readonly phase: Phase;
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

export function openLedger({ now = () => performance.now(), startMs = 0 } = {}): Ledger {
  const spentMs = new Map<Phase, number>();
  let [phase, phaseStartMs]: [Phase, number] = ['setup', startMs];
  const enter = (next: Phase): void => {
    const time = now();
    // In this order it never shrinks: a rounded difference of rising times is not negative.
    spentMs.set(phase, (spentMs.get(phase) ?? 0) + (time - phaseStartMs));
    [phase, phaseStartMs] = [next, time];
  };
  const total = (): TimeLedger => {
    enter(phase);
    const seconds = (of: Phase): number => (spentMs.get(of) ?? 0) / 1000;
    return {
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
      const keys = Object.keys(offered) as (keyof TimeLedger)[];
      const entries = keys.map((key): [string, number] => [key, offered[key] - reported[key]]);
      return Object.fromEntries(entries) as unknown as TimeLedger;
    },
    markReported() {
      reported = offered;
    },
  };
}
