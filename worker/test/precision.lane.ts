import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { openEngine } from '../backend/engine.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { prepare } from '../prepare.ts';
import { openRun } from '../run.ts';
import { trainInProcess } from './train-in-process.ts';

/** Steps over whose mean the ends of two runs are compared: one step's loss depends on its clips. */
const LAST_STEPS = 50;
const MOST_DIFFERENCE = 0.02;

test('the demo recipe in bfloat16 ends within 2 % of its loss in float32', async () => {
  const folder = await temporaryFolder('precision');
  const start = process.cwd();
  const cacheDir = userCacheDir(process.env);
  process.chdir(folder);
  try {
    const out = join(folder, 'run');
    const say = (line: string): void => {
      console.log(line);
    };
    await prepare({ recipe: 'videobert', overrides: [], out, cacheDir, say });
    const endOf = async (precision: 'float32' | 'bfloat16'): Promise<number> => {
      const engine = await openEngine({ engine: 'xla', cacheDir, threads: 4, precision });
      const run = await openRun(out, []);
      const { steps } = run.config.train;
      let sum = 0;
      try {
        const figures = await trainInProcess(run, engine, (step, means) => {
          if (step <= steps - LAST_STEPS) return;
          for (const [name, weight] of Object.entries(run.system.objectives))
            sum += (weight * means[name]!) / LAST_STEPS;
        });
        for (const { name, value } of figures) say(`${precision}  ${name}  ${value.toFixed(3)}`);
      } finally {
        await run.close();
        engine.close();
      }
      say(`${precision}  loss ${sum.toFixed(4)}`);
      return sum;
    };
    const [wide, narrow] = [await endOf('float32'), await endOf('bfloat16')];
    assert.ok(Math.abs(narrow - wide) <= MOST_DIFFERENCE * wide, `${narrow} instead of ${wide}`);
  } finally {
    process.chdir(start);
  }
});
