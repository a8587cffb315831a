import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { readPairScores } from './pairs-files.ts';
import { scorePairs, type CrossScores, type PairScores } from './pairs.ts';

const cross = (c0i0: number, c0i1: number, c1i0: number, c1i1: number): CrossScores => ({
  ...{ kind: 'cross', c0i0, c0i1, c1i0, c1i1 },
});
const list = (type: string, right: number, ...wrong: number[]): PairScores => ({
  ...{ kind: 'list', type, right, wrong },
});
const rowsOf = (items: readonly PairScores[]) =>
  scorePairs(items).map(({ name, value, chance, ties, count }) => [
    name,
    value,
    chance,
    ties,
    count,
  ]);

test('each medium has its caption, each caption its medium, or both', () => {
  const items = [
    cross(4, 1, 2, 3), // all of it
    cross(4, 3, 1, 2), // the second medium is more like the first caption
    cross(4, 1, 5, 6), // the first medium is more like the second caption
    cross(1, 2, 3, 0), // nothing
  ];
  assert.deepEqual(rowsOf(items), [
    ['text', 1 / 4, 1 / 4, 0, 4],
    ['image', 3 / 4, 1 / 4, 0, 4],
    ['group', 1 / 4, 1 / 6, 0, 4],
  ]);
});

test('chances are the shares of all orders of four scores that are right', () => {
  const orders: CrossScores[] = [];
  for (const a of [1, 2, 3, 4])
    for (const b of [1, 2, 3, 4])
      for (const c of [1, 2, 3, 4])
        for (const d of [1, 2, 3, 4])
          if (new Set([a, b, c, d]).size === 4) orders.push(cross(a, b, c, d));
  assert.equal(orders.length, 24);
  for (const [name, value, chance] of rowsOf(orders))
    assert.ok(Math.abs((value as number) - (chance as number)) < 1e-12, String(name));
});

test('of a caption among false ones, the mean is over types, not over items', () => {
  const items = [
    list('colour', 3, 1, 2),
    list('colour', 3, 1, 4),
    list('colour', 3, 2, 2),
    list('shape', 1, 2),
  ];
  assert.deepEqual(rowsOf(items), [
    ['colour', 2 / 3, 1 / 3, 0, 3],
    ['shape', 0, 1 / 2, 0, 1],
    ['mean of types', 1 / 3, (1 / 3 + 1 / 2) / 2, 0, 4],
  ]);
  assert.deepEqual(rowsOf([list('', 2, 1)]), [['accuracy', 1, 1 / 2, 0, 1]]);
});

test('whoever finds everything alike is right nowhere, and has ties alone', () => {
  const items = [
    cross(1, 1, 1, 1),
    cross(0, 0, 0, 0),
    list('a', 1, 1),
    list('b', 2, 2, 1),
    list('b', 2, 2, 2),
  ];
  for (const [name, value, , ties] of rowsOf(items)) {
    assert.equal(value, 0, String(name));
    assert.equal(ties, 1, String(name));
  }
  // Captions alike for each medium, as where words are a bag: media are told apart, captions are not.
  assert.deepEqual(
    rowsOf([cross(2, 1, 2, 1)]).map(([name, value, , ties]) => [name, value, ties]),
    [
      ['text', 0, 1],
      ['image', 0, 0],
      ['group', 0, 1],
    ],
  );
});

test('scores are read, and what is wrong is told with its place', async () => {
  const folder = await temporaryFolder('pairs');
  const path = join(folder, 'scores.jsonl');
  const read = async (...records: unknown[]): Promise<PairScores[]> => {
    await writeFile(path, records.map((record) => `${JSON.stringify(record)}\n`).join(''));
    return readPairScores(path);
  };
  assert.deepEqual(
    await read(
      { id: 0, c0_i0: 1, c0_i1: 2, c1_i0: 3, c1_i1: 4 },
      { id: 1, type: 'swap_att', scores: [5, 6] },
    ),
    [cross(1, 2, 3, 4), list('swap_att', 5, 6)],
  );
  await assert.rejects(read({ id: 0, c0_i0: 1 }), {
    message: /scores\.jsonl#0: c0_i1 is undefined/,
  });
  await assert.rejects(read({ id: 0, scores: [1] }), {
    message: /true caption and of a false one/,
  });
});
