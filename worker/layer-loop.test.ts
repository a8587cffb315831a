import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';

import * as tf from '@tensorflow/tfjs-core';

import { openTestEngines } from './backend/test/engines.ts';
import type { TestEngines } from './backend/test/engines.ts';
import { openInitializer } from './initializer.ts';
import { LEAST_LOOPED_LAYERS, rematerialized, repeatLayers, scanLayers } from './layer-loop.ts';
import { initBlock, transformerBlock } from './layers/transformer-block.ts';
import type { BlockParams } from './layers/transformer-block.ts';
import { leavesOf, withLeaves } from './tree.ts';
import type { Stacked } from './tree.ts';

const [BATCH, LENGTH, WIDTH, HEADS] = [2, 5, 8, 2];

type Input = {
  readonly blocks: Stacked<BlockParams>;
  readonly x: tf.Tensor; // [B, L, D]
  readonly bias: tf.Tensor; // [B, 1, 1, L]
  readonly weights: tf.Tensor; // [B, L, D]
};
type Stack = (input: Input) => tf.Tensor;

const oneByOne: Stack = ({ blocks: { '*': stacked }, x, bias }) => {
  const rows = leavesOf(stacked).map(([, tensor]) => tf.unstack(tensor));
  return rows[0]!.reduce((state, _, i) => {
    const block = withLeaves(
      stacked,
      rows.map((row) => row[i]!),
    );
    return transformerBlock(block, state, { numHeads: HEADS, bias });
  }, x);
};

const looped =
  (remat: boolean): Stack =>
  ({ blocks, x, bias }) =>
    repeatLayers(
      blocks,
      x,
      (block, state, [seen]) => transformerBlock(block, state, { numHeads: HEADS, bias: seen! }),
      { shared: [bias], remat },
    );

/** Loss and its gradients with respect to everything that goes in. */
function differentiate(stack: Stack) {
  return (input: Input) => {
    const leaves = leavesOf(input).map(([, tensor]) => tensor);
    const loss = (...given: tf.Tensor[]): tf.Scalar => {
      const own = withLeaves(input, given);
      return tf.sum(tf.mul(stack(own), own.weights));
    };
    const { value, grads } = tf.valueAndGrads(loss)(leaves);
    return { value, grads };
  };
}

