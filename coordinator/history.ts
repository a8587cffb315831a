import type { RunPlan } from '../proto/run-plan.ts';
import type { JournalEvent } from './journal-events.ts';

type EventOf<Type extends JournalEvent['type']> = Extract<JournalEvent, { type: Type }>;

/** What the journal tells of a run, so far as somebody still wants to know it. */
export interface RunHistory {
  /** The plan that the run was first opened with. */
  plan: RunPlan | undefined;
  /** The last step whose commit counts. */
  committedStep: number;
  /** Its record, unless the run was resumed from a checkpoint at it. */
  lastCommit: EventOf<'commit'> | undefined;
  /** Highest generation number used. */
  generationNumber: number;
  finished: EventOf<'finished'> | undefined;
  /** Substituted samples of commits that count, by step; steps without any are left out. */
  readonly skippedByStep: Map<number, number>;
}

/** The history of a run that has just been thought of. */
export function emptyHistory(): RunHistory {
  return {
    plan: undefined,
    committedStep: 0,
    lastCommit: undefined,
    generationNumber: 0,
    finished: undefined,
    skippedByStep: new Map(),
  };
}

/** Adds one event to `history`, in the order of the journal. */
export function extendHistory(history: RunHistory, event: JournalEvent): void {
  switch (event.type) {
    case 'opened':
      history.plan ??= event.plan;
      break;
    case 'generation':
      history.generationNumber = event.generation;
      break;
    case 'restored':
      history.committedStep = event.step;
      if (history.lastCommit?.step !== event.step) history.lastCommit = undefined;
      for (const step of history.skippedByStep.keys()) {
        if (step > event.step) history.skippedByStep.delete(step);
      }
      break;
    case 'commit':
      history.committedStep = event.step;
      history.lastCommit = event;
      if (event.skipped.length > 0) history.skippedByStep.set(event.step, event.skipped.length);
      break;
    case 'finished':
      history.finished = event;
      break;
    default:
      break;
  }
}

/** Samples that were substituted in all steps that count. */
export function numSkipped({ skippedByStep }: RunHistory): number {
  return [...skippedByStep.values()].reduce((total, count) => total + count, 0);
}
