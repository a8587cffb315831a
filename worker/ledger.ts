import type { TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import { ACTIVITIES } from '../proto/time-ledger.ts';
import {
  clockMs,
  isStepActivity,
  LedgerCells,
  totalOf,
  type Phase,
  type Pulse,
} from './ledger-cells.ts';

export type { Phase, Pulse };

/**
 * Where the training loop's wall clock goes. Exactly one phase runs at any time, so the phases add up to the wall by
 * construction; what happens beside the loop (decoding ahead, writing a checkpoint) counts only while the loop waits
 * for it. The time of a step is settled with the step: one that is given up, or that had been committed before, turns
 * into time redone. By default it begins with the process.
 */
export interface Ledger {
  readonly phase: Phase;
  /** The numbers behind it, for the thread that sends the beats. */
  readonly cells: LedgerCells;
  pulse(): Pulse;
  /** A sign of progress in the running phase: a clip, a microbatch, a chunk. */
  progress(): void;
  /** Takes a growing `count` of work done beside the loop as signs of progress, looked at every `everyMs`. */
  watch(count: () => number, everyMs: number): () => void;
  /** Ends the running phase and begins another. */
  enter(phase: Phase): void;
  /** Runs `work` in a phase and returns to the one before. */
  within<T>(phase: Phase, work: () => Promise<T>): Promise<T>;
  /** From here on what a step takes waits for {@link settleStep} or {@link giveUpStep}. */
  beginStep(): void;
  /** The step under way had been committed before the run went back. */
  markRedone(): void;
  settleStep(): void;
  giveUpStep(): void;
  /** So much of the time waited was for the worker of a rank. */
  blame(rank: number, ms: number): void;
  /** The committed step whose state is in memory, and the generation that committed it, for the beats. */
  holdStep(step: number, generation: number): void;
  /** This worker wants to leave, for the beats. */
  sayLeaving(): void;
  /** Since the start; time in steps that are not settled yet is not in `settled`. */
  total(): TimeLedger;
  settled(): TimeLedger;
}

export function openLedger({
  now = clockMs,
  startMs = clockMs() - performance.now(),
  numRanks = 64,
} = {}): Ledger {
  const cells = LedgerCells.create(numRanks);
  let isRedone = false;
  cells.write(() => {
    cells.set('phase', ACTIVITIES.indexOf('setup'));
    for (const place of ['startMs', 'signMs', 'phaseMs', 'bookedMs'] as const)
      cells.set(place, startMs);
  });
  const phase = (): Phase => ACTIVITIES[cells.get('phase')] as Phase;
  const isInStep = (): boolean => cells.get('isInStep') === 1;

  /** Books the time of the running phase up to now. */
  const book = (): number => {
    const time = now();
    const current = phase();
    const ms = Math.max(0, time - cells.get('bookedMs'));
    cells.add(isInStep() && isStepActivity(current) ? 'step' : 'settled', current, ms);
    cells.set('bookedMs', time);
    return time;
  };
  const enter = (next: Phase): void => {
    cells.write(() => {
      const time = book();
      if (next !== phase()) {
        cells.set('signMs', time);
        cells.set('phaseMs', time);
      }
      cells.set('phase', ACTIVITIES.indexOf(next));
    });
  };
  const progress = (): void => {
    cells.write(() => {
      cells.set('signs', cells.get('signs') + 1);
      cells.set('signMs', now());
    });
  };
  const endStep = (counts: boolean): void => {
    cells.write(() => {
      book();
      const { activities, waits } = cells.takeStep();
      for (const [i, activity] of ACTIVITIES.entries())
        cells.add('settled', counts ? activity : 'redo', activities[i]!);
      if (counts) for (const [rank, ms] of waits.entries()) cells.addWait('settled', rank, ms);
      cells.set('isInStep', 0);
    });
    isRedone = false;
  };

  return {
    get phase() {
      return phase();
    },
    cells,
    pulse: () => cells.pulse(now()),
    progress,
    watch(count, everyMs) {
      let last = count();
      const timer = setInterval(() => {
        const seen = count();
        if (seen !== last) progress();
        last = seen;
      }, everyMs);
      timer.unref();
      return () => {
        clearInterval(timer);
      };
    },
    enter,
    async within(inner, work) {
      const outer = phase();
      enter(inner);
      try {
        return await work();
      } finally {
        enter(outer);
      }
    },
    beginStep() {
      cells.write(() => {
        book();
        cells.set('isInStep', 1);
      });
    },
    markRedone() {
      isRedone = true;
    },
    settleStep() {
      if (isInStep()) endStep(!isRedone);
    },
    giveUpStep() {
      if (isInStep()) endStep(false);
    },
    blame(rank, ms) {
      cells.write(() => {
        cells.addWait(isInStep() ? 'step' : 'settled', rank, ms);
      });
    },
    holdStep(step, generation) {
      cells.write(() => {
        cells.set('heldStep', step);
        cells.set('heldIn', generation);
      });
    },
    sayLeaving() {
      cells.set('isLeaving', 1);
    },
    total: () => totalOf(cells.pulse(now())),
    settled: () => cells.pulse(now()).settled,
  };
}
