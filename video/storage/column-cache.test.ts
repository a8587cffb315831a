import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { openColumnCache } from './column-cache.ts';

const column = (name: string): readonly unknown[] => [name];

test('a column is read once for all who ask meanwhile and afterwards, until larger ones push it out', async () => {
  const cache = openColumnCache(100);
  const loaded: string[] = [];
  const read = (key: string, sizeBytes: number) =>
    cache.read(key, sizeBytes, undefined, async () => {
      loaded.push(key);
      await turn();
      return column(key);
    });
  assert.deepEqual(await Promise.all([read('a', 40), read('a', 40)]), [['a'], ['a']]);
  await read('b', 40);
  await read('a', 40); // used later than b
  await read('c', 40);
  assert.deepEqual(loaded, ['a', 'b', 'c']);
  await read('a', 40);
  await read('b', 40);
  assert.deepEqual(loaded, ['a', 'b', 'c', 'b']);
  // Larger than the cache: read each time, and everything else stays out.
  await read('huge', 1000);
  await read('huge', 1000);
  assert.deepEqual(loaded.slice(4), ['huge', 'huge']);
});

test('no more is read at once than the cache holds, a failure keeps nobody, and who leaves ends it', async () => {
  const cache = openColumnCache(100);
  let underWay = 0;
  let most = 0;
  const read = (key: string, signal?: AbortSignal) =>
    cache.read(key, 50, signal, async (own) => {
      most = Math.max(most, ++underWay);
      await turn();
      underWay--;
      own.throwIfAborted();
      if (key === 'bad') throw new Error('bad');
      return column(key);
    });
  const keys = ['a', 'bad', 'c', 'd', 'e'];
  const outcomes = await Promise.allSettled(keys.map((key) => read(key)));
  assert.deepEqual(
    outcomes.map(({ status }) => status),
    ['fulfilled', 'rejected', 'fulfilled', 'fulfilled', 'fulfilled'],
  );
  assert.equal(most, 2);
  const leaving = new AbortController();
  const left = read('f', leaving.signal);
  leaving.abort(new Error('left'));
  await assert.rejects(left, /left/);
  assert.deepEqual(await read('f'), ['f']);
});
