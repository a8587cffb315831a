import type { TimeLedger } from '../proto/gen/videoloom/v1/run.ts';

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
  /** What no report has carried yet. */
  unreported(): TimeLedger;
  /** A report with these times has arrived. */
  markReported(time: TimeLedger): void;
}

export function openLedger({ now = () => performance.now(), startMs = 0 } = {}): Ledger {
  const spentMs = new Map<Phase, number>();
  let [phase, phaseStartMs]: [Phase, number] = ['setup', startMs];
  const enter = (next: Phase): void => {
    const time = now();
    spentMs.set(phase, (spentMs.get(phase) ?? 0) + time - phaseStartMs);
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
  const combine = (a: TimeLedger, b: TimeLedger, sign: 1 | -1): TimeLedger => {
    const keys = Object.keys(a) as (keyof TimeLedger)[];
    return Object.fromEntries(
      keys.map((key) => [key, a[key] + sign * b[key]]),
    ) as unknown as TimeLedger;
  };
  let reported: TimeLedger | undefined;
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
      const current = total();
      return reported === undefined ? current : combine(current, reported, -1);
    },
    markReported(time) {
      reported = reported === undefined ? time : combine(reported, time, 1);
    },
  };
}
