import type { Figure } from '../../proto/gen/videoloom/v1/run.ts';
import { uploadBatch } from '../batches.ts';
import { openInitializer } from '../initializer.ts';
import type { HostBatch } from '../systems/system.ts';
import { disposeTree, type TensorTree } from '../tree.ts';
import { askedSamples, heldOutRows, type HeldOutOptions } from './held-out-rows.ts';
import { writtenFigures } from './written.ts';

/**
 * Accuracy of every held-out task and of every answer that is written out, for the trained parameters and for those that
 * the run began with. The workers share the batches and add up whole numbers, so the figures do not depend on how many
 * they are.
 */
export async function evaluateHeldOut(
  options: HeldOutOptions,
  trained: TensorTree,
): Promise<Figure[]> {
  const { config, system } = options.run;
  const untrained = system.init(openInitializer(config.train.seed));
  try {
    return [
      ...(await figuresOf(options, trained, untrained)),
      ...(await writtenFigures(options, trained, untrained)),
    ];
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
