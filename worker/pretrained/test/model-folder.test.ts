/** Which files of a folder hold its weights. */
import assert from 'node:assert/strict';
import { copyFile, readdir } from 'node:fs/promises';
import path from 'node:path';
import { describe, it } from 'node:test';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { openWeights, writeModelFolder } from '../model-folder.ts';

const SHARDED = { maxFileBytes: 8 };

async function write(folder: string, value: number, options = {}): Promise<void> {
  const tensor = { shape: [2], data: Float32Array.of(value, value) };
  const tensors = new Map([
    ['a', tensor],
    ['b', tensor],
  ]);
  await writeModelFolder(folder, { config: {}, tensors }, options);
}

async function firstOf(folder: string): Promise<number> {
  return (await (await openWeights(folder)).read('a')).data[0]!;
}

describe('weights that are written where others were', () => {
  it('are those that are read, be they in fewer files or in more; the older ones are gone', async () => {
    const folder = await temporaryFolder('weights');
    await write(folder, 1, SHARDED);
    await write(folder, 2);
    assert.equal(await firstOf(folder), 2);
    assert.deepEqual((await readdir(folder)).sort(), ['config.json', 'model.safetensors']);
    await write(folder, 3, SHARDED);
    assert.equal(await firstOf(folder), 3);
    assert.ok(!(await readdir(folder)).includes('model.safetensors'));
  });

  it('in one file count before an index that others left there, as in transformers', async () => {
    const [folder, other] = [await temporaryFolder('weights'), await temporaryFolder('weights')];
    await write(folder, 1, SHARDED);
    await write(other, 2);
    await copyFile(path.join(other, 'model.safetensors'), path.join(folder, 'model.safetensors'));
    assert.equal(await firstOf(folder), 2);
  });
});
