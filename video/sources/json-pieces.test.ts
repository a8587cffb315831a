import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import { openLocalStore } from '../storage/local.ts';
import type { Store } from '../storage/store.ts';
import { jsonPieces, MAX_RECORD_BYTES } from './json-pieces.ts';
import { jsonRecords, type JsonRecord } from './json-records.ts';
import { noise } from './test/read-source.ts';

/** A store of one file that arrives in chunks of this size. */
function storeOf(content: Buffer, chunkBytes: number): Store {
  const chunks = function* (): Generator<Buffer> {
    for (let at = 0; at < content.length; at += chunkBytes)
      yield content.subarray(at, at + chunkBytes);
  };
  return {
    ...openLocalStore('.'),
    read: () => Promise.resolve(content.subarray(0, 2 ** 16)),
    stream: () => Promise.resolve(Readable.from(chunks())),
  };
}

async function readAll(
  content: string | Buffer,
  { path = 'x.json', chunkBytes = 2 ** 16 } = {},
): Promise<{ values: unknown[]; records: JsonRecord[]; faults: string[] }> {
  const bytes = Buffer.from(content);
  const records: JsonRecord[] = [];
  const faults: string[] = [];
  for await (const record of jsonRecords(storeOf(bytes, chunkBytes), {
    path,
    sizeBytes: bytes.length,
  })) {
    if ('skipped' in record) faults.push(`${record.skipped.path} ${record.skipped.code}`);
    else records.push(record);
  }
  return { values: records.map(({ value }) => value), records, faults };
}

const ODD = [
  { a: '"[{\\', b: [[], {}, [1, [2]]] },
  'x,]',
  -1.5e3,
  true,
  null,
  [],
  {},
  '',
  { ü: '\u2028' },
];

test('the elements of an array are those that JSON.parse gives, however the file arrives', async () => {
  for (const text of [
    JSON.stringify(ODD),
    JSON.stringify(ODD, null, 2),
    `\uFEFF ${JSON.stringify(ODD)}\n`,
  ]) {
    for (const chunkBytes of [1, 2, 3, 7, 1000]) {
      assert.deepEqual((await readAll(text, { chunkBytes })).values, ODD);
    }
  }
  assert.deepEqual(await readAll('[]'), { values: [], records: [], faults: [] });
  assert.deepEqual(await readAll(''), { values: [], records: [], faults: [] });
});

test('of an object the values come with their keys, those of its arrays one by one', async () => {
  const value = {
    info: { a: [1, 2] },
    images: [{ id: 1 }, [2]],
    'a "key"': 'text',
    n: 5,
    none: [],
    last: null,
  };
  for (const chunkBytes of [1, 5, 1000]) {
    const { records, faults } = await readAll(JSON.stringify(value), { chunkBytes });
    assert.deepEqual(faults, []);
    assert.deepEqual(
      records.map(({ key, value: found }) => [key, found]),
      [
        ['info', { a: [1, 2] }],
        ['images', { id: 1 }],
        ['images', [2]],
        ['a "key"', 'text'],
        ['n', 5],
        ['last', null],
      ],
    );
  }
});

test('JSON Lines are known by the name, or by a first line that is whole', async () => {
  const lines = ODD.map((one) => JSON.stringify(one)).join('\n');
  for (const chunkBytes of [1, 13, 1000]) {
    assert.deepEqual((await readAll(lines, { path: 'x.jsonl', chunkBytes })).values, ODD);
  }
  assert.deepEqual((await readAll('{"a":1}\r\n\r\n{"a":2}\r\n')).values, [{ a: 1 }, { a: 2 }]);
  assert.deepEqual((await readAll('[{"a":1}]', { path: 'x.jsonl' })).values, [{ a: 1 }]);
});

test('a faulty record costs itself alone and is told by line and place', async () => {
  const lines = await readAll('{"a":1}\n{"a":\n\xff\n{"a":2}', { path: 'x.jsonl' });
  assert.deepEqual(lines.values, [{ a: 1 }, { a: 2 }]);
  assert.deepEqual(lines.faults, ['x.jsonl:2 RECORD_BAD_JSON', 'x.jsonl:3 RECORD_BAD_JSON']);
  const list = await readAll('[{"a":1},\n {"a" 2},\n NaN, {"a":3}]');
  assert.deepEqual(list.values, [{ a: 1 }, { a: 3 }]);
  assert.deepEqual(list.faults, ['x.json:2#1 RECORD_BAD_JSON', 'x.json:3#2 RECORD_BAD_JSON']);
  assert.deepEqual(list.records[1]!.at, 'x.json:3#3');
});

test('bytes that are no UTF-8 are no JSON', async () => {
  const bytes = Buffer.concat([
    Buffer.from('{"a":"'),
    Buffer.from([0xff, 0xfe]),
    Buffer.from('"}\n{"a":2}'),
  ]);
  const { values, faults } = await readAll(bytes, { path: 'x.jsonl' });
  assert.deepEqual([values, faults], [[{ a: 2 }], ['x.jsonl:1 RECORD_BAD_JSON']]);
});

test('what ends early or goes on after its end is told after the records before', async () => {
  for (let size = 1; size < 20; size++) {
    const { values, faults } = await readAll('[{"a":1},{"a":[2]}]'.slice(0, size));
    assert.deepEqual(values, [
      ...(size >= 8 ? [{ a: 1 }] : []),
      ...(size >= 18 ? [{ a: [2] }] : []),
    ]);
    assert.equal(faults.length, size < 19 ? 1 : 0);
    if (size < 19) assert.match(faults[0]!, /^x\.json:1 JSON_TRUNCATED$/);
  }
  assert.deepEqual((await readAll('[1] [2]')).faults, ['x.json:1 JSON_DAMAGED']);
  assert.deepEqual((await readAll('hello')).faults, ['x.json:1 JSON_DAMAGED']);
});

test('a record beyond the limit is told without being held, and the next one read', async () => {
  const long = `"${'x'.repeat(MAX_RECORD_BYTES)}"`;
  for (const [path, text] of [
    ['x.json', `[1,${long},2]`],
    ['x.jsonl', `1\n${long}\n2`],
  ] as const) {
    const { values, faults } = await readAll(text, { path });
    assert.deepEqual(values, [1, 2]);
    assert.match(faults[0]!, /RECORD_TOO_LARGE$/);
  }
});

test('offsets lead to the text of each record', async () => {
  const content = Buffer.from('\n[ "é", {"a": 1} ,3 ]');
  const file = { path: 'x.json', sizeBytes: content.length };
  for (const name of ['x.json', 'x.jsonl']) {
    const text = name === 'x.json' ? content : Buffer.from('{"é":1}\n\n{"b":2}\n');
    for await (const piece of jsonPieces(storeOf(text, 3), {
      ...file,
      path: name,
      sizeBytes: text.length,
    })) {
      const { offset, sizeBytes, bytes } = piece;
      assert.deepEqual(text.subarray(offset, offset + sizeBytes), Buffer.from(bytes!));
    }
  }
});

test('noise is told, and deep nesting does no harm', async () => {
  for (let i = 0; i < 50; i++) {
    for (const path of ['x.json', 'x.jsonl']) {
      for (const opening of ['', '[', '{"a":[']) {
        const { faults } = await readAll(
          Buffer.concat([Buffer.from(opening), noise(`${i}`, 300)]),
          { path },
        );
        assert.ok(faults.length > 0);
      }
    }
  }
  const deep = `[${'['.repeat(1e5)}${']'.repeat(1e5)},7]`;
  assert.equal((await readAll(deep)).values.at(-1), 7);
});
