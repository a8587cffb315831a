/** Figures of answers that a model writes out by itself, token by token. */
import type { Figure } from '../../proto/gen/videoloom/v1/run.ts';
import type { Sample } from '../../video/index/sample.ts';
import { uploadBatch } from '../batches.ts';
import { openGenerator } from '../generation/generator.ts';
import type { WrittenTask } from '../systems/system.ts';
import { disposeTree, type TensorTree } from '../tree.ts';
import { askedSamples, heldOutRows, type HeldOutOptions } from './held-out-rows.ts';

/**
 * How many answers are right for the trained parameters and for those that the run began with. As for other figures the
 * workers share the batches and add up whole numbers.
 */
export async function writtenFigures(
  options: HeldOutOptions,
  trained: TensorTree,
  untrained: TensorTree,
): Promise<Figure[]> {
  const { run, engine, frozen, collectives, microbatchSize, rank, worldSize, signal } = options;
  const { system, config, index } = run;
  const { answers, writtenTasks = [] } = system;
  if (answers === undefined || writtenTasks.length === 0) return [];
  const { maxNewTokens, eosIds } = answers;
  const generator = openGenerator(engine, answers.model, { maxNewTokens });
  const figures: Figure[] = [];
  try {
    for (const task of writtenTasks) {
      const asked = askedSamples(index.heldOut, task, {
        limit: config.evaluate.microbatches * microbatchSize,
        seed: config.train.seed,
      });
      if (asked.length === 0) continue;
      const perDraw = Math.ceil(asked.length / microbatchSize);
      // Right answers of the trained and the untrained model, and how many count; a draw would ask the same again.
      const tally = new Float64Array(3);
      for (let number = rank; number < perDraw; number += worldSize) {
        const rows = await heldOutRows(options, { asked, index: number, draw: 0 });
        const fresh = rows.slice(0, rows.numFresh);
        const prompt = uploadBatch(engine, task.assemble(rows));
        for (const [which, params] of [trained, untrained].entries()) {
          const greedy = { strategy: { kind: 'greedy' }, eosIds, signal } as const;
          const texts = await generator.generate({ params, frozen }, prompt, greedy);
          for (const [at, { sample }] of fresh.entries())
            tally[which]! += task.isRight(sample, answers.decode(texts[at]!.ids)) ? 1 : 0;
        }
        tally[2]! += fresh.length;
        disposeTree(prompt);
        options.onBatch?.();
      }
      const parts = await collectives.allGather(options.step, `evaluate/${task.name}`, tally);
      const [right, rightUntrained, count] = [0, 1, 2].map((k) =>
        parts.reduce((sum, part) => sum + part[k]!, 0),
      ) as [number, number, number];
      if (count === 0) continue;
      const samples = asked.map((number) => index.heldOut[number]!);
      figures.push({
        ...{ name: task.name, value: right / count, untrained: rightUntrained / count, count },
        chance: bestConstant(task, samples),
      });
    }
  } finally {
    generator.close();
  }
  return figures;
}

/** The share of the samples that one answer is right for, of the best of all right answers. */
export function bestConstant(
  task: Pick<WrittenTask, 'answerOf' | 'isRight'>,
  samples: readonly Sample[],
): number {
  const answers = new Set(samples.map((sample) => task.answerOf(sample)));
  const counts = [...answers].map(
    (answer) => samples.filter((sample) => task.isRight(sample, answer)).length,
  );
  return Math.max(...counts) / samples.length;
}
