import assert from 'node:assert/strict';
import { constants } from 'node:buffer';
import { appendFile, open, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openJournal } from './journal.ts';

const folder = await temporaryFolder('curation-journal');

test('what was appended is there again, and half a line is cut off, wherever it was cut', async () => {
  const file = join(folder, 'journal.jsonl');
  const written = [{ name: 'a' }, { name: 'Füße\u2028🎬' }];
  const journal = await openJournal(file);
  assert.deepEqual(journal.entries, []);
  for (const entry of written) await journal.append(entry);
  await journal.close();
  const whole = await readFile(file);
  const next = Buffer.from(`${JSON.stringify({ name: '🎬' })}\n`);
  for (let length = 0; length < next.length; length++) {
    await appendFile(file, next.subarray(0, length));
    const again = await openJournal(file);
    assert.deepEqual(again.entries, written, `${length} bytes`);
    await again.close();
    assert.deepEqual(await readFile(file), whole, `${length} bytes`);
  }
  const last = await openJournal<{ name: string }>(file);
  await last.append({ name: '🎬' });
  await last.close();
  assert.deepEqual(await readFile(file), Buffer.concat([whole, next]));
});

test('one with more characters than a string may have goes on', async () => {
  const file = join(folder, 'large.jsonl');
  const handle = await open(file, 'w');
  let numEntries = 0;
  for (let bytes = 0; bytes <= constants.MAX_STRING_LENGTH; bytes += 2 ** 24) {
    await handle.write(`${JSON.stringify({ number: numEntries++ }).padEnd(2 ** 24 - 1)}\n`);
  }
  await handle.write('{"number":');
  await handle.close();
  const journal = await openJournal<{ number: number }>(file);
  await journal.close();
  assert.deepEqual(
    journal.entries,
    Array.from({ length: numEntries }, (_, number) => ({ number })),
  );
  assert.equal((await stat(file)).size, numEntries * 2 ** 24);
  await rm(file);
});
