import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openRng, philox4x32, shuffled } from './random.ts';

test("Philox-4x32-10 gives Random123's known answers", () => {
  // Rows of Random123's kat_vectors: counter, key, result.
  assert.deepEqual(
    philox4x32([0, 0, 0, 0], [0, 0]),
    [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
  );
  const ones = 0xffffffff;
  assert.deepEqual(
    philox4x32([ones, ones, ones, ones], [ones, ones]),
    [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  );
  assert.deepEqual(
    philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  );
});

test('a stream depends on seed, purpose and every counter, and on nothing else', () => {
  const draw = (...args: Parameters<typeof openRng>) => openRng(...args).uint32();
  assert.equal(draw(1, 'mask', 3, 4), draw(1, 'mask', 3, 4));
  const others = [
    draw(2, 'mask', 3, 4),
    draw(1, 'order', 3, 4),
    draw(1, 'mask', 4, 3),
    draw(1, 'mask', 34),
  ];
  assert.equal(new Set([draw(1, 'mask', 3, 4), ...others]).size, 5);
  const rng = openRng(1, 'mask');
  const before = rng.fork('x', 1).uint32();
  rng.uint32();
  assert.equal(rng.fork('x', 1).uint32(), before);
});

test('moments of uniform and normal draws are those of the distributions', () => {
  const rng = openRng(7, 'moments');
  const n = 20_000;
  let [sum, square, normalSum, normalSquare] = [0, 0, 0, 0];
  for (let i = 0; i < n; i++) {
    const [u, z] = [rng.uniform(), rng.normal()];
    sum += u;
    square += u * u;
    normalSum += z;
    normalSquare += z * z;
  }
  assert.ok(Math.abs(sum / n - 1 / 2) < 0.01);
  assert.ok(Math.abs(square / n - 1 / 3) < 0.01);
  assert.ok(Math.abs(normalSum / n) < 0.03);
  assert.ok(Math.abs(normalSquare / n - 1) < 0.05);
});

test('a shuffle is a permutation', () => {
  const items = Array.from({ length: 100 }, (_, i) => i);
  const mixed = shuffled(items, openRng(1, 'shuffle'));
  assert.notDeepEqual(mixed, items);
  assert.deepEqual(
    [...mixed].sort((a, b) => a - b),
    items,
  );
});
