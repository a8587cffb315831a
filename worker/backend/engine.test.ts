import assert from 'node:assert/strict';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';

import * as tf from '@tensorflow/tfjs-core';

import { openRng } from '../../proto/random.ts';
import { openInitializer } from '../initializer.ts';
import { dense, initDense } from '../layers/dense.ts';
import { initBlock, transformerBlock } from '../layers/transformer-block.ts';
import type { BlockParams } from '../layers/transformer-block.ts';
import type { DenseParams } from '../layers/dense.ts';
import { adamW, adamWScalars } from '../optim/adamw.ts';
import type { AdamWState } from '../optim/adamw.ts';
import { leavesOf, mapTree, withLeaves } from '../tree.ts';
import type { TensorTree } from '../tree.ts';
import type { Engine } from './engine.ts';
import { openTestEngines, openTestXla } from './test/engines.ts';
import type { TestEngines } from './test/engines.ts';

let engines: TestEngines;
before(async () => {
  engines = await openTestEngines({ emptyCache: true });
});
after(() => {
  engines.close();
});

const vector = (engine: Engine, ...values: number[]): tf.Tensor =>
  engine.upload(Float32Array.from(values), [values.length]);

async function rejectsWith(
  promise: Promise<unknown>,
  code: string,
  message: RegExp,
): Promise<void> {
  await assert.rejects(promise, (error: Error & { code: string }) => {
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  });
}

type Params = {
  readonly embedding: tf.Tensor;
  readonly blocks: readonly BlockParams[];
  readonly head: DenseParams;
};
type State = { readonly params: Params; readonly optimizer: AdamWState<Params> };
type Batch = { readonly ids: tf.Tensor; readonly labels: tf.Tensor; readonly bias: tf.Tensor };

const SIZES = { batch: 2, length: 6, width: 16, vocabulary: 11, numHeads: 4 };

/** A two-layer encoder's training step: embedding, blocks, logits, cross entropy, backward, AdamW. */
function trainStep(
  state: State,
  batch: Batch,
  scalars: tf.Tensor,
): { state: State; loss: tf.Tensor } {
  const lossOf = (params: Params): tf.Scalar => {
    const rows = tf.gather(params.embedding, tf.reshape(batch.ids, [-1]));
    let x: tf.Tensor = tf.reshape(rows, [SIZES.batch, SIZES.length, SIZES.width]);
    for (const block of params.blocks) {
      x = transformerBlock(block, x, { numHeads: SIZES.numHeads, bias: batch.bias });
    }
    const labels = tf.oneHot(batch.labels, SIZES.vocabulary);
    return tf.neg(tf.mean(tf.sum(tf.mul(tf.logSoftmax(dense(params.head, x)), labels), -1)));
  };
  const leaves = leavesOf(state.params).map(([, tensor]) => tensor);
  const { value, grads } = tf.valueAndGrads((...given: tf.Tensor[]) =>
    lossOf(withLeaves(state.params, given)),
  )(leaves);
  const { params, state: optimizer } = adamW(
    { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01 },
    {
      params: state.params,
      state: state.optimizer,
      gradient: tf.concat(grads.map((grad) => tf.reshape(grad, [-1]))),
      scalars,
      decays: (name) => name.endsWith('kernel'),
    },
  );
  return { state: { params, optimizer }, loss: value };
}

function initState(engine: Engine): State {
  const { width, vocabulary } = SIZES;
  const init = openInitializer(3);
  const onCpu: Params = {
    embedding: init.normal('embedding', [vocabulary, width], 1),
    blocks: [0, 1].map((i) => initBlock(init, `blocks/${i}`, width, 4)),
    head: initDense(init, 'head', width, vocabulary),
  };
  const params = mapTree(onCpu, (tensor) =>
    engine.upload(tensor.dataSync<'float32'>(), tensor.shape),
  );
  const zeros = () =>
    mapTree(params, ({ shape, size }) => engine.upload(new Float32Array(size), shape));
  const state = { params, optimizer: { first: zeros(), second: zeros() } };
  for (const [, tensor] of leavesOf(onCpu)) tensor.dispose();
  return state;
}

function makeBatch(engine: Engine, step: number): Batch {
  const rng = openRng(5, 'batch', step);
  const { batch, length, vocabulary } = SIZES;
  const ids = () =>
    engine.upload(
      Int32Array.from({ length: batch * length }, () => rng.integer(vocabulary)),
      [batch, length],
    );
  const bias = Float32Array.from({ length: batch * length }, (_, i) =>
    i % length === 5 ? -1e9 : 0,
  );
  return { ids: ids(), labels: ids(), bias: engine.upload(bias, [batch, 1, 1, length]) };
}

