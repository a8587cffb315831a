/** Where the wall clock of all worker processes of a run went, each process counted once, dead ones too. */

import type { TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import { asRedone, NO_TIME, sumLedgers } from '../proto/time-ledger.ts';

/** What a process told last. */
export interface ProcessTime {
  /** Since it started, without the step under way. */
  readonly settled: TimeLedger;
  /** The step under way. */
  readonly step: TimeLedger;
}

/** Of a process that has told nothing yet. */
export const UNTOLD: ProcessTime = { settled: NO_TIME, step: NO_TIME };

/** Time of a process that is gone: what it did for the step under way has come to nothing. */
export function closingTime({ settled, step }: ProcessTime): TimeLedger {
  return sumLedgers([settled, asRedone(step)]);
}

/** Sum over the living and over those that the journal tells of; what a living one tells itself is newer. */
export function totalTime(
  living: readonly { readonly process: string; readonly time: ProcessTime }[],
  journaled: ReadonlyMap<string, TimeLedger>,
  { withStep }: { readonly withStep: boolean },
): TimeLedger {
  const byProcess = new Map(journaled);
  const underWay: TimeLedger[] = [];
  for (const { process, time } of living) {
    if (time === UNTOLD) continue;
    // A process that was lost and joins again tells less than was journaled for it, until it has settled the step that
    // it lost.
    const known = byProcess.get(process)?.wallSeconds ?? 0;
    if (time.settled.wallSeconds < known) continue;
    byProcess.set(process, time.settled);
    if (withStep) underWay.push(time.step);
  }
  return sumLedgers([...byProcess.values(), ...underWay]);
}
