/** Each stage of a recipe finds in the stages before it the weights that it begins with, and leaves frozen ones alone. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { checkpointFolderName, CHECKPOINTS_FOLDER } from '../../proto/checkpoint-manifest.ts';
import { RUN_PLAN_FILE } from '../../proto/run-plan.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { encodeSafetensors, type TensorData } from '../checkpoint/format.ts';
import { stagesOf } from '../config.ts';
import { weightsOfRun, withInitialWeights, writeInitialWeights } from '../initial-weights.ts';
import { openInitializer } from '../initializer.ts';
import { openTestSystem } from '../test/open-system.ts';
import { leavesOf, partsOf } from '../tree.ts';

/** What is trained, as a checkpoint of a first step. */
async function asRun(folder: string, weights: ReadonlyMap<string, TensorData>): Promise<void> {
  const dir = join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(1));
  await mkdir(dir, { recursive: true });
  await writeFile(join(folder, RUN_PLAN_FILE), '{}');
  const bytes = encodeSafetensors(weights);
  const name = 'model-00001-of-00001.safetensors';
  await writeFile(join(dir, name), bytes);
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  const files = [{ name, sizeBytes: bytes.length, sha256 }];
  const manifest = {
    ...{ formatVersion: 1, runId: 'run', step: 1, generation: 1, dataPosition: 0, seed: 1 },
    ...{ configDigest: '', datasetDigest: '', files, time: '2026-01-01T00:00:00Z' },
  };
  await writeFile(join(dir, 'manifest.json'), JSON.stringify(manifest));
}

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
        const trained = new Map<string, TensorData>();
        for (const [path, tensor] of leavesOf(own.init(openInitializer(9)))) {
          const parts = partsOf(path, tensor.shape);
          const values = (await tensor.data()) as Float32Array;
          const size = values.length / parts.length;
          for (const [k, { name, shape }] of parts.entries()) {
            const data = new Uint8Array(values.slice(k * size, (k + 1) * size).buffer);
            trained.set(name, { dtype: 'F32', shape, data });
          }
          tensor.dispose();
        }
        await asRun(folder, trained);
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