/** Losses of some steps, and the final state's values by path. */
async function train(engine: Engine, numSteps: number) {
  // Initial values are made with the plain backend, so that both engines start from the same.
  await tf.setBackend('cpu');
  let state = initState(engine);
  const step = engine.compile(trainStep, { name: 'train', donate: [0] });
  const losses: number[] = [];
  for (let i = 1; i <= numSteps; i++) {
    const batch = makeBatch(engine, i);
    const scalars = engine.upload(
      adamWScalars(
        { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01 },
        { step: i, learningRate: 1e-2, gradientScale: 1 },
      ),
      [4],
    );
    const result = await step(state, batch, scalars);
    state = result.state;
    losses.push((await result.loss.data())[0]!);
    tf.dispose([batch, scalars, result.loss]);
  }
  const values = new Map<string, Float32Array>();
  for (const [name, tensor] of leavesOf(state))
    values.set(name, (await tensor.data()) as Float32Array);
  tf.dispose(state as unknown as tf.TensorContainer);
  return { losses, values };
}

describe('a compiled training step', () => {
  it('of a two-layer transformer gives the losses and weights of the cpu engine', async () => {
    const [xla, cpu] = [await train(engines.xla, 4), await train(engines.cpu, 4)];
    for (const [i, loss] of xla.losses.entries()) {
      assert(Math.abs(loss - cpu.losses[i]!) < 1e-5, `loss ${i}: ${loss} and ${cpu.losses[i]}`);
    }
    assert(xla.losses[3]! !== xla.losses[0]!);
    for (const [name, values] of xla.values) {
      const expected = cpu.values.get(name)!;
      const seconds = cpu.values.get(name.replace('params', 'optimizer/second'))!;
      for (const [i, value] of values.entries()) {
        // Adam scales a gradient to size one even if it is all rounding, as a key bias' is, which softmax ignores.
        if (name.startsWith('params') && seconds[i]! < 1e-12) continue;
        // float32
        assert(Math.abs(value - expected[i]!) < 2e-5, `${name}[${i}]: ${value} and ${expected[i]}`);
      }
    }
  });

  it('gives the same bits on every run', async () => {
    const [first, second] = [await train(engines.xla, 3), await train(engines.xla, 3)];
    assert.deepEqual(second, first);
  });

  it('keeps the number of tensors constant, and frees what was donated', async () => {
    const { xla } = engines;
    await tf.setBackend('cpu');
    let state = initState(xla);
    const step = xla.compile(trainStep, { name: 'train', donate: [0] });
    const counts: number[] = [];
    for (let i = 1; i <= 3; i++) {
      const before = leavesOf(state).map(([, tensor]) => tensor);
      const batch = makeBatch(xla, i);
      const scalars = vector(xla, 0.01, 1, 1, 1);
      const result = await step(state, batch, scalars);
      assert(before.every((tensor) => tensor.isDisposed));
      state = result.state;
      tf.dispose([batch, scalars, result.loss]);
      counts.push(tf.memory().numTensors, tf.memory().numDataBuffers);
    }
    assert.deepEqual(counts.slice(2, 4), counts.slice(0, 2));
    assert.deepEqual(counts.slice(4), counts.slice(0, 2));
    tf.dispose(state as unknown as tf.TensorContainer);
  });
});

