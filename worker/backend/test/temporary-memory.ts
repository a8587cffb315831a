/**
 * Runs a program with much temporary memory over and over and prints, as JSON, how much that is and by how much the
 * process grew, bytes.
 *
 *     node --import tsx worker/backend/test/temporary-memory.ts PLUGIN CACHE_FOLDER
 */
import { readFile } from 'node:fs/promises';

import * as tf from '@tensorflow/tfjs-core';

import { openEngine } from '../engine.ts';

const [pluginPath, cacheDir] = process.argv.slice(2) as [string, string];
const engine = await openEngine({ engine: 'xla', pluginPath, cacheDir });
const [length, width] = [6144, 16];
const matrix = (...shape: [number, number]): tf.Tensor =>
  engine.upload(new Float32Array(length * width).fill(0.1), shape);
const step = engine.compile(
  (left: tf.Tensor, right: tf.Tensor, state: tf.Tensor) => {
    const wide = tf.tanh(tf.matMul(left as tf.Tensor2D, right as tf.Tensor2D)); // [6144, 6144]
    return tf.matMul(wide, state);
  },
  { name: 'wide', donate: [2] },
);
const [left, right] = [matrix(length, width), matrix(width, length)];
let state = matrix(length, width);
const { memory } = (await step.lower(left, right, state))!;
const before = process.memoryUsage.rss();
for (let i = 0; i < 60; i++) state = await step(left, right, state);
// The peak of this program alone: that of getrusage begins with what the parent had.
const status = await readFile('/proc/self/status', 'utf8');
const most = Number(/^VmHWM:\s*(\d+) kB$/m.exec(status)![1]) * 1024;
engine.close();
console.log(JSON.stringify({ temporary: memory.tempBytes, growth: most - before }));
