import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { openEngine } from '../backend/engine.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { prepare } from '../prepare.ts';
import { openRun } from '../run.ts';
import { trainInProcess } from './train-in-process.ts';

/**
 * `npm run test:held-out`: three seeds of the demo recipe beside models of the same size that see one modality. With
 * n of 1,000 and more, a difference of 0.05 is more than three binomial standard errors.
 */
const SEEDS = [1, 2, 3];
const MARGIN_TOKEN_OVER_TEXT_ONLY = 0.04;
const MARGIN_FRAME_OVER_FRAMES_ONLY = 0.02;
const LEAST_ALIGNMENT = 0.8;

test('both modalities together beat each alone on held-out clips, for three seeds', async () => {
  const folder = await temporaryFolder('held-out');
  const start = process.cwd();
  const cacheDir = userCacheDir(process.env);
  process.chdir(folder);
  const engine = await openEngine({ engine: 'xla', cacheDir, threads: 4 });
  try {
    const say = (line: string): void => {
      console.log(line);
    };
    const out = join(folder, 'run');
    await prepare({ recipe: 'videobert', overrides: [], out, cacheDir, say });
    const figuresOf = async (seed: number, modalities: string): Promise<Map<string, number>> => {
      const overrides = [`train.seed=${seed}`, `model.modalities=${modalities}`];
      const run = await openRun(out, overrides);
      try {
        const figures = await trainInProcess(run, engine);
        for (const { name, value, chance, untrained, count } of figures) {
          const numbers = [value, chance, untrained].map((x) => x.toFixed(3));
          say(
            `seed ${seed}  ${modalities}  ${name}  ${numbers[0]}  chance ${numbers[1]}  untrained ${numbers[2]}  n ${count}`,
          );
          // A model of one modality cannot tell a pair from a mismatch, and is asked nothing about it.
          assert.ok(value > chance + 4 * Math.sqrt((chance * (1 - chance)) / count), name);
        }
        return new Map(figures.map(({ name, value }) => [name, value]));
      } finally {
        await run.close();
      }
    };
    for (const seed of SEEDS) {
      const both = await figuresOf(seed, 'both');
      const text = await figuresOf(seed, 'text');
      const video = await figuresOf(seed, 'video');
      const over = (name: string, other: Map<string, number>): number =>
        both.get(name)! - other.get(name)!;
      assert.ok(over('masked-token-accuracy', text) >= MARGIN_TOKEN_OVER_TEXT_ONLY, `seed ${seed}`);
      assert.ok(
        over('masked-frame-accuracy', video) >= MARGIN_FRAME_OVER_FRAMES_ONLY,
        `seed ${seed}`,
      );
      assert.ok(both.get('alignment-accuracy')! >= LEAST_ALIGNMENT, `seed ${seed}`);
    }
  } finally {
    engine.close();
    process.chdir(start);
  }
});
