import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import {
  completeCheckpoint,
  findCheckpoint,
  removeCheckpoint,
  removeLeftovers,
  removeUnfinished,
  setAside,
  surplusCheckpoints,
} from './checkpoints.ts';

const HOUR_MS = 3_600_000;

const pathOf = (folder: string, step: number): string =>
  join(folder, `step-${String(step).padStart(8, '0')}`);

async function writeFiles(folder: string, step: number, contents: Record<string, string>) {
  await mkdir(pathOf(folder, step), { recursive: true });
  const files = [];
  for (const [name, content] of Object.entries(contents)) {
    await writeFile(join(pathOf(folder, step), name), content);
    const sha256 = createHash('sha256').update(content).digest('hex');
    files.push({ name, sizeBytes: Buffer.byteLength(content), sha256 });
  }
  return files;
}

function manifestOf(step: number, files: Awaited<ReturnType<typeof writeFiles>>, runId = 'run-a') {
  const digests = { configDigest: 'c', datasetDigest: 'd' };
  return {
    formatVersion: 1 as const,
    runId,
    step,
    generation: 1,
    dataPosition: step * 8,
    seed: 7,
    ...digests,
    files,
    time: new Date(step * HOUR_MS).toISOString(),
  };
}

const MODEL = 'model-00001-of-00001.safetensors';
const INDEX = 'model.safetensors.index.json';

async function save(folder: string, step: number, runId?: string): Promise<void> {
  const files = await writeFiles(folder, step, { [MODEL]: `weights ${step}`, [INDEX]: '{}' });
  await completeCheckpoint(folder, manifestOf(step, files, runId));
}

