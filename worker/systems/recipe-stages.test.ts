/** Each stage of a recipe finds in the stages before it the weights that it begins with, and leaves frozen ones alone. */
import assert from 'node:assert/strict';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { stagesOf, type Config } from '../config.ts';
import { weightsOfRun } from '../run-weights.ts';
import { makeRunFolder } from '../test/run-folder.ts';
import { disposeTree } from '../tree.ts';

for (const recipe of [
  'blip2',
  'video-llava',
  'frozen',
  'llava-dpo',
  'minigpt4',
  'minigpt4-video',
  'minigpt-v2',
  'video-llama',
]) {
  test(`${recipe}: its stages fit together`, async () => {
    await openCpuEngine();
    const root = await temporaryFolder('stages');
    const text = await readFile(new URL(`../recipes/${recipe}.yaml`, import.meta.url), 'utf8');
    const configs = new Map<string, Config>();
    for (const stage of stagesOf(text)) {
      const folder = join(root, stage);
      await mkdir(folder);
      const overrides = ['data.frameSize=32'];
      const { config, params } = await makeRunFolder(folder, { recipe, stage, overrides });
      disposeTree(params);
      // What is frozen here has the bytes of the stage that it was taken from.
      const whole = await weightsOfRun(folder, config);
      configs.set(stage, config);
      for (const { take, as, from } of config.init) {
        const source = await weightsOfRun(join(root, from), configs.get(from)!);
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
  });
}
