import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import type { TensorData } from './format.ts';
import { weightsSha256 } from './hash.ts';

const tensor = (shape: number[], bytes: number[]): TensorData => ({
  dtype: 'U8',
  shape,
  data: Uint8Array.from(bytes),
});

test('the hash is that of coreutils over names, types, shapes and bytes in order of name', () => {
  const weights = new Map([
    ['b', tensor([2, 1], [3, 4])],
    ['a/kernel', tensor([2], [1, 2])],
  ]);
  const input = Buffer.concat([
    Buffer.from('"a/kernel" U8 2\n'),
    Buffer.from([1, 2]),
    Buffer.from('"b" U8 2,1\n'),
    Buffer.from([3, 4]),
  ]);
  const expected = execFileSync('sha256sum', { input, encoding: 'utf8' }).slice(0, 64);
  assert.equal(weightsSha256(weights), expected);
});

test('one bit, another shape, type or name gives another hash; another order of insertion does not', () => {
  const of = (...entries: [string, TensorData][]): string => weightsSha256(new Map(entries));
  const base = of(['a', tensor([2], [1, 2])], ['b', tensor([1], [3])]);
  assert.equal(of(['b', tensor([1], [3])], ['a', tensor([2], [1, 2])]), base);
  const others = [
    of(['a', tensor([2], [1, 3])], ['b', tensor([1], [3])]),
    of(['a', tensor([1, 2], [1, 2])], ['b', tensor([1], [3])]),
    of(['a', { ...tensor([2], [1, 2]), dtype: 'BOOL' }], ['b', tensor([1], [3])]),
    of(['a', tensor([2], [1, 2])], ['c', tensor([1], [3])]),
  ];
  assert.equal(new Set([base, ...others]).size, 5);
});