describe('checkpoints', () => {
  it('that are damaged in any way are passed over by name, for the newest whole one', async () => {
    const folder = await temporaryFolder('checkpoints');
    for (let step = 1; step <= 7; step++) await save(folder, step, step === 6 ? 'run-b' : 'run-a');
    await writeFile(join(pathOf(folder, 7), MODEL), 'Weights 7');
    await truncate(join(pathOf(folder, 5), MODEL), 3);
    await rm(join(pathOf(folder, 4), INDEX));
    const manifest = await readFile(join(pathOf(folder, 3), 'manifest.json'), 'utf8');
    await writeFile(join(pathOf(folder, 3), 'manifest.json'), manifest.slice(0, -20));
    const passedOver: string[] = [];
    const found = await findCheckpoint(folder, 'run-a', (step, { message }) => {
      passedOver.push(`${step} ${message}`);
    });
    assert.equal(found?.step, 2);
    for (const [i, why] of [
      /^7 .*another SHA-256/,
      /^6 .*belongs to run run-b/,
      /^5 .*3 bytes instead of 9/,
      /^4 .*index\.json cannot be read/,
      /^3 .*no valid manifest/,
    ].entries()) {
      assert.match(passedOver[i]!, why);
    }
  });

  it('that cannot be read are not passed over: nobody knows whether they are whole', async () => {
    for (const name of [MODEL, 'manifest.json']) {
      const folder = await temporaryFolder('checkpoints');
      for (const step of [1, 2]) await save(folder, step);
      const path = join(pathOf(folder, 2), name);
      await rm(path);
      await symlink(path, path); // as what a file system that is away says: there is something, and it cannot be had
      const look = findCheckpoint(folder, 'run-a', () => assert.fail('it is passed over'));
      await assert.rejects(look, {
        code: 'CHECKPOINT_UNREADABLE',
        message: /ELOOP.*move its folder/,
      });
      // Without a look at its files a checkpoint with a manifest is a whole one.
      const removed = removeUnfinished(folder, new Set());
      if (name === MODEL) assert.deepEqual(await removed, []);
      else await assert.rejects(removed, { code: 'CHECKPOINT_UNREADABLE' });
      assert.deepEqual((await readdir(folder)).sort(), ['step-00000001', 'step-00000002']);
    }
  });

  it('with a manifest cut at any byte do not exist', async () => {
    const folder = await temporaryFolder('checkpoints');
    await save(folder, 1);
    const path = join(pathOf(folder, 1), 'manifest.json');
    const whole = await readFile(path);
    for (let cut = 0; cut < whole.length - 2; cut += 3) {
      await writeFile(path, whole.subarray(0, cut));
      assert.equal(await findCheckpoint(folder, 'run-a', () => undefined), undefined);
    }
    await writeFile(path, whole);
    assert.equal((await findCheckpoint(folder, 'run-a', () => undefined))?.step, 1);
  });

  it('are surplus by count and by age, and only once the newest was read back whole', async () => {
    const folder = await temporaryFolder('checkpoints');
    for (let step = 1; step <= 5; step++) await save(folder, step);
    const now = new Date(5.5 * HOUR_MS);
    const surplus = (keep: number, hours?: number) =>
      surplusCheckpoints(folder, 'run-a', { keep, now, maxAgeMs: hours && hours * HOUR_MS });
    await writeFile(join(pathOf(folder, 5), MODEL), 'Weights 5');
    await assert.rejects(surplus(2), { code: 'CHECKPOINT_INVALID' });
    await writeFile(join(pathOf(folder, 5), MODEL), 'weights 5');
    assert.deepEqual(await surplus(2), [1, 2, 3]);
    assert.deepEqual(await surplus(9), []);
    assert.deepEqual(await surplus(9, 3), [1, 2], 'older than three hours');
    assert.deepEqual(await surplus(9, 0.1), [1, 2, 3, 4], 'the newest stays, however old it is');
    assert.deepEqual(await surplus(2, 3), [1, 2, 3]);
  });

  it('are removed, save for files of somebody else', async () => {
    const folder = await temporaryFolder('checkpoints');
    for (let step = 1; step <= 3; step++) await save(folder, step);
    await writeFile(join(pathOf(folder, 2), 'notes.txt'), 'the good one');
    await writeFile(join(pathOf(folder, 3), `${MODEL}.tmp-123`), 'half');
    await writeFile(join(pathOf(folder, 3), 'manifest.json'), 'cut');
    assert.deepEqual(await removeCheckpoint(folder, 1), []);
    assert.deepEqual(await removeCheckpoint(folder, 2), ['notes.txt']);
    assert.deepEqual(await removeCheckpoint(folder, 3), [], 'by its names where no manifest tells');
    assert.deepEqual(await readdir(folder), ['step-00000002']);
    assert.deepEqual(await readdir(pathOf(folder, 2)), ['notes.txt']);
  });

  it('leave nothing of ours beside them: neither what was begun earlier nor what a lost worker wrote', async () => {
    const folder = await temporaryFolder('checkpoints');
    await save(folder, 1);
    await writeFiles(folder, 2, { [MODEL]: 'whole', [`${INDEX}.tmp-9`]: 'half' });
    await writeFiles(folder, 3, { 'notes.txt': 'x', [MODEL]: 'whole' });
    await save(folder, 4);
    await writeFiles(folder, 4, { 'model-00001-of-00002.safetensors': 'x', 'notes.txt': 'x' });
    await writeFiles(folder, 5, { [MODEL]: 'being written' });
    await removeLeftovers(folder, 4);
    const names = ['step-00000001', 'step-00000003', 'step-00000004', 'step-00000005'];
    assert.deepEqual(await readdir(folder), names);
    assert.deepEqual(await readdir(pathOf(folder, 3)), ['notes.txt']);
    const whole = [MODEL, INDEX, 'manifest.json', 'notes.txt'];
    assert.deepEqual((await readdir(pathOf(folder, 4))).sort(), whole.sort());
    assert.equal((await findCheckpoint(folder, 'run-a', () => undefined))?.step, 4);
  });

  it('that were never completed are removed; what has another name is left alone', async () => {
    const folder = await temporaryFolder('checkpoints');
    await save(folder, 1);
    await writeFiles(folder, 2, { [MODEL]: 'half' });
    for (const name of ['step-3', 'step-00000004-copy', 'best', 'step-0000000005'])
      await mkdir(join(folder, name));
    assert.deepEqual(await removeUnfinished(folder, new Set([1])), [{ step: 2, kept: undefined }]);
    const left = ['best', 'step-0000000005', 'step-00000001', 'step-00000004-copy', 'step-3'];
    assert.deepEqual((await readdir(folder)).sort(), left);
  });

  it('that have lost their manifest, or hold a file of somebody else, are set aside and not removed', async () => {
    const folder = await temporaryFolder('checkpoints');
    for (let step = 1; step <= 2; step++) await save(folder, step);
    await rm(join(pathOf(folder, 2), 'manifest.json'));
    await writeFiles(folder, 3, { [MODEL]: 'half', 'notes.txt': 'x' });
    assert.deepEqual(await removeUnfinished(folder, new Set([1, 2])), [
      { step: 2, kept: join(folder, 'damaged-step-00000002') },
      { step: 3, kept: join(folder, 'damaged-step-00000003') },
    ]);
    const files = await readdir(join(folder, 'damaged-step-00000002'));
    assert.deepEqual(files.sort(), [INDEX, MODEL].sort());
    await save(folder, 2);
    assert.equal(await setAside(folder, 2), join(folder, 'damaged-step-00000002-2'));
    assert.equal((await findCheckpoint(folder, 'run-a', () => undefined))?.step, 1);
  });

  it('take no names that lead out of their folder, no name twice, and no file that is not there', async () => {
    const folder = await temporaryFolder('checkpoints');
    const [file] = await writeFiles(folder, 1, { a: 'x' });
    await writeFile(join(folder, 'outside'), 'x');
    for (const name of [
      '../outside',
      '/etc/passwd',
      'a/../../outside',
      '.hidden',
      '',
      'manifest.json',
      'a\0b',
    ]) {
      const files = [{ ...file!, name }];
      await assert.rejects(
        completeCheckpoint(folder, manifestOf(1, files)),
        { code: 'CHECKPOINT_INVALID' },
        name,
      );
    }
    await assert.rejects(completeCheckpoint(folder, manifestOf(1, [file!, file!])), /two workers/);
    await assert.rejects(
      completeCheckpoint(folder, manifestOf(1, [{ ...file!, name: 'b' }])),
      /must be shared/,
    );
    await assert.rejects(
      completeCheckpoint(folder, manifestOf(1, [{ ...file!, sizeBytes: 2 }])),
      /has 1 bytes/,
    );
    assert.deepEqual(await readdir(pathOf(folder, 1)), ['a']);
  });
});
