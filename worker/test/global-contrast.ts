/** The gradient of a contrast over a global batch, by parts, beside that of one comparison of all rows. */
import assert from 'node:assert/strict';
import * as tf from '@tensorflow/tfjs-core';
import type { Engine } from '../backend/engine.ts';
import { registerGradients } from '../backend/gradients.ts';
import { uploadBatch } from '../batches.ts';
import { openInitializer } from '../initializer.ts';
import { compilePrograms } from '../programs.ts';
import type { Row, VideoLanguageSystem } from '../systems/system.ts';
import { leavesOf, withLeaves, type TensorTree } from '../tree.ts';

const ADAMW = { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weightDecay: 0, clipNorm: 1 };

/** @param weights of each objective's sum of losses; those that are not named have none */
export async function checkGlobalContrast(
  engine: Engine,
  system: VideoLanguageSystem,
  {
    rows,
    weights,
  }: { readonly rows: readonly Row[]; readonly weights: Readonly<Record<string, number>> },
): Promise<void> {
  registerGradients();
  const params = system.init(openInitializer(3));
  const contrast = system.contrast!;
  const whole = uploadBatch(engine, system.assemble(rows));
  const leaves = leavesOf(params).map(([, tensor]) => tensor);
  const wanted = tf.grads((...given: tf.Tensor[]) => {
    const tree: TensorTree = withLeaves(params, given);
    const compared = contrast.sums(tree, contrast.embed(tree, {}, whole), {});
    const isOwn = Object.keys(weights).some((name) => !contrast.objectives.includes(name));
    const sums = { ...(isOwn ? system.sums(tree, {}, whole) : {}), ...compared };
    const losses = Object.entries(weights).map(([name, weight]) =>
      tf.mul<tf.Scalar>(sums[name]!.lossSum, weight),
    );
    // What is not compared has no gradient, and `grads` wants one of each.
    const nothing = tf.addN(given.map((tensor) => tf.mul(tf.sum(tensor), 0)));
    return tf.addN([...losses, nothing]);
  })(leaves);

  const programs = compilePrograms(engine, system, ADAMW);
  const objectives = Object.keys(system.objectives);
  const scales = tf.tensor1d(objectives.map((name) => weights[name] ?? 0));
  const parts = [rows.slice(0, 2), rows.slice(2, 5), rows.slice(5)].map((part) =>
    uploadBatch(engine, system.assemble(part)),
  );
  const embedded = await Promise.all(
    parts.map((part) => programs.contrast!.embed(params, {}, part)),
  );
  const embeddings = Object.fromEntries(
    Object.keys(embedded[0]!).map((name) => [name, tf.concat(embedded.map((each) => each[name]!))]),
  );
  const compared = await programs.contrast!.compare(params, {}, embeddings, scales);
  const sum = new Float32Array(leaves.reduce((total, { size }) => total + size, 0));
  let first = 0;
  for (const [k, part] of parts.entries()) {
    const count = [2, 3, rows.length - 5][k]!;
    const own = Object.fromEntries(
      Object.entries(compared.cotangents).map(([name, tensor]) => [
        name,
        tf.slice(tensor, first, count),
      ]),
    );
    first += count;
    const { gradient } = await programs.gradient(params, {}, part, scales, own);
    for (const [i, value] of (await programs.readGradient(gradient)).entries()) {
      sum[i]! += value;
    }
  }
  let offset = 0;
  for (const [k, [path, { size }]] of leavesOf(params).entries()) {
    const plain = await wanted[k]!.data();
    const direct = await compared.direct[path]?.data();
    for (let i = 0; i < size; i++) {
      const value = sum[offset + i]! + (direct?.[i] ?? 0);
      const off = Math.abs(value - plain[i]!) / Math.max(1, Math.abs(plain[i]!));
      assert.ok(off < 1e-5, `${path} ${value} ${plain[i]!}`);
    }
    offset += size;
  }
}
