import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { mock, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';

import * as tf from '@tensorflow/tfjs-core';

import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { PjrtClient } from '../pjrt/client.ts';
import { cpuPlugin } from '../pjrt/test/client.ts';
import { compileApart } from './compile-apart.ts';
import { openEngine, type Engine } from './engine.ts';

const skip = process.platform !== 'linux' && 'reads /proc';

/** [1024, 8192] f32, 32 MiB: what makes a program large. */
const [ROWS, COLUMNS] = [1024, 8192];

test(
  'a large program is compiled in a process of its own, and in this one when that is killed or cannot store it',
  { skip },
  async () => {
    const cacheDir = await temporaryFolder('compile-apart');
    await withEngine(cacheDir, async (engine) => {
      assert.deepEqual(await compileLarge(engine, 2), { apart: 1, here: 0 });
      assert.deepEqual(await compileLarge(engine, 3, 'SIGKILL'), { apart: 1, here: 1 });
      assert.deepEqual(await compileLarge(engine, 2), { apart: 0, here: 0 }, 'it is in the cache');
      assert.deepEqual(await compileLarge(engine, 3), { apart: 0, here: 0 });
    });
    const unwritable = await temporaryFolder('compile-apart');
    await writeFile(join(unwritable, 'programs'), 'no folder');
    await withEngine(unwritable, async (engine) => {
      assert.deepEqual(await compileLarge(engine, 2), { apart: 1, here: 1 });
      assert.deepEqual(await compileLarge(engine, 3), { apart: 0, here: 1 }, 'it was of no use');
    });
  },
);

test('a process that cannot compile its program says so and ends', { skip }, async () => {
  const folder = await temporaryFolder('compile-apart');
  const before = children();
  const reply = await compileApart({
    devices: { pluginPath: await cpuPlugin(), devices: 1, axes: {}, threads: undefined },
    ...{ flags: {}, deviceIndices: [0], mlir: 'nonsense', folder, file: join(folder, 'none') },
  });
  assert.equal(reply, 'failed');
  for (let i = 0; children().length > before.length; i++) {
    assert.ok(i < 1000, 'the process has not ended within 5 s');
    await delay(5);
  }
});

async function withEngine(
  cacheDir: string,
  body: (engine: Engine) => Promise<void>,
): Promise<void> {
  const engine = await openEngine({ engine: 'xla', pluginPath: await cpuPlugin(), cacheDir });
  try {
    await body(engine);
  } finally {
    engine.close();
  }
}

/**
 * Compiles and runs a program of that factor. Tells how many processes were started for it, each of which gets `signal` as
 * soon as it is there, and how often it was compiled in this one.
 */
async function compileLarge(
  engine: Engine,
  factor: number,
  signal?: NodeJS.Signals,
): Promise<{ apart: number; here: number }> {
  const run = engine.compile(
    (x: tf.Tensor) => tf.matMul(tf.mul<tf.Tensor2D>(x, factor), tf.ones([2, COLUMNS])),
    { name: 'large' },
  );
  const compile = mock.method(PjrtClient.prototype, 'compile');
  const before = new Set(children());
  const seen = new Set<number>();
  const x = engine.upload(new Float32Array(ROWS * 2).fill(0.5), [ROWS, 2]);
  let isDone = false as boolean;
  const result = run(x).finally(() => {
    isDone = true;
  });
  result.catch(() => undefined); // it is awaited below
  while (!isDone) {
    for (const pid of children()) {
      if (before.has(pid) || seen.has(pid)) continue;
      seen.add(pid);
      if (signal !== undefined) process.kill(pid, signal);
    }
    await delay(5);
  }
  const values = await (await result).data();
  assert.ok(values.every((value) => value === factor));
  run.close();
  const here = compile.mock.callCount();
  compile.mock.restore();
  return { apart: seen.size, here };
}

function children(): number[] {
  const text = readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8');
  return text.split(' ').filter(Boolean).map(Number);
}
