/** What of a journal is told to whoever subscribes: the one table from its records to events. */
import type { RunPlan } from '../../proto/run-plan.ts';
import type { CloudEvent, RunEventName } from '../../proto/run-events.ts';
import type { JournalRecord } from '../journal.ts';

/** An event of a run, before it is put into an envelope. */
export interface RunEvent {
  readonly name: RunEventName;
  /** @see CloudEvent.subject */
  readonly about?: string;
  readonly data: CloudEvent['data'];
}

/**
 * Gives the events of one record after the other, from the first record of a journal on: what they are depends on the
 * journal alone, so that whoever reads it again finds the same ones. Steps are not told of one by one, which would flood
 * a stream, and of what workers say of each other's addresses nothing is passed on.
 */
export function openEventTable(): (record: JournalRecord) => readonly RunEvent[] {
  let plan: RunPlan | undefined;
  const quarantined = new Set<number>();
  return (record) => {
    switch (record.type) {
      case 'opened': {
        ({ plan } = record);
        const { totalSteps, numTrainSamples, seed, microbatches, microbatchSize } = plan;
        const data = {
          totalSteps,
          numTrainSamples,
          seed,
          clipsPerStep: microbatches * microbatchSize,
        };
        return [{ name: record.seq === 1 ? 'run.started' : 'run.resumed', data }];
      }
      case 'worker-joined': {
        const { workerId, host, engine } = record;
        return [
          { name: 'worker.joined', about: `worker/${workerId}`, data: { workerId, host, engine } },
        ];
      }
      case 'worker-lost': {
        const { workerId, reason, generation, phase, afterMs } = record;
        const data = {
          workerId,
          reason,
          message: short(record.message),
          generation,
          phase,
          afterMs,
        };
        return [{ name: 'worker.lost', about: `worker/${workerId}`, data }];
      }
      case 'worker-left': {
        const { workerId, generation } = record;
        return [
          { name: 'worker.left', about: `worker/${workerId}`, data: { workerId, generation } },
        ];
      }
      case 'generation': {
        const { generation, committedStep, restoreStep, members } = record;
        const workers = members.slice(0, MAX_LISTED).map(({ workerId }) => workerId);
        const data = {
          generation,
          committedStep,
          restoreStep,
          numWorkers: members.length,
          workers,
        };
        return [{ name: 'generation.opened', data }];
      }
      case 'restored':
        return [{ name: 'run.restored', data: { step: record.step, from: record.from } }];
      case 'commit':
        return commitEvents(record, plan, quarantined);
      case 'checkpoint': {
        const { step, generation, sizeBytes } = record;
        return [{ name: 'checkpoint.committed', ...ofCheckpoint(step, { generation, sizeBytes }) }];
      }
      case 'checkpoint-failed': {
        const { step, reason, message } = record;
        return [
          { name: 'checkpoint.failed', ...ofCheckpoint(step, { reason, message: short(message) }) },
        ];
      }
      case 'checkpoint-pruned':
        return [{ name: 'checkpoint.pruned', ...ofCheckpoint(record.step, {}) }];
      case 'checkpoint-damaged': {
        const { step, keptAs, message } = record;
        return [
          {
            name: 'checkpoint.damaged',
            ...ofCheckpoint(step, { keptAs, message: short(message) }),
          },
        ];
      }
      case 'stop-requested':
        return [{ name: 'run.stop-requested', data: {} }];
      case 'stopped':
        return [{ name: 'run.stopped', data: { step: record.step } }];
      case 'finished': {
        const { step, figures, weightsSha256 } = record;
        return [{ name: 'run.finished', data: { step, weightsSha256, figures } }];
      }
      case 'failed':
        return [
          { name: 'run.failed', data: { code: record.code, message: short(record.message) } },
        ];
      case 'time':
        return [];
    }
  };
}

type Commit = Extract<JournalRecord, { type: 'commit' }>;

function commitEvents(
  record: Commit,
  plan: RunPlan | undefined,
  quarantined: Set<number>,
): readonly RunEvent[] {
  const events: RunEvent[] = [];
  const { step, objectives, gradientNorm, learningRate, skipped } = record;
  const fresh = skipped.filter(({ sample }) => !quarantined.has(sample));
  if (fresh.length > 0) {
    for (const { sample } of fresh) quarantined.add(sample);
    const samples = fresh
      .slice(0, MAX_LISTED)
      .map(({ sample, reason, message }) => ({ sample, reason, message: short(message) }));
    events.push({ name: 'data.quarantined', data: { step, numSamples: fresh.length, samples } });
  }
  if (plan === undefined) return events;
  const losses = Object.fromEntries(
    objectives.map(({ name, lossSum, count }) => [name, count === 0 ? 0 : lossSum / count]),
  );
  const clipsPerStep = plan.microbatches * plan.microbatchSize;
  const epochsAfter = (steps: number): number =>
    Math.floor((steps * clipsPerStep) / plan.numTrainSamples);
  const data = { step, totalSteps: plan.totalSteps, epoch: epochsAfter(step), losses };
  const apart = (whole: number): number => Math.max(1, Math.floor(whole / PROGRESS_EVENTS));
  const epochsApart = apart(epochsAfter(plan.totalSteps));
  const toldAfter = (steps: number): number => Math.floor(epochsAfter(steps) / epochsApart);
  if (toldAfter(step) > toldAfter(step - 1))
    events.push({ name: 'epoch.finished', data: { ...data, epoch: epochsAfter(step) - 1 } });
  if (step % apart(plan.totalSteps) === 0)
    events.push({ name: 'run.progressed', data: { ...data, gradientNorm, learningRate } });
  return events;
}

/** So many a run of each kind, about: those of steps, and those of epochs where there are more of them. */
const PROGRESS_EVENTS = 100;
/** What a server takes at most, 1 MiB unless it is told otherwise, is not to be reached by lists and texts. */
const MAX_LISTED = 100;
const MAX_TEXT = 1000;

function short(text: string): string {
  return text.length <= MAX_TEXT ? text : `${text.slice(0, MAX_TEXT)}…`;
}

function ofCheckpoint(
  step: number,
  data: object,
): Pick<RunEvent, 'about' | 'data'> & { about: string } {
  return { about: `checkpoint/${step}`, data: { step, ...data } };
}
