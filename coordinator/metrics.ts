import { Counter, Gauge, Histogram } from 'prom-client';
import type { Registry } from 'prom-client';

import type { TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import { ACTIVITIES, goodputOf, secondsOf, waitsByRank } from '../proto/time-ledger.ts';
import type { JournalEvent } from './journal-events.ts';
import type { RunState } from './run-state.ts';

/** What the coordinator counts. Figures of the state itself are read when somebody asks for them. */
export interface RunMetrics {
  /** Counts what has just been journaled, at `nowMs` on a clock that never goes back. */
  observe(event: JournalEvent, nowMs: number): void;
  /** Counts a call that was refused because its sender is out of date. */
  observeFenced(rpc: string): void;
  /** Tells the newest whole checkpoint, which an earlier coordinator of the run may have completed. */
  showCheckpoint(sizeBytes: number, completed: Date): void;
  /** Notes how long a stage of a checkpoint took here. */
  observeCheckpointStage(stage: 'manifest' | 'verify', seconds: number): void;
}

/** Registers the coordinator's metrics of one run. `state` and the time `spent` so far are asked for at each scrape. */
export function openRunMetrics(
  registry: Registry,
  state: () => RunState,
  spent: () => TimeLedger,
): RunMetrics {
  const registers = [registry];
  let summed: TimeLedger | undefined;
  /** The same for all metrics of a scrape: it is a sum over all workers. */
  const spentNow = (): TimeLedger => {
    if (summed === undefined) {
      summed = spent();
      setImmediate(() => {
        summed = undefined;
      });
    }
    return summed;
  };
  const counter = <Label extends string>(
    name: string,
    help: string,
    ...labelNames: Label[]
  ): Counter<Label> => new Counter({ name, help, labelNames, registers });
  const gauge = <Label extends string>(
    name: string,
    help: string,
    ...labelNames: Label[]
  ): Gauge<Label> => new Gauge({ name, help, labelNames, registers });
  const read = (name: string, help: string, value: (state: RunState) => number): void => {
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(value(state()));
      },
    });
  };

  gauge('videoloom_build_info', 'Build that serves this.', 'node').set(
    { node: process.version },
    1,
  );
  gauge('videoloom_run_info', 'Run that is coordinated.', 'run_id').set(
    { run_id: state().plan.runId },
    1,
  );
  read('videoloom_global_step', 'Last committed step.', ({ committedStep }) => committedStep);
  read('videoloom_total_steps', 'Steps of the whole run.', ({ plan }) => plan.totalSteps);
  read(
    'videoloom_epoch',
    'Passes over the training data begun before the next step, from 0.',
    epochOf,
  );
  read(
    'videoloom_membership_epoch',
    'Number of the generation.',
    ({ generationNumber }) => generationNumber,
  );
  read(
    'videoloom_checkpoint_last_step',
    'Step of the newest whole checkpoint.',
    ({ restoreStep }) => restoreStep,
  );
  new Gauge({
    name: 'videoloom_workers',
    help: 'Workers that have joined.',
    labelNames: ['state'],
    registers,
    collect() {
      const { workers, generation } = state();
      const numMembers = generation?.members.length ?? 0;
      this.set({ state: 'member' }, numMembers);
      this.set({ state: 'waiting' }, Math.max(0, workers.length - numMembers));
    },
  });
  const steps = counter('videoloom_steps_total', 'Steps committed, redone ones included.');
  const samples = counter('videoloom_samples_total', 'Samples of committed steps.');
  const tokens = counter('videoloom_tokens_total', 'Text tokens of committed steps.');
  const skipped = counter(
    'videoloom_samples_skipped_total',
    'Samples that were substituted in committed steps, redone ones included.',
    'reason',
  );
  const loss = gauge(
    'videoloom_train_loss',
    'Mean loss of the last committed step, nats.',
    'objective',
  );
  const learningRate = gauge(
    'videoloom_learning_rate',
    'Learning rate of the last committed step.',
  );
  const gradientNorm = gauge(
    'videoloom_gradient_norm',
    'Norm of the gradient of the last committed step.',
  );
  const nonFinite = counter(
    'videoloom_nonfinite_steps_total',
    'Steps whose loss or gradient was not finite.',
  );
  const lost = counter('videoloom_worker_lost_total', 'Workers that were lost.', 'reason');
  const generations = counter('videoloom_generations_total', 'Generations that were opened.');
  const detection = new Histogram({
    name: 'videoloom_worker_detection_seconds',
    help: 'Time from the last sign of life (or of progress, where it stood still) of a lost worker to its loss.',
    labelNames: ['reason'],
    buckets: [0.1, 0.3, 0.5, 1, 2, 3, 5, 10, 30, 100, 300],
    registers,
  });
  const recovery = new Histogram({
    name: 'videoloom_recovery_seconds',
    help: 'Time from the loss of a worker to the next committed step.',
    buckets: [0.1, 0.3, 0.5, 1, 2, 3, 5, 10, 30, 100, 300],
    registers,
  });
  let lostAtMs: number | undefined;
  const fencedCalls = counter(
    'videoloom_fenced_requests_total',
    'Calls of outdated senders, refused.',
    'rpc',
  );
  const checkpointBytes = gauge('videoloom_checkpoint_bytes', 'Size of the newest checkpoint.');
  const checkpointTime = gauge(
    'videoloom_checkpoint_last_success_timestamp_seconds',
    'When the newest checkpoint was completed.',
  );
  const checkpointFailures = counter(
    'videoloom_checkpoint_failures_total',
    'Checkpoints that were given up.',
    'reason',
  );
  const checkpointStages = new Histogram({
    name: 'videoloom_checkpoint_duration_seconds',
    help: 'Time that a stage of a checkpoint took in the coordinator.',
    labelNames: ['stage'],
    buckets: [0.001, 0.01, 0.1, 1, 10, 60, 300],
    registers,
  });
  new Counter({
    name: 'videoloom_worker_seconds_total',
    help: 'Where the time of all workers went; with the steps under way, the activities add up to their wall clock.',
    labelNames: ['activity'],
    registers,
    collect() {
      const ledger = spentNow();
      this.reset();
      for (const activity of ACTIVITIES) this.inc({ activity }, secondsOf(ledger, activity));
    },
  });
  // A worker tells of the ranks that it waited longest for: when others take the place of one, the sum for that one falls,
  // which Prometheus would take for a restart.
  const mostForRank = new Map<number, number>();
  new Counter({
    name: 'videoloom_worker_wait_seconds_total',
    help: 'The activity "wait" by whom it was that the others waited for; "coordinator" has all but the longest waits.',
    labelNames: ['for'],
    registers,
    collect() {
      const ledger = spentNow();
      for (const [rank, seconds] of waitsByRank(ledger))
        mostForRank.set(rank, Math.max(seconds, mostForRank.get(rank) ?? 0));
      this.reset();
      let forRanks = 0;
      for (const [rank, seconds] of mostForRank) {
        this.inc({ for: `rank ${rank}` }, seconds);
        forRanks += seconds;
      }
      this.inc({ for: 'coordinator' }, Math.max(0, ledger.waitSeconds - forRanks));
    },
  });
  new Gauge({
    name: 'videoloom_goodput_ratio',
    help: 'Share of the wall clock of all workers in computation of steps that count.',
    registers,
    collect() {
      this.set(goodputOf(spentNow()));
    },
  });

  const showCheckpoint = (sizeBytes: number, completed: Date): void => {
    checkpointBytes.set(sizeBytes);
    checkpointTime.set(completed.getTime() / 1000);
  };

  return {
    showCheckpoint,
    observe(event, nowMs) {
      switch (event.type) {
        case 'commit': {
          steps.inc();
          if (lostAtMs !== undefined) recovery.observe((nowMs - lostAtMs) / 1000);
          lostAtMs = undefined;
          samples.inc(event.numSamples);
          tokens.inc(event.tokens);
          for (const { reason } of event.skipped) skipped.inc({ reason });
          for (const { name, lossSum, count } of event.objectives) {
            loss.set({ objective: name }, count === 0 ? 0 : lossSum / count);
          }
          learningRate.set(event.learningRate);
          gradientNorm.set(event.gradientNorm);
          const sums = event.objectives.map(({ lossSum }) => lossSum);
          if (![event.gradientNorm, ...sums].every(Number.isFinite)) nonFinite.inc();
          break;
        }
        case 'worker-lost':
          lost.inc({ reason: event.reason });
          detection.observe({ reason: event.reason }, (event.afterMs ?? 0) / 1000);
          lostAtMs ??= nowMs;
          break;
        case 'generation':
          generations.inc();
          break;
        case 'checkpoint':
          showCheckpoint(event.sizeBytes, new Date());
          break;
        case 'checkpoint-failed':
          checkpointFailures.inc({ reason: event.reason });
          break;
        default:
          break;
      }
    },
    observeFenced(rpc) {
      fencedCalls.inc({ rpc });
    },
    observeCheckpointStage(stage, seconds) {
      checkpointStages.observe({ stage }, seconds);
    },
  };
}

function epochOf({ plan, committedStep }: RunState): number {
  return Math.floor(
    (committedStep * plan.microbatches * plan.microbatchSize) / plan.numTrainSamples,
  );
}
