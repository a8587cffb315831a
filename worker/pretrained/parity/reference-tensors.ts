/** Tensors that a script of `peers/` wrote, and how far ours are from them. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import * as tf from '@tensorflow/tfjs-core';
import { decodeSafetensors } from '../../checkpoint/format.ts';
import type { HostTensor } from '../tensor-source.ts';

/** The float32 tensors of a safetensors file. */
export async function readHostTensors(file: string): Promise<Map<string, HostTensor>> {
  const { tensors } = decodeSafetensors(await readFile(file));
  return new Map(
    [...tensors].map(([name, { shape, data }]) => [
      name,
      { shape, data: new Float32Array(data.slice().buffer) },
    ]),
  );
}

/** {@link readHostTensors} on tfjs's current backend. */
export async function readTensors(file: string): Promise<Map<string, tf.Tensor>> {
  return new Map(
    [...(await readHostTensors(file))].map(([name, { shape, data }]) => [
      name,
      tf.tensor(data, [...shape]),
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
