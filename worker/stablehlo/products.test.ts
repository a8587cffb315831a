import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openCpuClient } from '../pjrt/test/client.ts';
import { forLoop } from './for-loop.ts';
import { HloBuilder } from './ops.ts';
import type { Value } from './types.ts';

test('the products of a program are told once a shape, counted through loops, and run alone', async () => {
  const hlo = new HloBuilder();
  const matrix = (...shape: number[]): Value => hlo.parameter({ shape, elementType: 'f32' });
  const [square, other, wide] = [matrix(4, 4), matrix(4, 4), matrix(4, 6)];
  const product = (into: HloBuilder, a: Value, b: Value): Value =>
    into.dotGeneral(a, b, { contractingDims: [[1], [0]] });
  product(hlo, wide, matrix(6, 2)); // nobody needs it
  const twice = product(hlo, product(hlo, square, other), other);
  const [looped] = forLoop(hlo, {
    count: 5,
    state: [twice],
    invariants: [square],
    body: (inner, { state: [x], invariants: [y] }) => {
      product(inner, y!, y!); // nor this
      return [product(inner, x!, y!)];
    },
  });
  const results = [product(hlo, looped!, wide)];
  const products = hlo.products(results);
  assert.deepEqual(
    products.map(({ count, flops, operands }) => ({
      ...{ count, flops, shapes: operands.map(({ shape }) => shape) },
    })),
    [
      {
        count: 2 + 5,
        flops: 2 * 4 * 4 * 4,
        shapes: [
          [4, 4],
          [4, 4],
        ],
      },
      {
        count: 1,
        flops: 2 * 4 * 4 * 6,
        shapes: [
          [4, 4],
          [4, 6],
        ],
      },
    ],
  );

  const client = await openCpuClient();
  try {
    const { mlir, operands } = products[1]!;
    const program = await client.compile(mlir);
    const inputs = operands.map(({ shape }) =>
      client.bufferFromHost(new Float32Array(shape[0]! * shape[1]!).fill(0.5), shape, 'f32'),
    );
    const [result] = await program.execute(inputs);
    assert.deepEqual([...((await result!.toHost()) as Float32Array)], new Array(24).fill(1));
  } finally {
    client.close();
  }
});