describe('a compiled function', () => {
  it('is traced once per signature and again for another', async () => {
    const { xla } = engines;
    let numTraces = 0;
    const double = xla.compile(
      (x: tf.Tensor) => {
        numTraces++;
        return tf.mul(x, tf.scalar(2, x.dtype));
      },
      { name: 'double' },
    );
    assert.deepEqual([...(await (await double(vector(xla, 1, 2))).data())], [2, 4]);
    assert.deepEqual([...(await (await double(vector(xla, 3, 4))).data())], [6, 8]);
    assert.equal(numTraces, 1);
    assert.deepEqual([...(await (await double(vector(xla, 5))).data())], [10]);
    assert.equal(numTraces, 2);
    const integers = await double(xla.upload(Int32Array.of(3, 4), [2]));
    assert.equal(integers.dtype, 'int32');
    assert.deepEqual([...(await integers.data())], [6, 8]);
    assert.equal(numTraces, 3);
  });

  it('tells trees of other forms with equal paths apart', async () => {
    const { xla } = engines;
    const x = vector(xla, 1);
    const check = async (name: string, first: TensorTree, second: TensorTree): Promise<void> => {
      let numTraces = 0;
      const run = xla.compile(
        (tree: TensorTree) => {
          numTraces++;
          return tf.mul(leavesOf(tree)[0]![1], numTraces);
        },
        { name: 'forms' },
      );
      const values: number[] = [];
      for (const tree of [first, second, first]) values.push((await (await run(tree)).data())[0]!);
      assert.deepEqual(values, [1, 2, 1], name);
    };
    await check('a slash in a key', { 'a/b': x }, { a: { b: x } });
    await check('a list', [x], { '0': x });
    await check('an empty list', { x, flag: [] }, { x });
  });

  it('is traced again when a variable that it captured holds another value', async () => {
    const { xla } = engines;
    const variable = tf.variable(tf.fill([100], 1));
    let numTraces = 0;
    const run = xla.compile(
      (x: tf.Tensor) => {
        numTraces++;
        return tf.sum(tf.mul(x, variable));
      },
      { name: 'variable' },
    );
    const x = xla.upload(new Float32Array(100).fill(1), [100]);
    const read = async (): Promise<number> => (await (await run(x)).data())[0]!;
    assert.deepEqual([await read(), await read(), numTraces], [100, 100, 1]);
    variable.assign(tf.fill([100], 2));
    assert.deepEqual([await read(), await read(), numTraces], [200, 200, 2]);
    variable.dispose();
  });

  it('gives the gradient of a gather to what was read, also for an index out of range', async () => {
    const { xla } = engines;
    const run = xla.compile(
      (x: tf.Tensor, rows: tf.Tensor, dy: tf.Tensor) => ({
        read: tf.gather(x, rows as tf.Tensor2D, 1, 1),
        gradient: tf.grad((given: tf.Tensor) => tf.gather(given, rows, 1, 1))(x, dy),
      }),
      { name: 'gather' },
    );
    const x = xla.upload(Float32Array.of(1, 2, 3, 4, 5, 6), [2, 3]);
    const rows = xla.upload(Int32Array.of(3, -1), [2, 1]);
    const { read, gradient } = await run(x, rows, xla.upload(Float32Array.of(10, 20), [2, 1]));
    assert.deepEqual([...(await read.data())], [3, 4]);
    assert.deepEqual([...(await gradient.data())], [0, 0, 10, 20, 0, 0]);
  });

  it('takes and gives trees, and gives new tensors where it hands an argument through', async () => {
    for (const engine of [engines.xla, engines.cpu]) {
      const swap = engine.compile(
        ({ a, b }: { a: tf.Tensor; b: readonly [tf.Tensor, tf.Tensor] }) => ({
          first: b[1],
          rest: [a, tf.add(b[0], 1)],
        }),
        { name: 'swap', donate: [0] },
      );
      const [a, b, c] = [vector(engine, 1), vector(engine, 2), vector(engine, 3)];
      const result = await swap({ a, b: [b, c] });
      const values = await Promise.all(leavesOf(result).map(([, tensor]) => tensor.data()));
      assert.deepEqual(
        values.map(([value]) => value),
        [3, 1, 3],
      );
      assert(
        [a, b, c].every((tensor) => tensor.isDisposed),
        engine.name,
      );
      tf.dispose(result);
    }
  });

  it('says which op was read while it is compiled, and what to do', async () => {
    const { xla } = engines;
    const x = vector(xla, 1, 2);
    const reads = xla.compile((t: tf.Tensor) => tf.scalar(tf.sum(t).dataSync()[0]!), {
      name: 'peek',
    });
    await rejectsWith(
      reads(x),
      'XLA_READ_IN_TRACE',
      /Sum .* while peek was being compiled.*tf\.where/,
    );
    const readsArgument = xla.compile((t: tf.Tensor) => tf.scalar(t.dataSync()[0]!), {
      name: 'peek',
    });
    await rejectsWith(readsArgument(x), 'XLA_READ_IN_TRACE', /an argument/);
    // The engine is usable after that.
    const sum = xla.compile((t: tf.Tensor) => tf.sum(t), { name: 'sum' });
    assert.equal((await (await sum(x)).data())[0], 3);
  });

  it('refuses disposed arguments, double donation, leaked tensors and calls inside a trace', async () => {
    const { xla } = engines;
    const add = xla.compile((a: tf.Tensor, b: tf.Tensor) => tf.add(a, b), {
      name: 'add',
      donate: [0],
    });
    const [x, y] = [vector(xla, 1), vector(xla, 2)];
    await rejectsWith(add(x, x), 'XLA_DONATED_TWICE', /Argument 0 of add/);
    await add(x, y);
    await rejectsWith(add(x, y), 'XLA_TENSOR_DISPOSED', /Argument 0 of add/);

    const nested = xla.compile(
      (t: tf.Tensor) => {
        void add(t, t).catch((error: unknown) => errors.push(error));
        return t;
      },
      { name: 'outer' },
    );
    const errors: unknown[] = [];
    await nested(y);
    assert.equal((errors[0] as { code?: string }).code, 'XLA_CALL_IN_TRACE');

    let leaked: tf.Tensor | undefined;
    const leaks = xla.compile((t: tf.Tensor) => ((leaked = tf.keep(tf.neg(t))), t), {
      name: 'leaks',
    });
    await leaks(y);
    const uses = xla.compile((t: tf.Tensor) => tf.add(t, leaked!), { name: 'uses' });
    await rejectsWith(uses(y), 'XLA_TENSOR_LEAKED', /uses uses a result of Neg .* trace of leaks/);
    leaked!.dispose();
  });

  it('keeps a donated buffer that another tensor still holds', async () => {
    const { xla } = engines;
    await tf.setBackend('xla');
    const negate = xla.compile((t: tf.Tensor) => tf.neg(t), { name: 'negate', donate: [0] });
    const x = vector(xla, 1, 2);
    const copy = tf.clone(x);
    const y = await negate(x);
    assert.deepEqual([...(await y.data()), ...(await copy.data())], [-1, -2, 1, 2]);
    assert(x.isDisposed && !copy.isDisposed);
  });

  it('finishes with its arguments even if they are disposed during the call', async () => {
    const { xla } = engines;
    const negate = xla.compile((t: tf.Tensor) => tf.neg(t), { name: 'negate' });
    const x = vector(xla, 1, 2);
    const call = negate(x);
    x.dispose();
    assert.deepEqual([...(await (await call).data())], [-1, -2]);
  });

  it('uses tensors of its surroundings and large host constants as hidden arguments', async () => {
    const { xla } = engines;
    const table = vector(xla, ...Array.from({ length: 100 }, (_, i) => i));
    const large = Float32Array.from({ length: 100 }, (_, i) => i / 7);
    const add = xla.compile((t: tf.Tensor) => tf.add(tf.add(t, table), tf.tensor1d(large)), {
      name: 'add',
    });
    const x = vector(xla, 1);
    const { mlir } = (await add.lower(x))!;
    assert.equal(mlir.match(/%\d+: tensor<100xf32>/g)?.length, 2, 'two hidden arguments');
    assert(mlir.length < 1000, 'no printed data');
    table.dispose();
    const expected = Array.from(large, (value, i) => Math.fround(Math.fround(1 + i) + value));
    assert.deepEqual([...(await (await add(x)).data())], expected);
  });

  it('leaves the event loop free while the program runs', async () => {
    const { xla } = engines;
    const size = 768;
    const x = xla.upload(new Float32Array(size * size).fill(1e-3), [size, size]);
    const power = xla.compile(
      (t: tf.Tensor) => {
        let y = t as tf.Tensor2D;
        for (let i = 0; i < 40; i++) y = tf.matMul(y, t);
        return y;
      },
      { name: 'power' },
    );
    (await power(x)).dispose();
    let numTurns = 0;
    let isRunning = true;
    const turn = (): void => {
      numTurns++;
      if (isRunning) setImmediate(turn);
    };
    setImmediate(turn);
    (await power(x)).dispose();
    isRunning = false;
    assert(numTurns > 10, `the event loop turned ${numTurns} times during the call`);
  });

  it('gives its program, the operations it counts and the memory it takes', async () => {
    const { xla } = engines;
    const x = xla.upload(new Float32Array(64 * 64), [64, 64]);
    const product = xla.compile((t: tf.Tensor) => tf.matMul(t as tf.Tensor2D, t as tf.Tensor2D), {
      name: 'p',
    });
    const lowered = (await product.lower(x))!;
    assert.match(lowered.mlir, /stablehlo\.dot_general/);
    assert.equal(lowered.flops, 2 * 64 ** 3);
    assert.equal(lowered.memory.outputBytes, 64 * 64 * 4);
  });

  it('aliases donated arguments to results of their type, in the program and in memory', async () => {
    const { xla } = engines;
    const update = xla.compile((a: tf.Tensor, b: tf.Tensor) => [tf.sum(b), tf.add(a, b)], {
      name: 'update',
      donate: [0, 1],
    });
    const [a, b] = [vector(xla, 1, 2), vector(xla, 3, 4)];
    const lowered = (await update.lower(a, b))!;
    assert.match(lowered.mlir, /%0: tensor<2xf32> \{tf\.aliasing_output = 1 : i32\}/);
    assert.match(lowered.mlir, /%1: tensor<2xf32> \{jax\.buffer_donor = true\}/);
    assert(lowered.memory.aliasBytes >= 8);
    const [total, sum] = await update(a, b);
    assert.deepEqual([...(await total!.data()), ...(await sum!.data())], [7, 4, 6]);
  });
});

