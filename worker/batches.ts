import type * as tf from '@tensorflow/tfjs-core';
import { VideoloomError } from '../proto/errors.ts';
import type { SkippedSample, StepLease } from '../proto/gen/videoloom/v1/coordinator.ts';
import { DecodeError } from '../video/decode-error.ts';
import type { Clip, ClipLoader } from '../video/loader.ts';
import type { Sample } from '../video/sample-index.ts';
import type { Engine } from './backend/engine.ts';
import type { HostBatch, Row, VideoLanguageSystem } from './models/system.ts';

/** The caller's microbatches of one step, decoded and assembled. */
export interface StepBatches {
  readonly step: number;
  readonly microbatches: readonly { readonly index: number; readonly batch: HostBatch }[];
  readonly skipped: readonly SkippedSample[];
  readonly numClips: number;
}

export interface BatchSource {
  /** The batches of a step; steps are asked for in order. */
  take(step: number): Promise<StepBatches>;
}

export interface BatchSourceOptions {
  readonly system: VideoLanguageSystem;
  readonly loader: ClipLoader;
  readonly samples: readonly Sample[];
  readonly lease: (firstStep: number, numSteps: number) => Promise<StepLease[]>;
  /** Steps made ahead of the one that is taken. */
  readonly prefetchSteps: number;
  readonly lastStep: number;
  readonly signal: AbortSignal;
}

/** Leases, decodes and assembles a few steps ahead, so that training finds its batch made. */
export function openBatchSource(options: BatchSourceOptions): BatchSource {
  const { lease, prefetchSteps, lastStep, signal } = options;
  const ahead = new Map<number, Promise<StepBatches>>();
  const begin = (step: number): Promise<StepBatches> => {
    const known = ahead.get(step);
    if (known !== undefined) return known;
    const made = lease(step, 1).then(([leased]) => makeStep(leased!, options));
    // A step that nobody comes to take (the generation ended) must not count as unhandled.
    made.catch(() => undefined);
    ahead.set(step, made);
    return made;
  };
  return {
    async take(step) {
      signal.throwIfAborted();
      const taken = begin(step);
      for (let next = step + 1; next <= Math.min(lastStep, step + prefetchSteps); next++)
        void begin(next);
      ahead.delete(step);
      return taken;
    },
  };
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
    throw committedBefore && error instanceof DecodeError ? sampleChanged(step, error) : error;
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
  return { step, microbatches: made, skipped, numClips: leases.length };
}

/** Decoded clips as a model takes them; `places` tell in which epoch each stands. */
export function rowsOf(
  samples: readonly Sample[],
  places: readonly { readonly epoch: number }[],
  clips: readonly Clip[],
): Row[] {
  return clips.map(({ sample: number, frames }, i) => {
    return { sample: samples[number]!, number, epoch: places[i]!.epoch, frames };
  });
}

function sampleChanged(step: number, cause: DecodeError): VideoloomError {
  const { code, message, path, retryable } = cause;
  return new VideoloomError(
    'SAMPLE_CHANGED',
    `${path} was part of step ${step} when that was committed, before the run went back to an earlier checkpoint; ` +
      `now that the step is computed again it cannot be decoded (${code}: ${message}). Any other clip in its place ` +
      'would end in other weights: put the file back as it was, then start the same command again',
    { cause, retryable },
  );
}

/** A host batch on the device. */
export function uploadBatch(engine: Engine, { arrays }: HostBatch): Record<string, tf.Tensor> {
  return Object.fromEntries(
    Object.entries(arrays).map(([name, { data, shape }]) => [name, engine.upload(data, shape)]),
  );
}
