import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';

import { openPjrtClient } from '../pjrt/client.ts';
import type { PjrtClient } from '../pjrt/client.ts';
import { ensurePlugin, pluginCacheDir } from '../pjrt/plugin.ts';
import { HloBuilder, highest, lowest } from './ops.ts';
import type { ElementType, Value } from './types.ts';

const type = (elementType: ElementType, ...shape: number[]) => ({ shape, elementType });
const f32 = (...shape: number[]) => type('f32', ...shape);

describe('HloBuilder', () => {
  it('prints a module that holds what the results depend on, once, with donated parameters marked', () => {
    const hlo = new HloBuilder();
    const [x, y, z] = [hlo.parameter(f32(2, 3)), hlo.parameter(f32(3)), hlo.parameter(f32(3))];
    hlo.negate(x); // no result needs it
    const wide = hlo.broadcastInDim(y, [2, 3], [1]);
    const sum = hlo.add(x, wide);
    assert.equal(hlo.add(x, hlo.broadcastInDim(y, [2, 3], [1])), sum, 'built before');
    const total = hlo.reduce(sum, hlo.constant(0, 'f32'), [1], 'add');
    const text = hlo.print('a step/1', [sum, total], [{ aliasOf: 0 }, undefined, 'donor']);
    assert.deepEqual(text.replaceAll(/%\d+/g, '%').trimEnd().split('\n'), [
      'module @a_step_1 {',
      'func.func public @main(%: tensor<2x3xf32> {tf.aliasing_output = 0 : i32}, %: tensor<3xf32>, ' +
        '%: tensor<3xf32> {jax.buffer_donor = true}) -> (tensor<2x3xf32>, tensor<2xf32>) {',
      '% = "stablehlo.broadcast_in_dim"(%) {broadcast_dimensions = array<i64: 1>} : (tensor<3xf32>) -> tensor<2x3xf32>',
      '% = "stablehlo.add"(%, %) : (tensor<2x3xf32>, tensor<2x3xf32>) -> tensor<2x3xf32>',
      '% = "stablehlo.constant"() {value = dense<0x00000000> : tensor<f32>} : () -> tensor<f32>',
      '% = "stablehlo.reduce"(%, %) (',
      '{ ^bb0(%: tensor<f32>, %: tensor<f32>):',
      '% = "stablehlo.add"(%, %) : (tensor<f32>, tensor<f32>) -> tensor<f32>',
      '"stablehlo.return"(%) : (tensor<f32>) -> ()',
      '}',
      ') {dimensions = array<i64: 1>} : (tensor<2x3xf32>, tensor<f32>) -> tensor<2xf32>',
      'return %, % : tensor<2x3xf32>, tensor<2xf32>',
      '}',
      '}',
    ]);
    assert.equal(z.elementType, 'f32');
  });

  it('takes bodies that differ in the type of an inner result alone for two', () => {
    const x = (hlo: HloBuilder): Value => hlo.parameter(f32(6));
    const bodies: Record<string, (inner: HloBuilder, x: Value, rows: number) => Value> = {
      reshape: (inner, state, rows) => inner.reshape(state, [rows, 6 / rows]),
      broadcastInDim: (inner, _, rows) =>
        inner.broadcastInDim(inner.constant(1, 'f32', []), [rows, 6 / rows], []),
      iota: (inner, _, rows) => inner.convert(inner.iota([rows, 6 / rows], 0, 'i32'), 'f32'),
      convert: (inner, state, rows) =>
        inner.reshape(
          inner.convert(inner.convert(state, rows === 2 ? 'i32' : 'ui8'), 'f32'),
          [1, 6],
        ),
      bitcastConvert: (inner, state, rows) =>
        inner.reshape(
          inner.convert(inner.bitcastConvert(state, rows === 2 ? 'i32' : 'ui32'), 'f32'),
          [1, 6],
        ),
    };
    for (const [name, body] of Object.entries(bodies)) {
      const hlo = new HloBuilder();
      const start = x(hlo);
      const condition = hlo.region([f32(6)], (inner, [state]) => [
        inner.compare(
          inner.reduce(state!, inner.constant(0, 'f32'), [0], 'add'),
          inner.constant(0, 'f32'),
          'LT',
        ),
      ]);
      const loop = (rows: number): Value =>
        hlo.while(
          [start],
          condition,
          hlo.region([f32(6)], (inner, [state]) => [
            inner.reshape(inner.transpose(body(inner, state!, rows), [1, 0]), [6]),
          ]),
        )[0]!;
      assert.equal(loop(2), loop(2), `${name}: built before`);
      assert.notEqual(loop(2), loop(3), name);
    }
  });

  it('keeps splat constants splats through broadcasts and reshapes, and prints data as bytes', () => {
    const hlo = new HloBuilder();
    const ones = hlo.constantArray(new Float32Array(1_000_000).fill(1), f32(1000, 1000));
    assert.equal(ones.splat, 1);
    assert.equal(hlo.broadcastInDim(hlo.constant(2, 'f32'), [4], []).splat, 2);
    assert.equal(hlo.reshape(ones, [1_000_000]).splat, 1);
    const zeros = hlo.constantArray(Float32Array.of(0, -0), f32(2));
    assert.equal(zeros.splat, undefined, '0 and -0 differ');
    const text = hlo.print('m', [ones, zeros]);
    assert.match(text, /dense<0x3F800000> : tensor<1000x1000xf32>/);
    assert.match(text, /dense<"0x0000000000000080"> : tensor<2xf32>/);
  });

  it('infers shapes', () => {
    const hlo = new HloBuilder();
    const x = hlo.parameter(f32(2, 5, 7));
    const shapes: [Value, number[]][] = [
      [hlo.transpose(x, [2, 0, 1]), [7, 2, 5]],
      [hlo.slice(x, [0, 1, 0], [2, 5, 7], [1, 2, 3]), [2, 2, 3]],
      [hlo.pad(x, hlo.constant(0, 'f32'), [0, 1, -1], [2, 0, 0], [1, 0, 0]), [5, 6, 6]],
      [hlo.concatenate([x, x], 1), [2, 10, 7]],
      [hlo.reduce(x, hlo.constant(0, 'f32'), [2, 0], 'add'), [5]],
      [
        hlo.dotGeneral(x, hlo.parameter(f32(2, 7, 4)), {
          batchingDims: [[0], [0]],
          contractingDims: [[2], [1]],
        }),
        [2, 5, 4],
      ],
      [
        hlo.gather(x, hlo.parameter(type('i32', 3, 4, 1)), [2, 1, 7], {
          offsetDims: [0, 3],
          collapsedSliceDims: [1],
          startIndexMap: [1],
          indexVectorDim: 2,
        }),
        [2, 3, 4, 7],
      ],
    ];
    for (const [value, shape] of shapes) assert.deepEqual([...value.shape], shape);
  });

  it('fails on operands that do not fit', () => {
    const hlo = new HloBuilder();
    const [x, y] = [hlo.parameter(f32(2)), hlo.parameter(type('i32', 2))];
    assert.throws(() => hlo.add(x, y), /add: tensor<2xf32> and tensor<2xi32>/);
    assert.throws(() => hlo.reshape(x, [3]), /as many elements/);
    assert.throws(() => hlo.slice(x, [1], [3]), /slice: 1 to 3/);
    assert.throws(() => hlo.broadcastInDim(x, [3], [0]), /broadcastInDim/);
    assert.throws(() => hlo.dotGeneral(x, x, { contractingDims: [[0], []] }), /contractingDims/);
    assert.throws(() => hlo.select(x, x, x), /predicate/);
    assert.throws(() => hlo.concatenate([x, hlo.parameter(f32(2, 2))], 0), /concatenate/);
  });

  it('counts the operations of matrix products and convolutions that are needed', () => {
    const hlo = new HloBuilder();
    const [a, b] = [hlo.parameter(f32(3, 4, 5)), hlo.parameter(f32(3, 5, 6))];
    const product = hlo.dotGeneral(a, b, {
      batchingDims: [[0], [0]],
      contractingDims: [[2], [1]],
    });
    hlo.dotGeneral(b, a, { batchingDims: [[0], [0]], contractingDims: [[1], [2]] });
    assert.equal(hlo.flops([product]), 2 * 3 * 4 * 5 * 6);
  });

  it('knows the extremes of types', () => {
    assert.deepEqual([lowest('f32'), highest('bf16')], [-Infinity, Infinity]);
    assert.deepEqual([lowest('i32'), highest('i32')], [-2147483648, 2147483647]);
    assert.deepEqual([lowest('ui8'), highest('ui8'), lowest('i1'), highest('i1')], [0, 255, 0, 1]);
  });
});

