import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readdir, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { openLog } from '../../proto/log.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { BLACK_BOX_FOLDER, openBlackBox } from './black-box.ts';
import { readBlackBoxes, type ReadBox } from './read.ts';
import { BOX_BYTES, HEADER_BYTES, NUM_RECORDS, RECORD_BYTES } from './record.ts';
import { digestOf } from './recorders.ts';

const log = openLog({}, { level: 'silent' });
const openIn = (folder: string, workerId = 'worker-0') =>
  openBlackBox({
    runFolder: folder,
    runId: 'run',
    workerId,
    host: 'here',
    sameBitsAlways: true,
    log,
  });

/** Opens a box, records without end, and says how far it is. */
const RECORDING = `
import { writeSync } from 'node:fs';
import { openLog } from ${JSON.stringify(import.meta.resolve('../../proto/log.ts'))};
import { openBlackBox } from ${JSON.stringify(import.meta.resolve('./black-box.ts'))};
const [runFolder] = process.argv.slice(-1);
const log = openLog({}, { level: 'silent' });
const box = await openBlackBox({ runFolder, runId: 'run', workerId: 'worker-0', host: 'here', sameBitsAlways: true, log });
for (let step = 1; ; step++) {
  box.record('step', { step, generation: 2, text: 'step ' + step });
  // What process.stdout keeps while nobody reads would die with the process.
  for (let told = false; !told; ) {
    try {
      writeSync(1, step + '\\n');
      told = true;
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
    }
  }
  if (step % 50 === 0) await new Promise((resolve) => setTimeout(resolve, 1));
}
`;

test('what was recorded before a kill -9 is there after it, to the last record', async () => {
  const folder = await temporaryFolder('black-box');
  const child = spawn(
    process.execPath,
    ['--import', 'tsx', '--input-type=module', '--eval', RECORDING, folder],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  let told = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    told += text;
    if (told.split('\n').length > 2000) child.kill('SIGKILL');
  });
  await once(child, 'close');
  const lastTold = Number(told.trim().split('\n').at(-1));
  assert.ok(lastTold >= 1999, told.slice(-100));
  const [box] = await readBlackBoxes(folder);
  const last = box!.records.at(-1)!;
  assert.ok(last.step === lastTold || last.step === lastTold + 1, `${last.step} of ${lastTold}`);
  assert.equal(last.text, `step ${last.step}`);
  assert.equal(last.generation, 2);
  assert.equal(box!.owner.pid, child.pid);
  // All that fit: the child goes on for as long as the signal takes.
  const first = Math.max(1, last.number - NUM_RECORDS + 1);
  assert.deepEqual(
    box!.records.map(({ number }) => number),
    Array.from({ length: last.number - first + 1 }, (_, i) => first + i),
  );
});

test('the box has one size: the newest records take the places of the oldest', async () => {
  const folder = await temporaryFolder('black-box');
  const box = await openIn(folder);
  for (let step = 1; step <= NUM_RECORDS + 100; step++)
    box.record('phase', { step, text: 'ä'.repeat(200) });
  box.close();
  box.record('phase', { text: 'after the end' });
  const [file] = await readdir(join(folder, BLACK_BOX_FOLDER));
  assert.equal((await stat(join(folder, BLACK_BOX_FOLDER, file!))).size, BOX_BYTES);
  const [{ records }] = (await readBlackBoxes(folder)) as [ReadBox];
  assert.equal(records.length, NUM_RECORDS);
  assert.equal(records[0]!.number, 101);
  assert.equal(records.at(-1)!.number, NUM_RECORDS + 100);
});

test('a torn record is passed over, a file that is no box too', async () => {
  const folder = await temporaryFolder('black-box');
  const box = await openIn(folder);
  for (let step = 1; step <= 5; step++) box.record('step', { step });
  box.close();
  const [name] = await readdir(join(folder, BLACK_BOX_FOLDER));
  const path = join(folder, BLACK_BOX_FOLDER, name!);
  const file = await open(path, 'r+');
  await file.write(Buffer.from([0xff]), 0, 1, HEADER_BYTES + 2 * RECORD_BYTES + 17);
  await file.close();
  const other = await open(join(folder, BLACK_BOX_FOLDER, 'other.box'), 'w');
  await other.truncate(BOX_BYTES);
  await other.close();
  const boxes = await readBlackBoxes(folder);
  assert.deepEqual(
    boxes.map(({ records }) => records.map(({ step }) => step)),
    [[1, 2, 4, 5]],
  );
});

test('boxes of the last processes of a worker are kept, others of a like name are left alone', async () => {
  const folder = await temporaryFolder('black-box');
  (await openIn(folder, 'worker-0.x')).close();
  for (let i = 0; i < 7; i++) {
    (await openIn(folder)).close();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  const names = await readdir(join(folder, BLACK_BOX_FOLDER));
  assert.equal(names.filter((name) => /^worker-0\.\d+-\d+\.box$/.test(name)).length, 4);
  assert.equal(names.filter((name) => name.startsWith('worker-0.x')).length, 1);
});

test('a folder that takes no files costs the box and nothing else', async () => {
  const file = join(await temporaryFolder('black-box'), 'file');
  await writeFile(file, '');
  const box = await openIn(file);
  box.record('step', { step: 1 });
  box.close();
});

test('a digest tells one bit apart', () => {
  const vector = Float32Array.from({ length: 1000 }, (_, i) => Math.sin(i));
  const bent = vector.slice();
  new Uint32Array(bent.buffer)[777]! ^= 1;
  assert.notEqual(digestOf([vector]), digestOf([bent]));
  assert.equal(digestOf([vector]), digestOf([vector.subarray(0, 500), vector.subarray(500)]));
});
