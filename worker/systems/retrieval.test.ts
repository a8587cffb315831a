import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { registerGradients } from '../backend/gradients.ts';
import { uploadBatch } from '../batches.ts';
import { openInitializer } from '../initializer.ts';
import { compilePrograms } from '../programs.ts';
import { CAPTIONED, captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { leavesOf, withLeaves, type TensorTree } from '../tree.ts';

const OVERRIDES = [
  'data.frameSize=8',
  'model.vision.patchSize=4',
  'model.vision.width=8',
  'model.vision.mlpWidth=8',
  'model.text.width=8',
  'model.text.mlpWidth=8',
];
const ADAMW = { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weightDecay: 0, clipNorm: 1 };
/** Two clips of it have one caption. */
const ROWS = [0, 1, 2, 3, 4, 5, 6, 0].map((row) => CAPTIONED[row]!);

for (const recipe of ['clip', 'siglip', 'coca']) {
  describe(recipe, () => {
    test('the gradient of the global batch is that of one comparison of all rows, whatever its parts', async () => {
      const engine = await openCpuEngine();
      registerGradients();
      const { system, config } = await openCaptioned(recipe, {
        preset: 'tiny',
        overrides: OVERRIDES,
      });
      const rows = captionedRows(config, ROWS);
      const params = system.init(openInitializer(3));
      const contrast = system.contrast!;
      const whole = uploadBatch(engine, system.assemble(rows));
      const { counts } = system.assemble(rows);
      const weights = Object.entries(system.objectives).map(
        ([name, weight]) => weight / counts[name]!,
      );
      const leaves = leavesOf(params).map(([, tensor]) => tensor);
      const wanted = tf.grads((...given: tf.Tensor[]) => {
        const tree: TensorTree = withLeaves(params, given);
        const sums = {
          ...system.sums(tree, {}, whole),
          ...contrast.sums(tree, contrast.embed(tree, {}, whole), {}),
        };
        return tf.addN(
          Object.keys(system.objectives).map((name, k) =>
            tf.mul<tf.Scalar>(sums[name]!.lossSum, weights[k]!),
          ),
        );
      })(leaves);

      const programs = compilePrograms(engine, system, ADAMW);
      const scales = tf.tensor1d(weights);
      const parts = [rows.slice(0, 2), rows.slice(2, 5), rows.slice(5)].map((part) =>
        uploadBatch(engine, system.assemble(part)),
      );
      const embedded = await Promise.all(
        parts.map((part) => programs.contrast!.embed(params, {}, part)),
      );
      const embeddings = Object.fromEntries(
        Object.keys(embedded[0]!).map((name) => [
          name,
          tf.concat(embedded.map((each) => each[name]!)),
        ]),
      );
      const compared = await programs.contrast!.compare(params, {}, embeddings, scales);
      const sum = new Float32Array(leaves.reduce((total, { size }) => total + size, 0));
      let first = 0;
      for (const [k, part] of parts.entries()) {
        const count = [2, 3, 3][k]!;
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
    });

    test('a held-out clip is told among all held-out captions, each of them once', async () => {
      const engine = await openCpuEngine();
      const { system, config } = await openCaptioned(recipe, {
        preset: 'tiny',
        overrides: OVERRIDES,
      });
      const [recall] = system.heldOutTasks;
      assert.equal(recall!.numClasses, CAPTIONED.length);
      const batch = recall!.assemble(captionedRows(config));
      assert.deepEqual(recall!.labels(batch), [0, 1, 2, 3, 4, 5, 6, 7]);
      const sums = system.sums(system.init(openInitializer(3)), {}, uploadBatch(engine, batch));
      const [correct] = await sums['contrastive']!.correct.data();
      assert.ok(correct! >= 0 && correct! <= 8);
    });
  });
}

test('a bag of frames has no order, tubelets have', async () => {
  const engine = await openCpuEngine();
  for (const [recipe, frames] of [
    ['clip', 'bag'],
    ['clip', 'tubelets'],
    ['coca', 'bag'],
    ['coca', 'tubelets'],
  ] as const) {
    const { system, config } = await openCaptioned(recipe, {
      preset: 'tiny',
      overrides: [...OVERRIDES, `model.frames=${frames}`],
    });
    const params = system.init(openInitializer(3));
    const [row] = captionedRows(config);
    const size = config.data.frameSize ** 2 * 3;
    const count = row!.frames.length / size;
    const reversed = Uint8Array.from(row!.frames, (_, i) => {
      const frame = count - 1 - Math.floor(i / size);
      return row!.frames[frame * size + (i % size)]!;
    });
    const [forth, back] = await Promise.all(
      [row!, { ...row!, frames: reversed }].map(async (shown) => {
        const batch = uploadBatch(engine, system.assemble([shown]));
        return system.contrast!.embed(params, {}, batch)['clips']!.data();
      }),
    );
    const difference = Math.max(...forth!.map((value, i) => Math.abs(value - back![i]!)));
    assert.equal(difference > 1e-4, frames === 'tubelets', `${recipe} ${frames} ${difference}`);
  }
});