describe('layers in a loop', () => {
  let engines: TestEngines;
  before(async () => {
    engines = await openTestEngines();
  });
  after(() => {
    engines.close();
  });

  const init = openInitializer(11);
  const makeInput = (numLayers: number): Input => ({
    blocks: { '*': initBlock(init.layers(numLayers), 'blocks/*', WIDTH, 4) },
    x: init.normal('x', [BATCH, LENGTH, WIDTH], 1),
    bias: init.normal('bias', [BATCH, 1, 1, LENGTH], 1),
    weights: init.normal('weights', [BATCH, LENGTH, WIDTH], 1),
  });

  const cases: [name: string, stack: Stack, numLayers: number][] = [
    ['a loop', looped(false), LEAST_LOOPED_LAYERS],
    ['a loop that recomputes', looped(true), LEAST_LOOPED_LAYERS + 1],
    ['few layers, built one after another', looped(false), 2],
    ['few layers that recompute', looped(true), 2],
  ];
  for (const [name, stack, numLayers] of cases) {
    it(`has the value and the gradients of plain layers on the cpu engine: ${name}`, async () => {
      const input = makeInput(numLayers);
      const expected = await engines.cpu.compile(differentiate(oneByOne), { name: 'plain' })(input);
      const got = await engines.xla.compile(differentiate(stack), { name: 'looped' })(input);
      const [names] = [['value', ...leavesOf(input).map(([path]) => path)]];
      const [wanted, found] = [expected, got].map(({ value, grads }) => [value, ...grads]);
      for (const [k, tensor] of wanted!.entries()) {
        const [a, b] = await Promise.all([tensor.data(), found![k]!.data()]);
        const scale = Math.max(...a.map(Math.abs), 1e-3);
        const worst = Math.max(...a.map((v, i) => Math.abs(v - b[i]!)));
        // float32 through six blocks
        assert.ok(worst <= 2e-4 * scale, `${names[k]}: off by ${worst} of ${scale}`);
      }
    });
  }

  it('gives a program that does not grow with the number of layers', async () => {
    const textOf = async (numLayers: number): Promise<string> => {
      const step = engines.xla.compile(differentiate(looped(false)), { name: 'looped' });
      return (await step.lower(makeInput(numLayers)))!.mlir;
    };
    const count = (text: string): number => text.split('stablehlo.dot_general').length;
    assert.equal(count(await textOf(24)), count(await textOf(6)));
  });

  it('keeps nothing twice for a backward pass whose products are handed their operands transposed', async () => {
    const [batch, length, numLayers] = [4, 64, 6];
    const input = {
      blocks: { '*': initBlock(init.layers(numLayers), 'blocks/*', WIDTH, 4) },
      x: init.normal('x', [batch, length, WIDTH], 1),
      bias: init.normal('bias', [batch, 1, 1, length], 1),
      weights: init.normal('weights', [batch, length, WIDTH], 1),
    };
    const step = engines.xla.compile(differentiate(looped(false)), { name: 'looped' });
    const { mlir } = (await step.lower(input))!;
    assert.match(mlir, /LayoutConstraint/);
    for (const width of [WIDTH, 3 * WIDTH, 4 * WIDTH])
      assert.doesNotMatch(mlir, new RegExp(`tensor<${numLayers}x${width}x${batch * length}x`));
  });

  it('counts the operations of every round', async () => {
    const flopsOf = async (stack: Stack): Promise<number> =>
      (await engines.xla.compile(stack, { name: 'forward' }).lower(makeInput(6)))!.flops;
    assert.equal(await flopsOf(looped(false)), await flopsOf(oneByOne));
  });

  it('refuses a layer that reads a traced tensor behind its back', async () => {
    const input = makeInput(LEAST_LOOPED_LAYERS);
    const stack: Stack = ({ blocks, x, bias }) =>
      repeatLayers(blocks, x, (block, state) =>
        transformerBlock(block, state, { numHeads: HEADS, bias }),
      );
    await assert.rejects(engines.xla.compile(stack, { name: 'captures' })(input), {
      code: 'XLA_LAYER_CAPTURE',
    });
  });

  it('tells loops over the same tensors apart that differ in the shape of an inner reshape alone', async () => {
    const stacks = (x: tf.Tensor, own: tf.Tensor) =>
      [2, 3].map((rows) =>
        repeatLayers({ '*': { own } }, x, (params, y) => {
          const turned = tf.transpose(tf.reshape(y, [rows, 24 / rows]));
          return tf.add(tf.reshape(turned, [24]), params.own);
        }),
      );
    const x = init.normal('x', [24], 1);
    const own = init.normal('own', [LEAST_LOOPED_LAYERS, 24], 1);
    const wanted = await engines.cpu.compile(stacks, { name: 'plain' })(x, own);
    const found = await engines.xla.compile(stacks, { name: 'looped' })(x, own);
    for (const [k, tensor] of wanted.entries()) {
      const [a, b] = await Promise.all([tensor.data(), found[k]!.data()]);
      const worst = Math.max(...a.map((v, i) => Math.abs(v - b[i]!)));
      assert.ok(worst <= 1e-5, `${[2, 3][k]} rows: off by ${worst}`);
    }
  });

  it('hands out what each layer made, stacked, as plain layers make it one after another', async () => {
    const input = makeInput(LEAST_LOOPED_LAYERS + 1);
    const scales = init.normal('scales', [WIDTH], 1); // not an argument, and too long for the program's text
    const scan = ({ blocks, x, bias }: Input) =>
      scanLayers(
        blocks,
        x,
        (block, state, [seen]) => {
          const output = transformerBlock(block, state, { numHeads: HEADS, bias: seen! });
          return { output, made: { scaled: tf.mul(output, scales), sums: tf.sum(output, -1) } };
        },
        { shared: [bias] },
      );
    const expected = await engines.cpu.compile(scan, { name: 'plain' })(input);
    const looped = engines.xla.compile(scan, { name: 'scanned' });
    const got = await looped(input);
    assert.deepEqual(got.made.sums.shape, [LEAST_LOOPED_LAYERS + 1, BATCH, LENGTH]);
    for (const [k, [path, tensor]] of leavesOf(expected).entries()) {
      const [a, b] = await Promise.all([tensor.data(), leavesOf(got)[k]![1].data()]);
      const worst = Math.max(...a.map((v, i) => Math.abs(v - b[i]!)));
      assert.ok(worst <= 1e-4, `${path}: off by ${worst}`);
    }
    const { mlir } = (await looped.lower(input))!;
    assert.match(mlir, /stablehlo\.while/);
  });

  it('refuses a gradient through a scan, which would miss a part', async () => {
    const own = init.normal('own', [LEAST_LOOPED_LAYERS, 4], 1);
    const loss = (w: tf.Tensor): tf.Tensor => {
      const { output } = scanLayers({ '*': { w } }, tf.ones([4]), (params, y) => ({
        output: tf.mul(y, params.w),
        made: {},
      }));
      return tf.add(tf.sum(output), tf.sum(w));
    };
    const gradient = engines.xla.compile((w: tf.Tensor) => tf.grad(loss)(w), { name: 'scanned' });
    await assert.rejects(gradient(own), { code: 'SCAN_HAS_NO_GRADIENT' });
    const value = engines.xla.compile(loss, { name: 'forward' });
    assert.ok(Number.isFinite((await (await value(own)).data())[0]));
  });

  it('keeps less memory where it recomputes', async () => {
    const size = { x: [8, 64, 32], bias: [8, 1, 1, 64], weights: [8, 64, 32] };
    const input: Input = {
      blocks: { '*': initBlock(init.layers(8), 'wide/*', 32, 4) },
      x: init.normal('x', size.x, 1),
      bias: init.normal('bias', size.bias, 1),
      weights: init.normal('weights', size.weights, 1),
    };
    const tempOf = async (stack: Stack): Promise<number> =>
      (await engines.xla.compile(differentiate(stack), { name: 'memory' }).lower(input))!.memory
        .tempBytes;
    const [plain, loop, remat] = [
      await tempOf(oneByOne),
      await tempOf(looped(false)),
      await tempOf(looped(true)),
    ];
    console.log(`temporary memory: plain ${plain}, loop ${loop}, recomputing loop ${remat} bytes`);
    assert.ok(loop < plain && remat < loop / 2);
  });

  it('recomputes a function with several inputs, some of them integers', async () => {
    const table = init.normal('table', [6, 4], 1);
    const rows = tf.tensor1d([5, 0, 5, 2], 'int32');
    const embed = (ids: tf.Tensor, rowsOf: tf.Tensor): tf.Tensor =>
      tf.sum(tf.square(tf.tanh(tf.gather(rowsOf, tf.cast(ids, 'int32')))));
    const gradient = (fn: (ids: tf.Tensor, table: tf.Tensor) => tf.Tensor) => (x: tf.Tensor) =>
      tf.grad((given: tf.Tensor) => fn(rows, given))(x);
    const plain = await engines.cpu.compile(gradient(embed), { name: 'plain' })(table);
    const again = await engines.xla.compile(
      gradient((ids, given) => rematerialized(([a, b]) => embed(a!, b!), [ids, given])),
      { name: 'again' },
    )(table);
    const [a, b] = [await plain.data(), await again.data()];
    for (const [i, value] of a.entries()) assert.ok(Math.abs(value - b[i]!) < 1e-5);
  });
});
