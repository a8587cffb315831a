import assert from 'node:assert/strict';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import type { Engine } from '../backend/engine.ts';
import { makeRunFolder } from '../test/run-folder.ts';
import { exportRun } from './export-run.ts';

describe('an export', () => {
  let engine: Engine;
  before(async () => {
    engine = await openCpuEngine();
  });
  after(() => {
    engine.close();
  });

  it('into the folder of an older one leaves none of its weights, and no file of others', async () => {
    const root = await temporaryFolder('export');
    const [folder, out] = [join(root, 'run'), join(root, 'out')];
    for (const path of [folder, out]) await mkdir(path);
    const older = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'];
    for (const name of [...older, 'model.safetensors.index.json', 'notes.safetensors'])
      await writeFile(join(out, name), '{}');
    await makeRunFolder(folder, { recipe: 'clip', overrides: [] });
    await exportRun({ folder, out, step: undefined });
    const left = (await readdir(out)).filter((name) => name.includes('safetensors')).sort();
    assert.deepEqual(left, ['model.safetensors', 'notes.safetensors']);
    // A checkpoint's files have no index.
    await writeFile(join(out, older[0]!), '{}');
    await exportRun({ folder, out, step: undefined });
    assert.ok((await readdir(out)).includes(older[0]!));
  });
});
