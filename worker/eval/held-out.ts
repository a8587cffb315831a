import type { Figure } from '../../proto/gen/videoloom/v1/run.ts';
import { drawnOf, openRng } from '../../proto/random.ts';
import type { Sample } from '../../video/index/sample.ts';
import type { Clip, SubstitutedClip } from '../../video/loading/loader.ts';
import type { Engine } from '../backend/engine.ts';
import { rowsOf, uploadBatch } from '../batches.ts';
import { openInitializer } from '../initializer.ts';
import type { HeldOutTask, HostBatch, Row } from '../systems/system.ts';
import type { Collectives } from '../parallel/collectives.ts';
import type { Programs } from '../programs.ts';
import type { Run } from '../run.ts';
import { disposeTree, type TensorTree } from '../tree.ts';

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
 * Accuracy of every held-out task for the trained parameters and for those that the run began with. The workers share
 * the batches and add up whole numbers, so the figures do not depend on how many they are.
 */
export async function evaluateHeldOut(
  options: HeldOutOptions,
  trained: TensorTree,
): Promise<Figure[]> {
  const { config, system } = options.run;
  const untrained = system.init(openInitializer(config.train.seed));
  try {
    return await figuresOf(options, trained, untrained);
  } finally {
    disposeTree(untrained);
  }
}

async function figuresOf(
  options: HeldOutOptions,
  trained: TensorTree,
  untrained: TensorTree,
): Promise<Figure[]> {
  const { run, collectives, microbatchSize, rank, worldSize } = options;
  const { system } = run;
  const { draws, microbatches } = run.config.evaluate;
  const figures: Figure[] = [];
  for (const task of system.heldOutTasks) {
    const asked = askedSamples(run.index.heldOut, task, {
      limit: microbatches * microbatchSize,
      seed: run.config.train.seed,
    });
    if (asked.length === 0) continue;
    const perDraw = Math.ceil(asked.length / microbatchSize);
    const objective = Object.keys(system.objectives).indexOf(task.objective);
    // Right answers of the trained and the untrained model, then how often each class was asked for.
    const tally = new Float64Array(2 + task.numClasses);
    for (let number = rank; number < draws * perDraw; number += worldSize) {
      const rows = await heldOutRows(options, {
        ...{ asked, index: number % perDraw, draw: Math.floor(number / perDraw) },
      });
      const batch = task.assemble(rows);
      const arrays = maskPadding(batch.arrays, {
        numRows: microbatchSize,
        numFresh: rows.numFresh,
      });
      for (const label of task.labels({ ...batch, arrays })) tally[2 + label]! += 1;
      const inputs = uploadBatch(options.engine, { ...batch, arrays });
      for (const [which, params] of [trained, untrained].entries()) {
        const sums = await options.programs.sums(params, options.frozen, inputs);
        tally[which]! += (await sums.data())[2 * objective + 1]!;
        sums.dispose();
      }
      disposeTree(inputs);
      options.onBatch?.();
    }
    const parts = await collectives.allGather(options.step, `evaluate/${task.name}`, tally);
    const whole = tally.map((_, i) => parts.reduce((sum, part) => sum + part[i]!, 0));
    const labels = whole.subarray(2);
    const count = labels.reduce((a, b) => a + b, 0);
    if (count === 0) continue;
    figures.push({
      name: task.name,
      value: whole[0]! / count,
      chance: labels.reduce((a, b) => Math.max(a, b), 0) / count, // a vocabulary is too long for a spread
      untrained: whole[1]! / count,
      count,
    });
  }
  return figures;
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
async function heldOutRows(
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

/**
 * Every array that is named `…Weights`, with zeros for the rows behind the first `numFresh`. A row is one or more entries
 * of the first axis, as many in every array.
 */
export function maskPadding(
  arrays: HostBatch['arrays'],
  { numRows, numFresh }: { readonly numRows: number; readonly numFresh: number },
): HostBatch['arrays'] {
  if (numFresh === numRows) return arrays;
  const masked = Object.entries(arrays).map(([name, array]) => {
    if (!name.endsWith('Weights')) return [name, array];
    const { data, shape } = array;
    const rowSize = data.length / numRows;
    if (!Number.isInteger(rowSize)) {
      throw new Error(`${name} [${shape.join(', ')}] is not made of ${numRows} rows`);
    }
    const kept = data.slice();
    kept.fill(0, numFresh * rowSize);
    return [name, { data: kept, shape }];
  });
  return Object.fromEntries(masked) as HostBatch['arrays'];
}
