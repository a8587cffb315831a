import assert from 'node:assert/strict';
import { after, before, describe, it, test } from 'node:test';

import * as tf from '@tensorflow/tfjs-core';

import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { ensurePlugin, pluginCacheDir } from '../pjrt/plugin.ts';
import { meshOf } from './devices.ts';
import { openEngine } from './engine.ts';
import type { Engine, EngineOptions } from './engine.ts';
import { EngineError } from './errors.ts';
import '@tensorflow/tfjs-backend-cpu';

const isEngineError = (code: string, message: RegExp) => (error: unknown) => {
  assert(error instanceof EngineError);
  assert.equal(error.code, code);
  assert.match(error.message, message);
  return true;
};

const cacheDir = await temporaryFolder('devices');
const numThreadsBefore = process.env['NPROC'];

async function open(options: Partial<EngineOptions>): Promise<Engine> {
  const pluginPath = await ensurePlugin({
    name: 'cpu',
    cacheDir: pluginCacheDir(process.env),
    pluginPath: process.env['PJRT_PLUGIN_PATH'],
  });
  return openEngine({ engine: 'xla', pluginPath, cacheDir, ...options });
}

test('one axis of a mesh may take what the others leave, and the product must be the devices', () => {
  assert.deepEqual(meshOf({ data: 'rest', tensor: 2 }, 8), { data: 4, tensor: 2 });
  assert.deepEqual(meshOf({ data: 2, tensor: 2 }, 4), { data: 2, tensor: 2 });
  assert.deepEqual(meshOf({}, 1), {});
  for (const [axes, count] of [
    [{ data: 2, tensor: 2 }, 8],
    [{ data: 'rest', tensor: 3 }, 8],
    [{ data: 'rest', tensor: 16 }, 8],
  ] as const) {
    assert.throws(() => meshOf(axes, count), isEngineError('XLA_MESH_INVALID', /8 devices/));
  }
});

test('a mesh for another number of devices, or too few threads for them, opens nothing', async () => {
  await assert.rejects(
    open({ devices: 4, mesh: { data: 3 } }),
    isEngineError('XLA_MESH_INVALID', /data 3\) does not come to 4 devices/),
  );
  await assert.rejects(
    open({ devices: 4, threads: 4 }),
    isEngineError('XLA_TOO_FEW_THREADS', /engine\.threads to 8 or more/),
  );
});

