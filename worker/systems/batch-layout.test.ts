/** What a batch holds is cut along its first axis over the devices of a worker: every array has its rows there. */
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { ProgramLayout } from '../backend/sharded-program.ts';
import { resolveConfig, stagesOf } from '../config.ts';
import { rowSharding } from '../parallel/sharding.ts';
import { openShapeSystem } from '../plan-shapes.ts';
import { systems } from './registry.ts';
import type { HostBatch } from './system.ts';

/** Half of it, which is as many pictures as a batch of pictures and films has, divides into each of the meshes too. */
const NUM_ROWS = 20;
/** Few arrays with another first axis divide into 2 and into 10 parts by chance. */
const MESHES = [{ data: 2 }, { data: 1, fsdp: 2 }, { data: 10 }];

const recipes = (await readdir(new URL('../recipes/', import.meta.url)))
  .filter((file) => file.endsWith('.yaml') && file !== 'defaults.yaml')
  .map((file) => file.replace('.yaml', ''));

const known = new Set<string>();

for (const recipe of recipes) {
  test(`${recipe}: the rows of its batches lie on the devices of a mesh`, async () => {
    const text = await readFile(new URL(`../recipes/${recipe}.yaml`, import.meta.url), 'utf8');
    const stages = stagesOf(text);
    for (const stage of stages.length === 0 ? [undefined] : stages) {
      const overrides = [`train.microbatchSize=${NUM_ROWS}`];
      const config = resolveConfig({ text, file: recipe, stage, overrides });
      known.add(config.model.name);
      const { system, rows } = await openShapeSystem(config);
      const laidOut = (what: string, { arrays }: HostBatch): void => {
        for (const mesh of MESHES) {
          const arguments_ = [() => rowSharding(mesh)];
          const layout = new ProgramLayout(mesh, what, { arguments: arguments_ });
          const leaves = Object.entries(arrays).map(
            ([name, array]) => [`0/${name}`, array] as const,
          );
          assert.doesNotThrow(() => layout.of(leaves, []), stage ?? recipe);
        }
      };
      laidOut('training', system.assemble(rows));
      for (const task of [...system.heldOutTasks, ...(system.furtherTasks ?? [])])
        laidOut(task.name, task.assemble(rows));
      for (const task of system.writtenTasks ?? []) laidOut(task.name, task.assemble(rows));
      if (system.look !== undefined) laidOut('look', system.look.assemble(rows));
      if (system.answers !== undefined) laidOut('answers', system.answers.assemble(rows, 'what ?'));
      if (system.fillIn !== undefined)
        laidOut('fill-in', system.fillIn.assemble(rows, system.fillIn.example));
    }
  });
}

test('no system is left out: each is that of a recipe', () => {
  assert.deepEqual([...known].sort(), systems.map(({ schema }) => schema.shape.name.value).sort());
});
