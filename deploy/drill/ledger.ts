import type { JournalEvent } from './run-journal.ts';

/** What a journal says of the samples of a run. */
export interface LedgerCheck {
  /** Steps that count at the end. */
  readonly numSteps: number;
  /** Samples of those steps, each used once. */
  readonly numSamples: number;
  /** Commits of steps that were committed before and had to be done again. */
  readonly numRedone: number;
  /** What is wrong; empty in a faultless ledger. */
  readonly faults: readonly string[];
}

/**
 * Plays a journal: a run that was thrown back to a step takes back the commits after it, and what counts at the end has
 * to be every step from 1 to the last, each once, their samples end to end without a gap or an overlap.
 */
export function checkLedger(events: readonly JournalEvent[]): LedgerCheck {
  const faults: string[] = [];
  const counted: JournalEvent[] = [];
  const seen = new Set<number>();
  let numRedone = 0;
  for (const event of events) {
    const { type, step = 0 } = event;
    if (type === 'restored') {
      if (step > counted.length)
        faults.push(`goes on after step ${step}, but only ${counted.length} are committed`);
      counted.length = Math.min(step, counted.length);
    }
    if (type !== 'commit') continue;
    if (step !== counted.length + 1)
      faults.push(`step ${step} is committed after step ${counted.length}`);
    if (seen.has(step)) numRedone++;
    seen.add(step);
    counted.push(event);
  }
  let position: number | undefined;
  let numSamples = 0;
  for (const { step, firstPosition = 0, numSamples: count = 0 } of counted) {
    position ??= firstPosition;
    if (firstPosition !== position)
      faults.push(`step ${step ?? '?'} begins at sample ${firstPosition}, expected ${position}`);
    position += count;
    numSamples += count;
  }
  const finished = events.findLast(({ type }) => type === 'finished');
  if (finished === undefined) faults.push('the run has not finished');
  else if (finished.step !== counted.length)
    faults.push(`finished at step ${finished.step ?? '?'} with ${counted.length} steps committed`);
  return { numSteps: counted.length, numSamples, numRedone, faults };
}
