/** Each stage of a recipe finds in the stages before it the weights that it begins with, and leaves frozen ones alone. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { stagesOf } from '../config.ts';
import { withInitialWeights, writeInitialWeights } from '../initial-weights.ts';
import { openInitializer } from '../initializer.ts';
import { weightsOfRun } from '../run-weights.ts';
import { openTestSystem } from '../test/open-system.ts';
import { valuesOf, writeCheckpoint } from '../test/run-folder.ts';
import { disposeTree } from '../tree.ts';

for (const recipe of ['blip2', 'video-llava', 'minigpt4-video', 'video-llama']) {
  test(`${recipe}: its stages fit together`, async () => {
    await openCpuEngine();
    const root = await mkdtemp(join(tmpdir(), 'videoloom-stages-'));
    try {
      const text = await readFile(new URL(`../recipes/${recipe}.yaml`, import.meta.url), 'utf8');
      for (const stage of stagesOf(text)) {
        const folder = join(root, stage);
        await mkdir(folder);
        const { system, config } = await openTestSystem(recipe, stage, ['data.frameSize=32']);
        const runs = config.init.map(({ from }) => join(root, from));
        await writeInitialWeights(system, config, { folder, runs });
        const own = await withInitialWeights(system, folder, config.train.frozen);
        const params = own.init(openInitializer(9));
        await writeCheckpoint(folder, await valuesOf(params));
        disposeTree(params);
        // What is frozen here has the bytes of the stage that it was taken from.
        const whole = await weightsOfRun(folder);
        for (const [k, { take, as, from }] of config.init.entries()) {
          const source = await weightsOfRun(runs[k]!);
          for (const [name, { data }] of source) {
            if (take !== '' && !name.startsWith(`${take}/`)) continue;
            const rest = take === '' ? name : name.slice(take.length + 1);
            const here = whole.get(as === '' ? rest : `${as}/${rest}`);
            if (here === undefined) continue; // left out by skip
            assert.ok(
              Buffer.from(here.data).equals(Buffer.from(data)),
              `${stage}: ${name} of ${from}`,
            );
          }
        }
      }
    } finally {
      await rm(root, { recursive: true, force: true });
    }
  });
}