describe('tensors of the engine', () => {
  it('are read at once or asynchronously', async () => {
    const x = vector(engines.xla, 1, 2);
    assert.deepEqual([...x.dataSync()], [1, 2]);
    assert.deepEqual([...(await x.data())], [1, 2]);
  });

  it('hold what upload was given in every dtype', async () => {
    for (const engine of [engines.xla, engines.cpu]) {
      const data = Float32Array.of(0.5, -1);
      const floats = engine.upload(data, [2, 1]);
      data[0] = 9;
      const integers = engine.upload(Int32Array.of(7, -8), [2]);
      const booleans = engine.upload(Uint8Array.of(1, 0, 1), [3]);
      const values = await Promise.all([floats.data(), integers.data(), booleans.data()]);
      assert.deepEqual(
        values.map((v) => [...v]),
        [
          [0.5, -1],
          [7, -8],
          [1, 0, 1],
        ],
      );
      assert.deepEqual(
        [floats.dtype, integers.dtype, booleans.dtype],
        ['float32', 'int32', 'bool'],
      );
      assert.deepEqual(floats.shape, [2, 1]);
    }
  });
});

describe('the program cache', () => {
  it('loads in a new engine what an earlier one compiled, and compiles again where the entry is damaged', async () => {
    const folder = path.join(engines.cacheDir, 'programs');
    const run = async (engine: Engine): Promise<number> => {
      const cubeSum = engine.compile((t: tf.Tensor) => tf.sum(tf.mul(tf.square(t), t)), {
        name: 'cubes',
      });
      return (await (await cubeSum(vector(engine, 1, 2, 3))).data())[0]!;
    };
    const old = new Set(await readdir(folder));
    assert.equal(await run(engines.xla), 36);
    const [entry] = (await readdir(folder)).filter((name) => !old.has(name));
    const file = path.join(folder, entry!);
    const bytes = await readFile(file);

    engines.xla.close();
    const second = await openTestXla(engines.cacheDir);
    assert.equal(await run(second), 36);
    assert.deepEqual(await readFile(file), bytes, 'a hit leaves the entry as it is');
    second.close();

    await writeFile(file, bytes.subarray(0, bytes.length - 100));
    const third = await openTestXla(engines.cacheDir);
    assert.equal(await run(third), 36);
    assert.equal((await readFile(file)).length, bytes.length, 'the entry is whole again');
    third.close();
  });

  it('compiles again where XLA_FLAGS differ, which the plugin reads from the environment', async () => {
    const folder = path.join(engines.cacheDir, 'programs');
    const numEntries = async (): Promise<number> =>
      (await readdir(folder)).filter((name) => name.endsWith('.pjrt')).length;
    const before = process.env['XLA_FLAGS'];
    const run = async (flags: string): Promise<number> => {
      process.env['XLA_FLAGS'] = flags;
      const engine = await openTestXla(engines.cacheDir);
      const fifth = engine.compile((t: tf.Tensor) => tf.div(t, 5), { name: 'fifth' });
      (await fifth(vector(engine, 1, 2, 3))).dispose();
      engine.close();
      return numEntries();
    };
    try {
      const first = await run('');
      const other = await run('--xla_cpu_enable_fast_math=false');
      assert.equal(other, first + 1);
      assert.equal(await run('--xla_cpu_enable_fast_math=false'), other);
      assert.equal(await run(''), other);
    } finally {
      if (before === undefined) delete process.env['XLA_FLAGS'];
      else process.env['XLA_FLAGS'] = before;
    }
  });
});
