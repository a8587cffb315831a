import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openEngine } from '../backend/engine.ts';
import { uploadBatch } from '../batches.ts';
import { openInitializer } from '../initializer.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { leavesOf, withLeaves } from '../tree.ts';
import { initVideoBert, videoBertLogits, videoBertSums, type VideoBertBatch } from './videobert.ts';
import { sequenceLength } from '../systems/videobert-batch.ts';
import { testAssembly, testBatch } from '../test/assembly.ts';

const ASSEMBLY = testAssembly();
const SIZES = {
  width: 16,
  numLayers: 2,
  numHeads: 2,
  mlpRatio: 2,
  textVocabulary: 20,
  visualVocabulary: 8,
  centroidWidth: 5,
  length: sequenceLength(ASSEMBLY),
};

const centroids = Float32Array.from({ length: 40 }, (_, i) => Math.sin(i));

/** Loss sums, numbers of right answers and the gradient of all losses, from one engine. */
async function compute(
  name: 'xla' | 'cpu',
): Promise<{ sums: number[]; gradients: Map<string, number[]> }> {
  const engine = await openEngine({ engine: name, cacheDir: userCacheDir(process.env) });
  const params = initVideoBert(SIZES, openInitializer(9));
  const table = engine.upload(centroids, [8, 5]);
  const run = engine.compile(
    (own: typeof params, centres: tf.Tensor, batch: Record<string, tf.Tensor>) => {
      let sums: tf.Tensor | undefined;
      const total = (...leaves: tf.Tensor[]): tf.Scalar => {
        const asked = batch as unknown as VideoBertBatch;
        const logits = videoBertLogits(withLeaves(own, leaves), centres, asked, SIZES);
        const all = Object.values(videoBertSums(logits, asked));
        sums = tf.keep(tf.stack(all.flatMap(({ lossSum, correct }) => [lossSum, correct])));
        return tf.sum(tf.stack(all.map(({ lossSum }) => lossSum)));
      };
      const gradients = tf.grads(total)(leavesOf(own).map(([, leaf]) => leaf));
      return { gradients, sums: sums! };
    },
    { name: 'videobert' },
  );
  const result = await run(params, table, uploadBatch(engine, testBatch(ASSEMBLY, { rows: 4 })));
  const paths = leavesOf(params).map(([path]) => path);
  const gradients = new Map<string, number[]>();
  for (const [i, path] of paths.entries())
    gradients.set(path, [...(await result.gradients[i]!.data())]);
  const sums = [...(await result.sums.data())];
  engine.close();
  return { sums, gradients };
}

test('losses and gradients of the compiled model are those of the plain JavaScript engine (float32, 1e-4)', async () => {
  const [compiled, plain] = [await compute('xla'), await compute('cpu')];
  for (const [i, value] of plain.sums.entries()) {
    assert.ok(
      Math.abs(compiled.sums[i]! - value) <= 1e-4 * Math.max(1, Math.abs(value)),
      `sum ${i}`,
    );
  }
  for (const [path, expected] of plain.gradients) {
    const scale = Math.max(...expected.map(Math.abs), 1e-3);
    const worst = Math.max(
      ...compiled.gradients.get(path)!.map((value, i) => Math.abs(value - expected[i]!)),
    );
    assert.ok(worst <= 1e-4 * scale, `${path}: off by ${worst} of ${scale}`);
  }
});

test('padding does not reach the losses: more of it leaves them as they are', async () => {
  const engine = await openEngine({ engine: 'cpu', cacheDir: '' });
  const params = initVideoBert(SIZES, openInitializer(9));
  const { arrays } = testBatch(ASSEMBLY, { rows: 4 });
  const sumsWith = (ids: Int32Array): number[] => {
    const changed = { ...arrays, ids: { ...arrays['ids']!, data: ids } };
    const batch = uploadBatch(engine, { arrays: changed, counts: {}, numTokens: 0 });
    const asked = batch as unknown as VideoBertBatch;
    const logits = videoBertLogits(params, engine.upload(centroids, [8, 5]), asked, SIZES);
    return Object.values(videoBertSums(logits, asked)).map(({ lossSum }) => lossSum.dataSync()[0]!);
  };
  const ids = Int32Array.from(arrays['ids']!.data);
  const before = sumsWith(ids);
  const other = ids.map((id, i) => (arrays['present']!.data[i] === 0 ? 7 : id));
  assert.notDeepEqual(other, ids);
  assert.deepEqual(sumsWith(other), before);
  engine.close();
});

test('where words are to choose among, the others neither count nor win', async () => {
  await openEngine({ engine: 'cpu', cacheDir: '' });
  // Two rows of two hidden words and five word pieces.
  const text = [
    [3, 1, 0, 2, -1],
    [9, 1, 0, 2, -1],
    [0, 0, 0.5, 9, 0],
    [0, 1, 0.5, 0, 4],
  ];
  const choices = [
    [0, 1, 1, 0, 1],
    [1, 0, 1, 0, 0],
  ];
  const labels = [1, 2, 2, 0];
  const nothing = tf.zeros([2, 1]);
  const sums = videoBertSums(
    { text: tf.tensor2d(text), visual: tf.zeros([2, 3]), alignment: tf.zeros([2]) },
    {
      textLabels: tf.tensor2d(labels, [2, 2], 'int32'),
      textWeights: tf.ones([2, 2]),
      textChoices: tf.tensor2d(choices),
      visualLabels: tf.cast(nothing, 'int32'),
      ...{ visualWeights: nothing, matched: tf.zeros([2]), alignmentWeights: tf.zeros([2]) },
    } as unknown as VideoBertBatch,
  )['masked-token'];
  let [lossSum, correct] = [0, 0];
  for (const [at, logits] of text.entries()) {
    const ids = [0, 1, 2, 3, 4].filter((id) => choices[at >> 1]![id] === 1);
    const total = ids.reduce((sum, id) => sum + Math.exp(logits[id]!), 0);
    lossSum += Math.log(total) - logits[labels[at]!]!;
    const best = ids.reduce((a, b) => (logits[b]! > logits[a]! ? b : a));
    correct += best === labels[at] ? 1 : 0;
  }
  assert.equal((await sums.correct.data())[0], correct);
  assert.ok(Math.abs((await sums.lossSum.data())[0]! - lossSum) < 1e-5);
});
