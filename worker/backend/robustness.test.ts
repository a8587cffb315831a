import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';

import * as tf from '@tensorflow/tfjs-core';

import { withTrainingMemory } from '../../proto/memory-environment.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { cpuPlugin } from '../pjrt/test/client.ts';
import { BACKEND_NAME, XlaBackend } from './backend.ts';
import { openEngine } from './engine.ts';
import type { Engine } from './engine.ts';

const MEBIBYTE = 2 ** 20;

let engine: Engine;
before(async () => {
  const cacheDir = await temporaryFolder('robust');
  const pluginPath = await cpuPlugin();
  // Compiling is what takes the time here.
  const flags = { xla_backend_optimization_level: 0 };
  engine = await openEngine({ engine: 'xla', pluginPath, cacheDir, flags });
});
after(() => {
  engine.close();
});

/** Buffers and executables that are open in the plugin. */
function numOpenHandles(): number {
  const backend = tf.findBackend(BACKEND_NAME);
  assert(backend instanceof XlaBackend);
  return backend.client.numOpen;
}

/** What is closed is freed a turn later. */
const freed = () => new Promise<void>((done) => setImmediate(done));

const vector = (...values: number[]): tf.Tensor =>
  engine.upload(Float32Array.from(values), [values.length]);

async function firstOf(tensor: tf.Tensor): Promise<number> {
  const [value] = await tensor.data();
  tensor.dispose();
  return value!;
}

test('a thousand functions that are compiled, run and closed leave nothing behind', async () => {
  const captured = vector(0.5, 0.5);
  const round = async (constant: number): Promise<void> => {
    const x = vector(1, 2);
    // A program of its own each time: the constant stands in its text.
    const add = engine.compile((t: tf.Tensor) => tf.add(tf.add(t, captured), constant), {
      name: 'add',
      donate: constant % 2 === 0 ? [0] : [],
    });
    assert.equal(await firstOf(await add(x)), 1.5 + constant);
    x.dispose();
    add.close();
  };
  const numWarmUps = 300;
  for (let i = 0; i < numWarmUps; i++) await round(i);
  const count = () => [numOpenHandles(), tf.memory().numTensors, tf.memory().numDataBuffers];
  await freed();
  const countsBefore = count();
  const rssBefore = process.memoryUsage().rss;
  for (let i = numWarmUps; i < 1000; i++) await round(i);
  await freed();
  assert.deepEqual(count(), countsBefore);
  // An executable that is not freed takes 200 KiB: 137 MiB by now.
  const growth = (process.memoryUsage().rss - rssBefore) / MEBIBYTE;
  assert(growth < 40, `the process grew by ${growth.toFixed(0)} MiB`);
  captured.dispose();
});

test('a function keeps a bounded number of programs, and runs right again for a shape that it gave up', async () => {
  const sum = engine.compile((t: tf.Tensor) => tf.sum(t), { name: 'sum' });
  const before = numOpenHandles();
  const ofLength = async (length: number): Promise<void> => {
    const x = engine.upload(new Float32Array(length).fill(1), [length]);
    assert.equal(await firstOf(await sum(x)), length);
    x.dispose();
  };
  for (let length = 1; length <= 70; length++) await ofLength(length);
  await ofLength(1);
  // A program is two handles.
  assert.equal(numOpenHandles() - before, 2 * 64);
  sum.close();
  await freed();
  assert.equal(numOpenHandles(), before);
});

test('a closed function refuses calls, and ends those that are under way', async () => {
  const x = vector(3);
  const before = numOpenHandles();
  const square = engine.compile((t: tf.Tensor) => tf.square(t), { name: 'square' });
  const call = square(x);
  square.close();
  square.close();
  assert.equal(await firstOf(await call), 9);
  await assert.rejects(square(x), { code: 'XLA_CLOSED' });
  await assert.rejects(square.lower(x), { code: 'XLA_CLOSED' });
  x.dispose();
  await freed();
  assert.equal(numOpenHandles(), before - 1);
});

test('steps without a pause take the temporary memory of one', async (t) => {
  if (process.platform !== 'linux') {
    t.skip('the settings are of glibc');
    return;
  }
  const script = path.join(import.meta.dirname, 'test/temporary-memory.ts');
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [...process.execArgv, script, await cpuPlugin(), await temporaryFolder('temporary')],
    { env: withTrainingMemory(process.env) },
  );
  const { temporary, growth } = JSON.parse(stdout) as { temporary: number; growth: number };
  t.diagnostic(`${temporary} bytes a step, the process grew by ${growth}`);
  assert(temporary >= 128 * MEBIBYTE, 'enough that the runtime waits for it');
  // Four to five where steps begin before the memory of the last one is free; on a busy machine one or two still do.
  assert(growth < 3.2 * temporary, `it grew by ${(growth / temporary).toFixed(1)} times that`);
});

test('what does not fit into memory is refused, frees its arguments, and the next call computes', async () => {
  const kept = vector(4);
  const before = numOpenHandles();
  const large = engine.compile(
    (t: tf.Tensor, captured: tf.Tensor) => {
      const [rows] = t.shape as [number];
      const wide = tf.broadcastTo(tf.reshape(t, [rows, 1]), [rows, rows]);
      return tf.add(wide, tf.mul(kept, captured));
    },
    { name: 'large', donate: [0] },
  );
  // 220 GiB, which the machine has not got, and 1 TiB, which the compiler would not survive.
  for (const rows of [243_000, 2 ** 19]) {
    const x = engine.upload(new Float32Array(rows), [rows]);
    const factor = vector(2);
    await assert.rejects(large(x, factor), { code: 'PJRT_OUT_OF_MEMORY' });
    assert(x.isDisposed);
    assert.equal(await firstOf(tf.add(factor, kept)), 6);
    factor.dispose();
  }
  const few = vector(1, 2);
  const two = vector(2);
  assert.equal(await firstOf(await large(few, two)), 9);
  two.dispose();
  large.close();
  await freed();
  // The single op above stays compiled.
  assert.equal(numOpenHandles() - before, 2);
  kept.dispose();
});
