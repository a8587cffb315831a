import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { shownRecipes, trainRecipe, type FinishedStages } from '../eval/systems-report.ts';

/**
 * `npm run test:systems`: every recipe with evidence, for three seeds, beside the same recipe without the part that names
 * its system. The figure is above chance by four binomial standard errors, and above the ablation by the recipe's margin.
 * `VIDEOLOOM_SYSTEMS=videobert,merlot` takes some of them. It takes hours; `VIDEOLOOM_SYSTEMS_OUT=runs/systems` keeps the
 * runs, in the folder that `npm run systems` keeps them in, and begins with those that are finished there.
 */
const SEEDS = [1, 2, 3];
const chosen = process.env['VIDEOLOOM_SYSTEMS']?.split(',');
const kept = process.env['VIDEOLOOM_SYSTEMS_OUT'];

describe('each system needs the part that names it', async () => {
  const start = process.cwd();
  const finished: FinishedStages = new Map();
  let folder = kept;
  if (kept === undefined) {
    before(async () => {
      folder = await temporaryFolder('systems');
      process.chdir(folder); // the demo world is made once, for all
    });
    after(() => {
      process.chdir(start);
    });
  }

  for (const recipe of await shownRecipes()) {
    const { name, evidence } = recipe;
    const skip = chosen !== undefined && !chosen.includes(name);
    for (const seed of SEEDS) {
      it(
        `${name}, seed ${seed}: ${evidence.figure} without ${evidence.without}`,
        { skip },
        async (t) => {
          const overrides = [`train.seed=${seed}`];
          const out = join(folder!, `${name}-${seed}`);
          const { figure } = await trainRecipe(recipe, { out, overrides, finished });
          const ablated = await trainRecipe(recipe, {
            ...{
              out: `${out}-${evidence.ablation}`,
              preset: evidence.ablation,
              overrides,
              finished,
            },
          });
          const { value, chance, count } = figure;
          t.diagnostic(
            `${value.toFixed(3)}, without ${ablated.figure.value.toFixed(3)}, chance ${chance.toFixed(3)}, n ${count}`,
          );
          assert.ok(value > chance + 4 * Math.sqrt((chance * (1 - chance)) / count), 'chance');
          assert.ok(value - ablated.figure.value >= evidence.margin, 'the ablation');
        },
      );
    }
  }
});
