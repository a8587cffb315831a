import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import { VideoloomError } from '../proto/errors.ts';
import type { CheckpointFile, SkippedSample } from '../proto/gen/videoloom/v1/coordinator.ts';
import type { ObjectiveSum } from '../proto/gen/videoloom/v1/run.ts';
import type { Ledger, Phase } from './ledger.ts';

/** What a worker counts; one registry a process. */
export interface WorkerMetrics {
  readonly registry: Registry;
  stepCommitted(step: {
    readonly step: number;
    readonly sums: readonly ObjectiveSum[];
    readonly learningRate: number;
    readonly norm: number;
    readonly numClips: number;
    readonly numTokens: number;
  }): void;
  samplesSkipped(skipped: readonly SkippedSample[]): void;
  checkpointWritten(seconds: number, files: readonly CheckpointFile[]): void;
  checkpointFailed(error: unknown): void;
}

const PHASES: readonly Phase[] = [
  'setup',
  'decode',
  'wait',
  'compute',
  'reduce',
  'checkpoint',
  'evaluate',
];

/**
 * Names follow Prometheus: base units, `_total` for counters, no label of unbounded values.
 * `frames` tells what the decoders have done so far.
 */
export function openWorkerMetrics(
  ledger: Ledger,
  frames: () => { readonly framesDecoded: number },
): WorkerMetrics {
  const registry = new Registry();
  const registers = [registry];
  const steps = new Counter({
    name: 'videoloom_worker_steps_total',
    help: 'Steps that this worker took part in',
    registers,
  });
  const clips = new Counter({
    name: 'videoloom_worker_samples_total',
    help: 'Clips that this worker trained on',
    registers,
  });
  const tokens = new Counter({
    name: 'videoloom_worker_tokens_total',
    help: 'Tokens that this worker trained on, padding not counted',
    registers,
  });
  const skipped = new Counter({
    name: 'videoloom_samples_skipped_total',
    help: 'Samples that did not decode and were replaced, by reason',
    labelNames: ['reason'],
    registers,
  });
  const loss = new Gauge({
    name: 'videoloom_train_loss',
    help: 'Mean loss over the last global batch in nats, by objective',
    labelNames: ['objective'],
    registers,
  });
  const learningRate = new Gauge({
    name: 'videoloom_learning_rate',
    help: 'Learning rate of the last step',
    registers,
  });
  const norm = new Gauge({
    name: 'videoloom_gradient_norm',
    help: 'Length of the last gradient before clipping',
    registers,
  });
  const globalStep = new Gauge({
    name: 'videoloom_global_step',
    help: 'Last step in the parameters',
    registers,
  });
  const checkpointSeconds = new Histogram({
    name: 'videoloom_checkpoint_duration_seconds',
    help: "Time to write this worker's share of a checkpoint",
    buckets: [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300],
    registers,
  });
  const checkpointBytes = new Gauge({
    name: 'videoloom_checkpoint_bytes',
    help: "Size of this worker's share of the last checkpoint",
    registers,
  });
  const checkpointFailures = new Counter({
    name: 'videoloom_checkpoint_failures_total',
    help: 'Shares that could not be written, by reason',
    labelNames: ['reason'],
    registers,
  });
  new Counter({
    name: 'videoloom_phase_seconds_total',
    help: 'Wall clock of the training loop by what it did; the phases add up to the whole',
    labelNames: ['phase'],
    registers,
    collect() {
      const total = ledger.total();
      this.reset();
      for (const phase of PHASES) this.inc({ phase }, total[`${phase}Seconds`]);
    },
  });
  new Counter({
    name: 'videoloom_frames_decoded_total',
    help: 'Frames that the decoders gave out',
    registers,
    collect() {
      this.reset();
      this.inc(frames().framesDecoded);
    },
  });
  return {
    registry,
    stepCommitted(step) {
      steps.inc();
      clips.inc(step.numClips);
      tokens.inc(step.numTokens);
      learningRate.set(step.learningRate);
      norm.set(step.norm);
      globalStep.set(step.step);
      for (const { name, lossSum, count } of step.sums) {
        if (count > 0) loss.set({ objective: name }, lossSum / count);
      }
    },
    samplesSkipped(records) {
      for (const { reason } of records) skipped.inc({ reason });
    },
    checkpointWritten(seconds, files) {
      checkpointSeconds.observe(seconds);
      checkpointBytes.set(files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0));
    },
    checkpointFailed(error) {
      checkpointFailures.inc({ reason: error instanceof VideoloomError ? error.code : 'BUG' });
    },
  };
}
