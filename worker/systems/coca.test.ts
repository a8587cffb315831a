import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { uploadBatch } from '../batches.ts';
import { openAnswering } from '../generation/answers.ts';
import { openInitializer } from '../initializer.ts';
import { CAPTIONED, captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { mapTree, type TensorTree } from '../tree.ts';

const SMALL = [
  ...['data.frameSize=8', 'model.vision.patchSize=4', 'model.vision.width=8', 'model.text.width=8'],
  ...['model.vision.mlpWidth=8', 'model.text.mlpWidth=8', 'data.windows=2'],
];
const TWICE = [...CAPTIONED, CAPTIONED[0]!];

async function opened(overrides: readonly string[] = []) {
  const engine = await openCpuEngine();
  const { system, config } = await openCaptioned('coca', {
    preset: 'tiny',
    overrides: [...SMALL, ...overrides],
  });
  const rows = captionedRows(config, TWICE);
  const drawn = system.init(openInitializer(3));
  // Louder than at the start, so that what a model says depends on what it sees.
  const params = mapTree<TensorTree>(drawn, (tensor) => tf.mul(tensor, 1.5));
  return { engine, system, config, rows, params, batch: system.assemble(rows) };
}

const dot = (a: readonly number[], b: readonly number[]): number =>
  a.reduce((sum, value, i) => sum + value * b[i]!, 0);

test('the contrast counts both directions whole, and rows of one caption belong together', async () => {
  const { engine, system, params, batch } = await opened();
  const embedded = system.contrast!.embed(params, {}, uploadBatch(engine, batch));
  const { contrastive } = system.contrast!.sums(params, embedded, {});
  const [clips, texts] = ['clips', 'texts'].map((name) => embedded[name]!.arraySync()) as [
    number[][],
    number[][],
  ];
  const scale = 1 / 0.07 ** 1.5; // the logarithm of 1 / 0.07 is 1.5 times as large here
  const captions = TWICE.map(({ text }) => text);
  const oneWay = (from: number[][], to: number[][]): number =>
    from.reduce((sum, own, i) => {
      const logits = to.map((other) => scale * dot(own, other));
      const top = Math.max(...logits);
      const total = top + Math.log(logits.reduce((a, b) => a + Math.exp(b - top), 0));
      const together = logits.filter((_, j) => captions[j] === captions[i]);
      return sum + total - together.reduce((a, b) => a + b, 0) / together.length;
    }, 0);
  const wanted = oneWay(clips, texts) + oneWay(texts, clips);
  const found = contrastive!.lossSum.dataSync()[0]!;
  assert.ok(Math.abs(found / wanted - 1) < 1e-4, `${found} ${wanted}`);
});

test('captions count each word and the end, given those before it, and no padding', async () => {
  const { engine, system, params, batch, config } = await opened();
  const { captioning } = system.sums(params, {}, uploadBatch(engine, batch));
  const { maxTokens } = (config.model as unknown as { text: { maxTokens: number } }).text;
  const ids = Int32Array.from(batch.arrays['ids']!.data);
  // The loss of a text alone is that of its words: the sum over prefixes of one word more each.
  const numLabels = ids.reduce((sum, id, i) => sum + (i % maxTokens > 0 && id !== 0 ? 1 : 0), 0);
  assert.equal(batch.counts['captioning'], numLabels);
  assert.equal(batch.counts['contrastive'], TWICE.length);
  const lossOf = (given: ArrayLike<number>): number => {
    const cut = { data: Int32Array.from(given), shape: [TWICE.length, maxTokens] };
    const arrays = { ...batch.arrays, ids: cut };
    const sums = system.sums(params, {}, uploadBatch(engine, { ...batch, arrays }));
    return sums['captioning']!.lossSum.dataSync()[0]!;
  };
  const whole = lossOf(ids);
  assert.ok(Math.abs(whole - captioning!.lossSum.dataSync()[0]!) < 1e-4);
  assert.ok(whole > numLabels, 'an untrained model loses more than a nat a word');
  const until = (length: number): number =>
    lossOf(ids.map((id, i) => (i % maxTokens < length ? id : 0)));
  const parts = Array.from({ length: maxTokens }, (_, i) => until(i + 1));
  assert.equal(parts[0], 0, 'what begins a text is not asked for');
  assert.ok(Math.abs(parts.at(-1)! - whole) < 1e-4);
  for (const [i, part] of parts.slice(1).entries()) assert.ok(part >= parts[i]!);
});

test('in one pass comes out what comes out of two', async () => {
  const { engine, system, params, batch } = await opened();
  const inputs = uploadBatch(engine, batch);
  const contrast = system.contrast!;
  const both = contrast.together!(params, {}, inputs);
  const apart = contrast.embed(params, {}, inputs);
  const sums = system.sums(params, {}, inputs);
  assert.deepEqual(Object.keys(both.embeddings).sort(), Object.keys(apart).sort());
  for (const [name, tensor] of Object.entries(apart))
    assert.deepEqual(both.embeddings[name]!.dataSync(), tensor.dataSync(), name);
  for (const [name, { lossSum, correct }] of Object.entries(sums)) {
    assert.deepEqual(both.sums[name]!.lossSum.dataSync(), lossSum.dataSync(), name);
    assert.deepEqual(both.sums[name]!.correct.dataSync(), correct.dataSync(), name);
  }
});

/** The same model, which writes nothing but the end. */
function silent(params: TensorTree, sep: number): TensorTree {
  return mapTree(params, (tensor, path) => {
    if (path === 'decoder/finalNorm/scale') return tf.zerosLike(tensor);
    if (path === 'decoder/finalNorm/offset') return tf.onesLike(tensor);
    if (path !== 'decoder/head/kernel') return tensor;
    const [width, numWords] = tensor.shape as [number, number];
    const column = tf.oneHot(tf.tensor1d([sep], 'int32'), numWords);
    return tf.tile(tf.cast(column, 'float32'), [width, 1]);
  });
}

test('a caption is right where it is the one that the model writes, word for word up to its end', async () => {
  const { engine, system, params, rows, config } = await opened();
  const answers = system.answers!;
  const { maxTokens } = (config.model as unknown as { text: { maxTokens: number } }).text;
  const task = system.heldOutTasks.find(({ name }) => name === 'caption-exact')!;
  const batch = task.assemble(rows);
  const [start] = batch.arrays['ids']!.data;
  const sep = answers.eosIds[0]!;
  for (const own of [params, silent(params, sep)]) {
    const written: number[][] = [];
    const decode = (ids: readonly number[]): string => {
      written.push([...ids]);
      return answers.decode(ids);
    };
    const answering = openAnswering(engine, { ...answers, decode }, { params: own, frozen: {} });
    await answering.ask(rows, 'a question that it does not read');
    answering.close();
    assert.equal(written.length, rows.length);
    assert.equal(written[0]!.length, own === params ? maxTokens - 1 : 0);
    const rightOf = (texts: readonly number[][]): number => {
      const ids = new Int32Array(rows.length * maxTokens);
      for (const [i, text] of texts.entries())
        ids.set([start!, ...text, sep].slice(0, maxTokens), i * maxTokens);
      const arrays = { ...batch.arrays, ids: { data: ids, shape: [rows.length, maxTokens] } };
      const sums = system.sums(own, {}, uploadBatch(engine, { ...batch, arrays }));
      return sums['captioning']!.correct.dataSync()[0]!;
    };
    assert.equal(rightOf(written), rows.length);
    for (const at of [0, 1]) {
      const text = written[4]!;
      const other = [...text.slice(0, at), text[at] === 7 ? 8 : 7, ...text.slice(at + 1)];
      assert.equal(rightOf(written.with(4, other)), rows.length - 1, `word ${at}`);
    }
  }
});

test('held-out captions are asked by their class, and those alike are one', async () => {
  const { system, rows } = await opened();
  const task = system.heldOutTasks.find(({ name }) => name === 'caption-exact')!;
  assert.equal(task.numClasses, CAPTIONED.length);
  assert.deepEqual(task.labels(task.assemble(rows)), [0, 1, 2, 3, 4, 5, 6, 7, 0]);
});

test('either loss may count nothing, and not both', async () => {
  const [contrast, captions] = ['model.weights.contrastive=0', 'model.weights.captioning=0'];
  const { system } = await opened([captions]);
  assert.deepEqual(system.objectives, { contrastive: 1, captioning: 0 });
  await assert.rejects(opened([contrast, captions]), /model\.weights are both 0/);
});
