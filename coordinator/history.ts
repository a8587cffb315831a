import type { TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import type { RunPlan } from '../proto/run-plan.ts';
import type { JournalEvent, JournaledSkip } from './journal-events.ts';

type EventOf<Type extends JournalEvent['type']> = Extract<JournalEvent, { type: Type }>;

/** What the journal tells of a run, so far as somebody still wants to know it. */
export interface RunHistory {
  /** The plan that the run was first opened with. */
  plan: RunPlan | undefined;
  /** The last step whose commit counts. */
  committedStep: number;
  /** Its record, unless the run was resumed from a checkpoint at it. */
  lastCommit: EventOf<'commit'> | undefined;
  /** Engine and platform that steps were committed with; all workers of a run have the same. */
  committedWith: string | undefined;
  /** Those of the worker that joined last. */
  joinedWith: string | undefined;
  /** Steps of the checkpoints that were completed and neither pruned nor found damaged. */
  readonly checkpoints: Set<number>;
  /** Highest generation number used. */
  generationNumber: number;
  finished: EventOf<'finished'> | undefined;
  /** The highest step ever committed, whether or not it still counts: up to here it is known what did not decode. */
  highestStep: number;
  /**
   * Substituted samples of every step up to `highestStep`; steps without any are left out. A time-out or a crash is a
   * matter of the machine and the moment, so a step that is computed again takes from here what happened.
   */
  readonly skipsByStep: Map<number, readonly JournaledSkip[]>;
  /** Where the wall clock went, by worker process. */
  readonly times: Map<string, TimeLedger>;
}

/** The history of a run that has just been thought of. */
export function emptyHistory(): RunHistory {
  return {
    plan: undefined,
    committedStep: 0,
    lastCommit: undefined,
    committedWith: undefined,
    joinedWith: undefined,
    checkpoints: new Set(),
    generationNumber: 0,
    finished: undefined,
    highestStep: 0,
    skipsByStep: new Map(),
    times: new Map(),
  };
}

/** Adds one event to `history`, in the order of the journal. */
export function extendHistory(history: RunHistory, event: JournalEvent): void {
  switch (event.type) {
    case 'opened':
      history.plan ??= event.plan;
      break;
    case 'worker-joined':
      history.joinedWith = event.engine;
      break;
    case 'generation':
      history.generationNumber = event.generation;
      break;
    case 'restored':
      history.committedStep = event.step;
      if (history.lastCommit?.step !== event.step) history.lastCommit = undefined;
      // Its result was lost: the steps from here on are computed again.
      if (history.finished !== undefined && history.finished.step > event.step)
        history.finished = undefined;
      break;
    case 'commit':
      history.committedStep = event.step;
      history.lastCommit = event;
      history.committedWith ??= history.joinedWith;
      history.highestStep = Math.max(history.highestStep, event.step);
      if (event.skipped.length > 0) history.skipsByStep.set(event.step, event.skipped);
      break;
    case 'checkpoint':
      history.checkpoints.add(event.step);
      break;
    case 'checkpoint-pruned':
    case 'checkpoint-damaged':
      history.checkpoints.delete(event.step);
      break;
    case 'time':
      history.times.set(event.process, event.spent);
      break;
    case 'finished':
      history.finished = event;
      break;
    default:
      break;
  }
}

/** Samples that were substituted in all steps that count. */
export function numSkipped({ committedStep, skipsByStep }: RunHistory): number {
  let total = 0;
  for (const [step, skips] of skipsByStep) if (step <= committedStep) total += skips.length;
  return total;
}
