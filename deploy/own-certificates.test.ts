import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { makeCertificates } from './own-certificates.ts';

const DAY_MS = 86_400_000;

test('certificates of a run are renewed where less than a third of their life is left', async () => {
  const folder = await temporaryFolder('own-certificates');
  await writeFile(join(folder, 'run.json'), '{}');
  const made = async (afterDays: number): Promise<string[]> => {
    const options = { startsNoWorkers: true, env: {} };
    await makeCertificates({ folder, workers: 1 }, options, Date.now() + afterDays * DAY_MS);
    const names = ['ca.pem', 'token', 'coordinator.pem', join('workers', 'worker-0.pem')];
    return Promise.all(names.map((name) => readFile(join(folder, 'tls', name), 'utf8')));
  };
  const first = await made(0);
  assert.deepEqual(await made(59), first);
  const renewed = await made(61);
  assert.deepEqual(renewed.slice(0, 2), first.slice(0, 2), 'the same authority and token');
  for (const i of [2, 3]) assert.notEqual(renewed[i], first[i]);
});
