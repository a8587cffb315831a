/** Tensors that a script of `peers/` wrote, and how far ours are from them. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import * as tf from '@tensorflow/tfjs-core';
import { decodeSafetensors } from '../../checkpoint/format.ts';

/** The float32 tensors of a safetensors file. */
export async function readTensors(file: string): Promise<Map<string, tf.Tensor>> {
  const { tensors } = decodeSafetensors(await readFile(file));
  return new Map(
    [...tensors].map(([name, { shape, data }]) => [
      name,
      tf.tensor(new Float32Array(data.slice().buffer), [...shape]),
    ]),
  );
}

export async function largestDifference(found: tf.Tensor, wanted: tf.Tensor): Promise<number> {
  assert.deepEqual(found.shape, wanted.shape);
  const [a, b] = await Promise.all([found.data(), wanted.data()]);
  let worst = 0;
  for (const [i, value] of a.entries()) worst = Math.max(worst, Math.abs(value - b[i]!));
  return Number.isNaN(worst) ? Infinity : worst;
}
