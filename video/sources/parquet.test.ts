import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { openMediaCache } from '../storage/media-cache.ts';
import { parquet } from './parquet.ts';
import {
  FIXTURES,
  makeFolder,
  noise,
  openFolder,
  readManifest,
  readSource,
} from './test/read-source.ts';

const TABLES = join(FIXTURES, 'parquet');

test('tables that pyarrow wrote: binary columns, structures, lists, URLs', async () => {
  const { samples, faults } = await readSource(parquet, TABLES);
  const python = await readManifest<{
    plain: string[];
    train: (string | null)[];
    lists: string[][];
  }>('parquet');
  const { store } = await openFolder(TABLES);
  // Of tables on this machine nothing is copied.
  const cache = openMediaCache({ folder: join(TABLES, 'unused'), maxBytes: 0, store });
  const digests = new Map<string, (string | null)[]>();
  for (const { id, media } of samples) {
    const found: (string | null)[] = [];
    for (const { path, cell } of media) {
      if (cell === undefined) {
        found.push(null);
        continue;
      }
      const bytes = await cache.readBytes({ path, cell });
      found.push(createHash('sha256').update(bytes).digest('hex'));
    }
    digests.set(id, found);
  }
  for (const [row, digest] of python.plain.entries())
    assert.deepEqual(digests.get(`plain/${row}`), [digest]);
  // Row 2 has a path alone, row 5 nothing.
  for (const [row, digest] of python.train.entries()) {
    assert.deepEqual(digests.get(`train-00000-of-00001/${row}`), row === 5 ? undefined : [digest]);
  }
  assert.deepEqual(digests.get('lists/0.0'), python.lists[0]);
  assert.deepEqual(digests.get('lists/0.1'), python.lists[0]);
  assert.deepEqual(digests.get('lists/1'), python.lists[1]);

  const told = samples.map(({ id, text, split, media }) =>
    [id, text, split ?? '', media[0]!.path].join(' '),
  );
  assert.deepEqual(
    told.filter((line) => !line.startsWith('plain/') && !/^train.*row [0-46]/.test(line)),
    [
      'lists/0.0 a  lists.parquet',
      'lists/0.1 b  lists.parquet',
      'lists/1 c  lists.parquet',
      'urls/0 one  https://example.org/1.jpg',
      'urls/2   images/named.jpg',
      'validation-00000-of-00001/0 row 0 heldOut validation-00000-of-00001.parquet',
      'validation-00000-of-00001/1 row 1 heldOut validation-00000-of-00001.parquet',
    ],
  );
  assert.ok(told.includes('train-00000-of-00001/2 row 2 train images/named.jpg'));
  assert.equal(
    told.filter((line) => /^plain\/(\d) row \1 {2}plain\.parquet$/.test(line)).length,
    7,
  );
  assert.deepEqual(faults, [
    'lists.parquet#2 RECORD_INCOMPLETE',
    'other.parquet TABLE_COLUMNS',
    'train-00000-of-00001.parquet#5 RECORD_INCOMPLETE',
    'urls.parquet#1 RECORD_INCOMPLETE',
    'urls.parquet#3 PATH_OUTSIDE',
  ]);
});

test('bytes are not read where the table says that all are there', async () => {
  const { store, files } = await openFolder(TABLES);
  const only = files.filter(({ path }) => path === 'plain.parquet');
  const ranges: number[] = [];
  const watching = {
    ...store,
    read: (...args: Parameters<typeof store.read>) => {
      ranges.push(args[1]!.range!.sizeBytes);
      return store.read(...args);
    },
  };
  let numSamples = 0;
  for await (const record of parquet.read(watching, only)) if ('sample' in record) numSamples++;
  assert.equal(numSamples, 7);
  // The footer (here the whole file), then the captions of three row groups.
  assert.equal(ranges.length, 4);
  assert.ok(
    ranges.slice(1).every((sizeBytes) => sizeBytes < 300),
    ranges.join(' '),
  );
});

test('damaged tables are told; those beside them are read', async () => {
  const whole = await readFile(join(TABLES, 'train-00000-of-00001.parquet'));
  const images = { 'images/named.jpg': '' };
  const cut = await makeFolder({
    ...images,
    'a.parquet': whole.subarray(0, whole.length - 7),
    'b.parquet': noise('table', 3000),
    'c.parquet': '',
    'd.parquet': whole,
  });
  const { samples, faults } = await readSource(parquet, cut);
  assert.equal(samples.length, 6);
  assert.deepEqual(
    faults.filter((fault) => !fault.startsWith('d')),
    ['a.parquet PARQUET_DAMAGED', 'b.parquet PARQUET_DAMAGED', 'c.parquet PARQUET_DAMAGED'],
  );
  // A footer that says anything: nothing but named faults may come of it.
  const at = noise('flips', 400);
  for (let i = 0; i < 100; i++) {
    const damaged = Buffer.from(whole);
    const from = i % 2 === 0 ? 0 : damaged.length - 3000;
    damaged[from + ((at[2 * i]! * 256 + at[2 * i + 1]!) % (damaged.length - from))]! ^=
      1 << (i % 8);
    const { store } = await openFolder(cut);
    const memory = {
      ...store,
      read: (_path: string, { range }: Parameters<typeof store.read>[1] & object = {}) =>
        Promise.resolve(damaged.subarray(range!.offset, range!.offset + range!.sizeBytes)),
    };
    for await (const record of parquet.read(memory, [
      { path: 'x.parquet', sizeBytes: damaged.length },
    ])) {
      assert.ok('sample' in record || record.skipped.path.startsWith('x.parquet'));
    }
  }
});
