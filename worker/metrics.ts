import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import { VideoloomError } from '../proto/errors.ts';
import type { CheckpointFile } from '../proto/gen/videoloom/v1/coordinator.ts';
import type { ObjectiveSum } from '../proto/gen/videoloom/v1/run.ts';
import { ACTIVITIES, secondsOf, waitsByRank } from '../proto/time-ledger.ts';
import type { Ledger } from './ledger.ts';
import type { PrefetchState } from './prefetch.ts';
import type { CopyMetrics } from './run-store/copier.ts';

/** What the decoders of this process have done so far. */
export interface DecodeCounters {
  readonly framesDecoded: number;
  /** Samples that this process could not decode, each counted once, by code of the error. */
  readonly failuresByReason: Readonly<Record<string, number>>;
}

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
  /** A step's batch was taken. */
  batchTaken(prefetch: PrefetchState): void;
  checkpointWritten(seconds: number, files: readonly CheckpointFile[]): void;
  checkpointFailed(error: unknown): void;
  /** What becomes of copies in a store. */
  readonly copies: CopyMetrics;
}

/**
 * Names follow Prometheus: base units, `_total` for counters, no label of unbounded values.
 * What the coordinator counts as well (committed steps, substituted samples) has another name here, so that a sum over
 * all processes counts nothing twice. `decoding` tells what the decoders have done so far.
 */
export function openWorkerMetrics(ledger: Ledger, decoding: () => DecodeCounters): WorkerMetrics {
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
  const prefetchDepth = new Gauge({
    name: 'videoloom_prefetch_depth_steps',
    help: 'Steps ahead of the one in training whose batches are made or being made',
    registers,
  });
  const prefetchBytes = new Gauge({
    name: 'videoloom_prefetch_ready_bytes',
    help: 'Size of the batches that lay ready when the last one was taken',
    registers,
  });
  new Gauge({
    name: 'videoloom_data_wait_ratio',
    help: 'Share of the time in steps that training waited for data, since the start',
    registers,
    collect() {
      const total = ledger.total();
      const dataSeconds = total.fetchSeconds + total.decodeSeconds;
      const stepSeconds =
        dataSeconds + total.waitSeconds + total.computeSeconds + total.reduceSeconds;
      this.set(stepSeconds === 0 ? 0 : dataSeconds / stepSeconds);
    },
  });
  const checkpointSeconds = new Histogram({
    name: 'videoloom_worker_checkpoint_duration_seconds',
    help: "Time to write this worker's share of a checkpoint",
    buckets: [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300],
    registers,
  });
  const checkpointBytes = new Gauge({
    name: 'videoloom_worker_checkpoint_bytes',
    help: "Size of this worker's share of the last checkpoint",
    registers,
  });
  const checkpointFailures = new Counter({
    name: 'videoloom_worker_checkpoint_failures_total',
    help: 'Shares that could not be written, by reason',
    labelNames: ['reason'],
    registers,
  });
  const copiedStep = new Gauge({
    name: 'videoloom_checkpoint_copied_step',
    help: 'Step of the newest checkpoint that this worker put into the store',
    registers,
  });
  const copySeconds = new Histogram({
    name: 'videoloom_checkpoint_copy_duration_seconds',
    help: 'Time to put a checkpoint into the store, failed attempts included',
    buckets: [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000],
    registers,
  });
  const copyBytes = new Counter({
    name: 'videoloom_checkpoint_copy_bytes_total',
    help: 'Bytes put into the store',
    registers,
  });
  const copyFailures = new Counter({
    name: 'videoloom_checkpoint_copy_failures_total',
    help: 'Attempts to put a checkpoint into the store that failed, by reason',
    labelNames: ['reason'],
    registers,
  });
  new Counter({
    name: 'videoloom_phase_seconds_total',
    help: 'Wall clock of the process by what it did; with the step under way, the phases add up to the whole',
    labelNames: ['phase'],
    registers,
    collect() {
      const settled = ledger.settled();
      this.reset();
      for (const phase of ACTIVITIES) this.inc({ phase }, secondsOf(settled, phase));
    },
  });
  new Gauge({
    name: 'videoloom_step_under_way_seconds',
    help: 'Time in the step that is not committed yet: it goes to its phases then, or to the phase redo',
    registers,
    collect() {
      this.set(ledger.pulse().step.wallSeconds);
    },
  });
  new Counter({
    name: 'videoloom_wait_for_rank_seconds_total',
    help: 'The part of the phase "wait" that the worker of a rank kept this one waiting, of those it waited longest for',
    labelNames: ['rank'],
    registers,
    collect() {
      this.reset();
      for (const [rank, seconds] of waitsByRank(ledger.settled()))
        this.inc({ rank: String(rank) }, seconds);
    },
  });
  new Counter({
    name: 'videoloom_frames_decoded_total',
    help: 'Frames that the decoders gave out',
    registers,
    collect() {
      this.reset();
      this.inc(decoding().framesDecoded);
    },
  });
  new Counter({
    name: 'videoloom_decode_failures_total',
    help: 'Samples that this worker could not decode, each counted once, by reason',
    labelNames: ['reason'],
    registers,
    collect() {
      this.reset();
      for (const [reason, count] of Object.entries(decoding().failuresByReason)) {
        this.inc({ reason }, count);
      }
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
    batchTaken({ depth, readyBytes }) {
      prefetchDepth.set(depth);
      prefetchBytes.set(readyBytes);
    },
    checkpointWritten(seconds, files) {
      checkpointSeconds.observe(seconds);
      checkpointBytes.set(files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0));
    },
    checkpointFailed(error) {
      checkpointFailures.inc({ reason: error instanceof VideoloomError ? error.code : 'BUG' });
    },
    copies: {
      copied(step, seconds) {
        copiedStep.set(step);
        copySeconds.observe(seconds);
      },
      copyBytes(numBytes) {
        copyBytes.inc(numBytes);
      },
      copyFailed(code) {
        copyFailures.inc({ reason: code });
      },
    },
  };
}
