import type * as tf from '@tensorflow/tfjs-core';
import { VideoloomError } from '../proto/errors.ts';
import type { SkippedSample, StepLease } from '../proto/gen/videoloom/v1/coordinator.ts';
import { isFileFault } from '../video/loading/file-fault.ts';
import type { Clip, ClipLoader } from '../video/loading/loader.ts';
import type { Sample } from '../video/index/sample.ts';
import type { Engine } from './backend/engine.ts';
import type { HostBatch, Row, VideoLanguageSystem } from './systems/system.ts';
import { openPrefetcher, type PrefetchState } from './prefetch.ts';

/** The caller's microbatches of one step, decoded and assembled. */
export interface StepBatches {
  readonly step: number;
  readonly microbatches: readonly { readonly index: number; readonly batch: HostBatch }[];
  readonly skipped: readonly SkippedSample[];
  readonly numClips: number;
  /** The step was committed before the run went back to an earlier one. */
  readonly committedBefore: boolean;
}

export interface BatchSource {
  /** Begins with the first step before it is asked for. */
  prepare(step: number): void;
  /** The batches of a step; steps are asked for in order. */
  take(step: number): Promise<StepBatches>;
}

export interface BatchSourceOptions {
  readonly system: Pick<VideoLanguageSystem, 'assemble'>;
  readonly loader: ClipLoader;
  readonly samples: readonly Sample[];
  readonly lease: (firstStep: number, numSteps: number) => Promise<StepLease[]>;
  /** Most steps made ahead of the one that is taken: the coordinator leases no more. */
  readonly prefetchSteps: number;
  /** Most bytes that batches made ahead may take; one is made ahead however large it is. */
  readonly prefetchBytes: number;
  readonly lastStep: number;
  readonly signal: AbortSignal;
  /** Told at each take how far ahead this source works. */
  readonly onTake?: (state: PrefetchState) => void;
}

/** Leases, decodes and assembles some steps ahead, so that training finds its batch made. */
export function openBatchSource(options: BatchSourceOptions): BatchSource {
  const { lease, signal, prefetchSteps, prefetchBytes, lastStep, onTake } = options;
  const prefetcher = openPrefetcher({
    async make(step) {
      const [leased] = await lease(step, 1);
      return leased === undefined ? undefined : makeStep(leased, options);
    },
    sizeBytes: bytesOf,
    ...{ maxSteps: prefetchSteps, maxBytes: prefetchBytes, lastStep, onTake },
  });
  return {
    prepare(step) {
      prefetcher.prepare(step);
    },
    async take(step) {
      signal.throwIfAborted();
      return prefetcher.take(step);
    },
  };
}

function bytesOf({ microbatches }: StepBatches): number {
  return microbatches
    .flatMap(({ batch }) => Object.values(batch.arrays))
    .reduce((sum, { data }) => sum + data.byteLength, 0);
}

async function makeStep(
  { step, microbatches, committedBefore }: StepLease,
  { system, loader, samples, signal }: BatchSourceOptions,
): Promise<StepBatches> {
  const leases = microbatches.flatMap((microbatch) => microbatch.samples);
  const places = microbatches.flatMap(({ index, samples: { length } }) =>
    Array.from({ length }, (_, i) => index * length + i),
  );
  const clips = await loader.load(leases, signal).catch((error: unknown) => {
    throw committedBefore && isFileFault(error) ? sampleChanged(step, error) : error;
  });
  const rows = rowsOf(samples, leases, clips);
  let next = 0;
  const made = microbatches.map(({ index, samples: { length } }) => {
    const batch = system.assemble(rows.slice(next, next + length));
    next += length;
    return { index, batch };
  });
  const skipped = clips.flatMap(({ skipped: record }, i) =>
    record === undefined ? [] : [{ ...record, place: places[i]! }],
  );
  return { step, microbatches: made, skipped, numClips: leases.length, committedBefore };
}

/** Decoded clips as a model takes them; `places` tell in which epoch each stands. */
export function rowsOf(
  samples: readonly Sample[],
  places: readonly { readonly epoch: number }[],
  clips: readonly Clip[],
): Row[] {
  return clips.map(({ sample: number, frames, timesSeconds, audio }, i) => ({
    ...{ frames, timesSeconds },
    ...(audio === undefined ? {} : { audio }),
    sample: samples[number]!,
    number,
    epoch: places[i]!.epoch,
  }));
}

function sampleChanged(step: number, cause: VideoloomError): VideoloomError {
  const { code, message, retryable } = cause;
  return new VideoloomError(
    'SAMPLE_CHANGED',
    `a clip of step ${step}, which was committed before the run went back to an earlier checkpoint, cannot be decoded ` +
      `now that the step is computed again (${code}: ${message}). Any other clip in its place would end in other ` +
      'weights: put the file back as it was, then start the same command again',
    { cause, retryable },
  );
}

/** A host batch on the device. */
export function uploadBatch(engine: Engine, { arrays }: HostBatch): Record<string, tf.Tensor> {
  return Object.fromEntries(
    Object.entries(arrays).map(([name, { data, shape }]) => [name, engine.upload(data, shape)]),
  );
}