describe('an engine of four devices', () => {
  let engine: Engine;
  before(async () => {
    engine = await open({ devices: 4, mesh: { data: 2, tensor: 2 } });
  });
  after(() => {
    engine.close();
  });
  const counting = (length: number): Float32Array => Float32Array.from({ length }, (_, i) => i);

  it('gives results in parts that read as wholes, and takes them as they lie', async () => {
    const spread = (): string[][] => [['data'], ['tensor']];
    const double = engine.compile((x: tf.Tensor) => tf.mul(x, 2), {
      name: 'double',
      shardings: { arguments: [spread], results: spread },
    });
    const once = await double(engine.upload(counting(24), [4, 6]));
    const twice = await double(once);
    assert.deepEqual(
      await twice.data(),
      counting(24).map((x) => 4 * x),
    );
    assert.deepEqual(
      await once.data(),
      counting(24).map((x) => 2 * x),
    );
  });

  it('spreads a tensor again that another program takes otherwise', async () => {
    const rows = engine.compile((x: tf.Tensor) => tf.add(x, 1), {
      name: 'rows',
      shardings: { results: () => [['data', 'tensor']] },
    });
    const columns = engine.compile((x: tf.Tensor) => tf.sum(x, 0), {
      name: 'columns',
      shardings: { arguments: [() => [[], ['tensor']]], results: () => [] },
    });
    const x = await rows(engine.upload(counting(8), [4, 2]));
    assert.deepEqual([...(await (await columns(x)).data())], [16, 20]);
    assert.deepEqual([...(await x.data())], [1, 2, 3, 4, 5, 6, 7, 8], 'it is kept as it was');
  });

  it('computes single ops on tensors in parts, and captures them', async () => {
    const make = engine.compile((x: tf.Tensor) => tf.add(x, 1), {
      name: 'make',
      shardings: { results: () => [['data']] },
    });
    const held = await make(engine.upload(counting(80), [80]));
    assert.equal(tf.sum(held).dataSync()[0], (80 * 81) / 2);
    const add = engine.compile((x: tf.Tensor) => tf.add(x, held), { name: 'captures' });
    const sum = await add(engine.upload(counting(80), [80]));
    assert.deepEqual(
      await sum.data(),
      counting(80).map((x) => 2 * x + 1),
    );
  });

  it('finds extremes across a cut', async () => {
    const values = Float32Array.from({ length: 24 }, (_, i) => Math.sin(1.7 * i));
    const withNaN = values.slice();
    withNaN[5] = NaN;
    const cases: Record<string, (x: tf.Tensor) => tf.Tensor> = {
      'max over all': (x) => tf.max(x),
      'min over rows': (x) => tf.min(x, 0),
      'max of integers': (x) => tf.max(tf.cast(tf.mul(x, 10), 'int32'), 0),
      'the gradient of max': (x) => tf.grad((given: tf.Tensor) => tf.max(given))(x),
      logSumExp: (x) => tf.logSumExp(x, 0),
      'logSoftmax over a cut axis': (x) => tf.logSoftmax(tf.transpose(x)),
    };
    for (const [name, fn] of Object.entries(cases)) {
      const run = engine.compile(fn, {
        name: name.replaceAll(' ', '_'),
        shardings: { arguments: [() => [['data', 'tensor']]] },
      });
      for (const given of [values, withNaN]) {
        // NaN is no integer, and no place of an extreme.
        if (given === withNaN && /integers|gradient/.test(name)) continue;
        const found = [...(await (await run(engine.upload(given, [4, 6]))).data())];
        await tf.setBackend('cpu');
        const wanted = [...(await fn(tf.tensor(given, [4, 6])).data())];
        await tf.setBackend('xla');
        assert.equal(found.length, wanted.length, name);
        for (const [i, value] of wanted.entries()) {
          const isClose = Math.abs(found[i]! - value) < 1e-5;
          assert.ok(isClose || (Number.isNaN(value) && Number.isNaN(found[i])), `${name}[${i}]`);
        }
      }
    }
  });

  it('leaves the environment as it was', () => {
    assert.equal(process.env['NPROC'], numThreadsBefore);
  });

  it('donates parts, and needs less memory a device the more they are', async () => {
    const memory = async (axes: string[]) => {
      const step = engine.compile((x: tf.Tensor) => tf.add(tf.mul(x, 0.5), 1), {
        name: 'decay',
        donate: [0],
        shardings: { arguments: [() => [axes]], results: () => [axes] },
      });
      const x = engine.upload(new Float32Array(4096).fill(4), [4096]);
      const lowered = await step.lower(x);
      const y = await step(x);
      assert.ok(x.isDisposed);
      assert.deepEqual(await y.data(), new Float32Array(4096).fill(3));
      return lowered!.memory;
    };
    const [whole, halves, quarters] = [
      await memory([]),
      await memory(['data']),
      await memory(['data', 'tensor']),
    ];
    assert.equal(whole.argumentBytes, 4 * 4096);
    assert.equal(halves.argumentBytes, whole.argumentBytes / 2);
    assert.equal(quarters.argumentBytes, whole.argumentBytes / 4);
    assert.equal(quarters.aliasBytes, quarters.argumentBytes);
  });

  it('refuses a sharding that does not fit with the path, the shape and the axis', async () => {
    const attempt = (sharding: string[][]) =>
      engine.compile((tree: { x: tf.Tensor }) => tf.neg(tree.x), {
        name: 'negate',
        shardings: { arguments: [() => sharding] },
      })({ x: engine.upload(counting(6), [6]) });
    await assert.rejects(
      attempt([['data', 'tensor']]),
      isEngineError('XLA_SHARDING_INVALID', /argument 0\/x of negate has shape \[6\].*4 parts/),
    );
    await assert.rejects(
      attempt([['model']]),
      isEngineError('XLA_SHARDING_INVALID', /no axis model: its axes are data, tensor/),
    );
    await assert.rejects(
      attempt([[], ['data']]),
      isEngineError('XLA_SHARDING_INVALID', /more dimensions/),
    );
  });

  it('leaves no part of a tensor behind', async () => {
    const before = tf.memory().numTensors;
    const step = engine.compile((x: tf.Tensor) => tf.add(x, 1), {
      name: 'count',
      donate: [0],
      shardings: { arguments: [() => [['data']]], results: () => [['data']] },
    });
    let x = engine.upload(new Float32Array(2 ** 18), [2 ** 18]);
    const start = process.memoryUsage().rss;
    for (let i = 0; i < 300; i++) x = await step(x);
    assert.equal((await x.data())[7], 300);
    x.dispose();
    assert.equal(tf.memory().numTensors, before);
    // Leaked, they would be 600 MiB.
    assert.ok(process.memoryUsage().rss - start < 200 * 2 ** 20);
  });
});
