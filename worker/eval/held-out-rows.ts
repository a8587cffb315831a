/** Which held-out clips a question is put to, and how they come in microbatches. */
import { drawnOf, openRng } from '../../proto/random.ts';
import type { Sample } from '../../video/index/sample.ts';
import type { Clip, SubstitutedClip } from '../../video/loading/loader.ts';
import type { Engine } from '../backend/engine.ts';
import { rowsOf } from '../batches.ts';
import type { HeldOutTask, Row } from '../systems/system.ts';
import type { Collectives } from '../parallel/collectives.ts';
import type { Programs } from '../programs.ts';
import type { Run } from '../run.ts';
import type { TensorTree } from '../tree.ts';

export interface HeldOutOptions {
  readonly run: Run;
  readonly engine: Engine;
  readonly programs: Programs<TensorTree>;
  readonly frozen: TensorTree;
  readonly microbatchSize: number;
  readonly collectives: Pick<Collectives, 'allGather'>;
  readonly rank: number;
  readonly worldSize: number;
  readonly step: number;
  readonly signal: AbortSignal;
  /** Told of every batch. */
  readonly onBatch?: () => void;
  /** Told of every clip that does not decode, as often as it is asked for: no figure counts it. */
  readonly onSkipped?: (skipped: SubstitutedClip) => void;
}

/**
 * The held-out samples that a task asks, by their numbers: where they are more than `limit`, as many, evenly drawn. An
 * index has them as their source does, so that the first of them are of few films or folders.
 */
export function askedSamples(
  heldOut: readonly Sample[],
  { asks }: Pick<HeldOutTask, 'asks'>,
  { limit, seed }: { readonly limit: number; readonly seed: number },
): number[] {
  const all = [...heldOut.keys()].filter((number) => asks?.(heldOut[number]!) ?? true);
  return drawnOf(all, limit, openRng(seed, 'held-out'));
}

/**
 * One microbatch of the clips that are asked. The last one is filled up with the first clips, and another clip stands in
 * for one that does not decode: these come behind the `numFresh` that count, so that nothing is counted twice.
 */
export async function heldOutRows(
  { run, microbatchSize, signal, onSkipped }: HeldOutOptions,
  {
    asked,
    index,
    draw,
  }: { readonly asked: readonly number[]; readonly index: number; readonly draw: number },
): Promise<Row[] & { numFresh: number }> {
  const places = Array.from({ length: microbatchSize }, (_, i) => index * microbatchSize + i);
  const leases = places.map((place) => ({
    sample: asked[place % asked.length]!,
    epoch: 0,
    substitutes: [1, 2, 3, 4].map((offset) => asked[(place + offset) % asked.length]!),
  }));
  const clips = await run.heldOutLoader.load(leases, signal);
  for (const { skipped } of clips) if (skipped !== undefined) onSkipped?.(skipped);
  const isFresh = (clip: Clip, i: number): boolean =>
    places[i]! < asked.length && clip.skipped === undefined;
  const fresh = clips.filter(isFresh);
  const rows = rowsOf(
    run.index.heldOut,
    places.map(() => ({ epoch: draw })),
    [...fresh, ...clips.filter((clip, i) => !isFresh(clip, i))],
  );
  return Object.assign(rows, { numFresh: fresh.length });
}