describe('operations that no kernel covers compute what the specification says', () => {
  let client: PjrtClient;
  before(async () => {
    const pluginPath = await ensurePlugin({
      name: 'cpu',
      cacheDir: pluginCacheDir(process.env),
      pluginPath: process.env['PJRT_PLUGIN_PATH'],
    });
    client = await openPjrtClient({ pluginPath });
  });
  after(() => {
    client.close();
  });

  async function run(
    build: (hlo: HloBuilder, x: Value) => readonly Value[],
    data: Float32Array,
    ...shape: number[]
  ): Promise<number[][]> {
    const hlo = new HloBuilder();
    const x = hlo.parameter(f32(...shape));
    const executable = await client.compile(hlo.print('test', build(hlo, x)));
    const input = client.bufferFromHost(data, shape, 'f32');
    const outputs = await executable.execute([input]);
    return Promise.all(
      outputs.map(async (output) => Array.from((await output.toHost()) as Float32Array, Number)),
    );
  }

  it('while', async () => {
    const [, doubled] = await run(
      (hlo, x) => {
        const state = [type('i32'), x];
        const limit = hlo.constant(5, 'i32');
        const condition = hlo.region(state, (inner, [i]) => [inner.compare(i!, limit, 'LT')]);
        const body = hlo.region(state, (inner, [i, v]) => [
          inner.add(i!, inner.constant(1, 'i32')),
          inner.add(v!, v!),
        ]);
        return hlo.while([hlo.constant(0, 'i32'), x], condition, body);
      },
      Float32Array.of(1, 3),
      2,
    );
    assert.deepEqual(doubled, [32, 96]);
  });

  it('sort of two operands by the first', async () => {
    const [keys, positions] = await run(
      (hlo, x) => {
        const position = hlo.iota([4], 0, 'i32');
        const scalars = [f32(), f32(), type('i32'), type('i32')];
        const less = hlo.region(scalars, (inner, [a, b]) => [inner.compare(a!, b!, 'LT')]);
        return hlo.sort([x, position], 0, true, less);
      },
      Float32Array.of(3, 1, 2, 1),
      4,
    );
    assert.deepEqual(keys, [1, 1, 2, 3]);
    assert.deepEqual(positions, [1, 3, 2, 0]);
  });

  it('dynamicSlice, dynamicUpdateSlice, clamp and optimizationBarrier', async () => {
    const results = await run(
      (hlo, x) => {
        const start = hlo.constant(2, 'i32');
        const part = hlo.dynamicSlice(x, [start], [2]);
        const low = hlo.constant(0.5, 'f32');
        const clamped = hlo.clamp(low, part, hlo.constant(3.5, 'f32'));
        const [kept] = hlo.optimizationBarrier([clamped]);
        return [part, hlo.dynamicUpdateSlice(x, kept!, [hlo.constant(0, 'i32')])];
      },
      Float32Array.of(1, 2, 3, 4),
      4,
    );
    assert.deepEqual(results, [
      [3, 4],
      [3, 3.5, 3, 4],
    ]);
  });

  it('convolution and reduceWindow', async () => {
    const results = await run(
      (hlo, x) => {
        const image = hlo.reshape(x, [1, 3, 3, 1]);
        const kernel = hlo.constantArray(Float32Array.of(1, 2, 3, 4), f32(2, 2, 1, 1));
        return [
          hlo.convolution(image, kernel, [1, 2, 2, 1], {
            windowStrides: [1, 1],
            padding: [
              [0, 0],
              [0, 0],
            ],
            dimensionNumbers: '[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]',
          }),
          hlo.reduceWindow(x, hlo.constant(-Infinity, 'f32'), 'maximum', {
            dimensions: [2, 2],
            strides: [1, 1],
            padding: [
              [0, 0],
              [0, 1],
            ],
          }),
        ];
      },
      Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9),
      3,
      3,
    );
    assert.deepEqual(results, [
      [1 + 4 + 12 + 20, 2 + 6 + 15 + 24, 4 + 10 + 21 + 32, 5 + 12 + 24 + 36],
      [5, 6, 6, 8, 9, 9],
    ]);
  });

  it('constants of every type, through conversion', async () => {
    const results = await run(
      (hlo) => [
        hlo.convert(hlo.constant(1.00390625, 'bf16', [1]), 'f32'), // half way: to even
        hlo.convert(hlo.constant(-0.1, 'f16', [1]), 'f32'),
        hlo.convert(hlo.constant(1 / 3, 'f64', [1]), 'f32'),
        hlo.convert(hlo.constantArray(BigInt64Array.of(7n, -8n), type('i64', 2)), 'f32'),
        hlo.convert(hlo.constantArray(Uint8Array.of(1, 0, 1), type('i1', 3)), 'f32'),
        hlo.bitcastConvert(hlo.constant(1, 'f32', [1]), 'i32'),
        hlo.convert(hlo.isFinite(hlo.constant(NaN, 'f32', [1])), 'f32'),
      ],
      Float32Array.of(0),
      1,
    );
    assert.deepEqual(results, [
      [1],
      [-0.0999755859375],
      [Math.fround(1 / 3)],
      [7, -8],
      [1, 0, 1],
      [0x3f800000],
      [0],
    ]);
  });
});
