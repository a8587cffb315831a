import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';

import * as tf from '@tensorflow/tfjs-core';

import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { cpuPlugin } from '../pjrt/test/client.ts';
import { openEngine, type Engine } from './engine.ts';

const isLinux = process.platform === 'linux' || 'reads /proc';

/** [1024, 8192] f32, 32 MiB: what makes a program large. */
const [ROWS, COLUMNS] = [1024, 8192];

test(
  'a large program is compiled in a process of its own, and in this one when that is killed',
  { skip: isLinux === true ? false : isLinux },
  async () => {
    const cacheDir = await temporaryFolder('compile-apart');
    const engine = await openEngine({ engine: 'xla', pluginPath: await cpuPlugin(), cacheDir });
    try {
      const programs = join(cacheDir, 'programs');
      assert.equal(await compileLarge(engine, 2), 1, 'one process compiled it');
      assert.equal((await readdir(programs)).filter((name) => name.endsWith('.pjrt')).length, 1);
      assert.equal(await compileLarge(engine, 3, 'SIGKILL'), 1);
      assert.equal((await readdir(programs)).filter((name) => name.endsWith('.pjrt')).length, 2);
      assert.equal(await compileLarge(engine, 2), 0, 'it is in the cache');
    } finally {
      engine.close();
    }
  },
);

/** How many processes it took to compile and run a program of that factor; each gets `signal` as soon as it is there. */
async function compileLarge(
  engine: Engine,
  factor: number,
  signal?: NodeJS.Signals,
): Promise<number> {
  const run = engine.compile(
    (x: tf.Tensor) => tf.matMul(tf.mul<tf.Tensor2D>(x, factor), tf.ones([2, COLUMNS])),
    { name: 'large' },
  );
  const before = new Set(children());
  const seen = new Set<number>();
  const x = engine.upload(new Float32Array(ROWS * 2).fill(0.5), [ROWS, 2]);
  let isDone = false as boolean;
  const result = run(x).finally(() => {
    isDone = true;
  });
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
  return seen.size;
}

function children(): number[] {
  const text = readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8');
  return text.split(' ').filter(Boolean).map(Number);
}
