import assert from 'node:assert/strict';
import { appendFile, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openEvaluationFile, partialPath } from './evaluation-file.ts';

const OF = { run: 'a', step: 3, weights: 'ab' };

test('what was done is not done again, whatever was torn is, and in the end there is one file', async () => {
  const folder = await temporaryFolder('evaluation-file');
  const path = join(folder, 'answers.jsonl');
  const made: string[] = [];
  const make = (name: string) => (): Promise<string[]> => {
    made.push(name);
    return Promise.resolve([`${name}\u2028 "ü"`]);
  };
  const first = await openEvaluationFile(path, OF);
  for (const name of ['a', 'b', 'c']) await first.unit(name, make(name));
  assert.equal(await first.unit('b', make('b')).then(([text]) => text), 'b\u2028 "ü"');
  await first.close();
  assert.deepEqual(made, ['a', 'b', 'c']);

  // The last line is torn: within a character, and with another line behind it.
  const partial = partialPath(path);
  const whole = await readFile(partial);
  const end = whole.indexOf('\n', whole.indexOf('"c"'));
  await writeFile(partial, whole.subarray(0, end - 6));
  await appendFile(partial, '\n{"unit":"d","result":1}\n');
  const second = await openEvaluationFile(path, OF);
  assert.equal(second.numKnown, 2);
  for (const name of ['a', 'b', 'c', 'd']) await second.unit(name, make(name));
  assert.deepEqual(made, ['a', 'b', 'c', 'c', 'd']);
  assert.equal(second.numKnown, 2);
  await second.close();
  const third = await openEvaluationFile(path, OF);
  assert.equal(third.numKnown, 4);
  await third.finish([{ id: 1 }, { id: 2 }]);
  assert.deepEqual(await readdir(folder), ['answers.jsonl']);
  assert.equal(await readFile(path, 'utf8'), '{"id":1}\n{"id":2}\n');
});

test('a file without its first line begins anew; one of another checkpoint is refused and left as it is', async () => {
  const path = join(await temporaryFolder('evaluation-file'), 'answers.jsonl');
  await writeFile(partialPath(path), '{"of":{"run":"a","st');
  const file = await openEvaluationFile(path, OF);
  await file.unit('a', () => Promise.resolve(1));
  await file.close();
  const before = await readFile(partialPath(path), 'utf8');
  // Lines of JSON that are no records are torn, wherever they stand.
  await writeFile(partialPath(path), `null\n${before}`);
  const torn = await openEvaluationFile(path, OF);
  assert.equal(torn.numKnown, 0);
  await torn.close();
  await writeFile(partialPath(path), `${before}null\n7\n`);
  const tail = await openEvaluationFile(path, OF);
  assert.equal(tail.numKnown, 1);
  // What comes to nothing is not kept.
  await tail.unit('b', (): Promise<unknown> => Promise.resolve(undefined));
  assert.doesNotMatch(await readFile(partialPath(path), 'utf8'), /"unit":"b"/);
  await tail.close();
  await assert.rejects(openEvaluationFile(path, { ...OF, step: 4, config: 'x' }), {
    code: 'EVALUATION_OTHER',
    message:
      /answers\.jsonl\.partial is of another .* \(step 3, not 4; config none, not x\): .* --out/,
  });
  assert.equal(await readFile(partialPath(path), 'utf8'), before);
  await assert.rejects(openEvaluationFile(join(path, 'none', 'x'), OF), {
    code: 'OUT_NOT_WRITABLE',
  });
});
