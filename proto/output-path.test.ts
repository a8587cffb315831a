import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { UsageError } from './errors.ts';
import { checkOutputFile, makeOutputFolder, outputError } from './output-path.ts';
import { temporaryFolder } from './test/temporary-folder.ts';

let folder: string;
before(async () => {
  folder = await temporaryFolder('output-path');
  await writeFile(join(folder, 'file'), '');
});

async function refused(promise: Promise<void>, pattern: RegExp): Promise<void> {
  await assert.rejects(promise, (error: unknown) => {
    assert.ok(error instanceof UsageError);
    assert.equal(error.code, 'OUT_NOT_WRITABLE');
    assert.match(error.message, pattern);
    return true;
  });
}

test('a file needs a folder around it and none in its place', async () => {
  await checkOutputFile(join(folder, 'new.svg'));
  await checkOutputFile(join(folder, 'file'));
  await refused(
    checkOutputFile(join(folder, 'none', 'x.svg')),
    /x\.svg: there is no folder .*none/,
  );
  await refused(checkOutputFile(join(folder, 'file', 'x.svg')), /x\.svg: .*file is a file/);
  await refused(checkOutputFile(folder), /a folder is there/);
});

test('a folder is made with those above it; where none can be made this ends, and says so', async (context) => {
  const deep = join(folder, 'a', 'b', 'c');
  await makeOutputFolder(deep);
  await makeOutputFolder(deep);
  assert.ok((await stat(deep)).isDirectory());
  await refused(makeOutputFolder(join(folder, 'file')), /file: a file is in the way/);
  await refused(makeOutputFolder(join(folder, 'file', 'x', 'y')), /a part of the path is a file/);
  if (!existsSync('/proc/self')) context.skip('there is no /proc');
  else
    await refused(makeOutputFolder('/proc/nope/run'), /\/proc\/nope\/run .*no folder can be made/);
});

test('a full disk is named with the path; what is no matter of the disk stays what it is', () => {
  const full = Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' });
  assert.match(
    (outputError(full, 'runs/a') as Error).message,
    /cannot write runs\/a: the disk is full/,
  );
  const bug = new TypeError('no function');
  assert.equal(outputError(bug, 'runs/a'), bug);
});
