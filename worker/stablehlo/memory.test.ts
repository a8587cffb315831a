import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HloBuilder } from './ops.ts';
import { forLoop } from './for-loop.ts';

/** Of a [64, 64] matrix of float32. */
const MATRIX = 64 * 64 * 4;
const f32 = (...shape: number[]) => ({ shape, elementType: 'f32' }) as const;

test('elementwise operations between products take no memory of their own', () => {
  const hlo = new HloBuilder();
  const [a, b] = [hlo.parameter(f32(64, 64)), hlo.parameter(f32(64, 64))];
  const first = hlo.dotGeneral(a, b, { contractingDims: [[1], [0]] });
  const sum = hlo.add(hlo.tanh(hlo.multiply(first, first)), a);
  assert.equal(hlo.bytes([sum]), 2 * MATRIX, 'the product and the sum');
});

test('what is no longer needed makes room, what is needed later stays', () => {
  const hlo = new HloBuilder();
  const a = hlo.parameter(f32(64, 64));
  const dot = (x: typeof a) => hlo.dotGeneral(x, a, { contractingDims: [[1], [0]] });
  const chain = [a];
  for (let i = 0; i < 8; i++) chain.push(dot(hlo.tanh(chain.at(-1)!)));
  // At a time: a product and its tanh, then that and the next product.
  assert.equal(hlo.bytes([chain.at(-1)!]), 2 * MATRIX);
  const kept = chain.slice(1).reduce((sum, each) => hlo.add(sum, each));
  assert.equal(hlo.bytes([kept]), (8 + 1) * MATRIX, 'all products, and a tanh or the sum');
});

test('what a layout constraint is put on is there once', () => {
  const hlo = new HloBuilder();
  const [a, b] = [hlo.parameter(f32(64, 64)), hlo.parameter(f32(64, 64))];
  const first = hlo.dotGeneral(a, b, { contractingDims: [[1], [0]] });
  const second = hlo.dotGeneral(hlo.rowMajor(first), first, { contractingDims: [[1], [0]] });
  assert.equal(hlo.bytes([second]), 2 * MATRIX);
  // A transposition in front of it is no part of what reads it.
  const turned = hlo.rowMajor(hlo.transpose(first, [1, 0]));
  const third = hlo.dotGeneral(turned, first, { contractingDims: [[1], [0]] });
  assert.equal(hlo.bytes([third]), 3 * MATRIX);
});

test("a loop's state lies where it lay before, and its body is counted once", () => {
  const hlo = new HloBuilder();
  const a = hlo.parameter(f32(64, 64));
  const start = hlo.dotGeneral(a, a, { contractingDims: [[1], [0]] });
  const [end] = forLoop(hlo, {
    count: 24,
    state: [start],
    invariants: [a],
    body: (inner, { state: [x], invariants: [seen] }) => [
      inner.dotGeneral(x!, seen!, { contractingDims: [[1], [0]] }),
    ],
  });
  assert.ok(Math.abs(hlo.bytes([end!]) - 2 * MATRIX) < 64, 'the state and a round');
});
