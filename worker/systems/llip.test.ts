import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { uploadBatch } from '../batches.ts';
import { openInitializer } from '../initializer.ts';
import { llipSimilarities, type LlipParams } from '../models/llip.ts';
import { captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { captionKinds } from './caption-kinds.ts';
import type { HostBatch, Row, VideoLanguageSystem } from './system.ts';

const SMALL = [
  ...['data.frameSize=8', 'model.vision.patchSize=4', 'model.vision.width=8', 'model.text.width=8'],
  ...['model.vision.mlpWidth=8', 'model.text.mlpWidth=8', 'data.windows=2'],
  'data.framesPerWindow=2',
];
const MIXED = ['model.mixture.width=8', 'model.captions=["^.+(?= moves )", "moves .+$"]'];

async function opened(overrides: readonly string[] = []) {
  const engine = await openCpuEngine();
  const { system, config } = await openCaptioned('llip', {
    preset: 'tiny',
    overrides: [...SMALL, ...MIXED, ...overrides],
  });
  const params = system.init(openInitializer(3)) as unknown as LlipParams;
  return { engine, system, config, params, rows: captionedRows(config) };
}

/** Each row's ids as one text. */
function textsOf({ arrays }: HostBatch, name = 'ids'): string[] {
  const { data, shape } = arrays[name]!;
  const width = shape.at(-1)!;
  return Array.from({ length: data.length / width }, (_, i) =>
    data.slice(i * width, (i + 1) * width).join(),
  );
}

/** What is compared of a batch, and the similarities of its clips to its texts. */
function compared(
  system: VideoLanguageSystem,
  params: LlipParams,
  batch: Record<string, tf.Tensor>,
) {
  const embedded = system.contrast!.embed(params, {}, batch);
  const { keys, values, queries, texts } = embedded as Record<
    'keys' | 'values' | 'queries' | 'texts',
    tf.Tensor
  >;
  const sizes = { numHeads: 2, temperature: 5 };
  const scores = llipSimilarities(params.output, { keys, values }, { queries, texts }, sizes);
  return { keys, values, queries, texts, scores: scores.arraySync() as number[][] };
}

test('what a pattern matches is a caption, and a text that none matches is its own', () => {
  const kinds = captionKinds(['^.+(?= moves )', 'moves .+$']);
  assert.deepEqual(kinds.of('a red circle moves left'), [
    { kind: 0, caption: 'a red circle' },
    { kind: 1, caption: 'moves left' },
  ]);
  assert.deepEqual(kinds.of('moves up'), [{ kind: 1, caption: 'moves up' }]);
  assert.deepEqual(kinds.of('nothing'), [{ kind: 0, caption: 'nothing' }]);
  assert.deepEqual(captionKinds([]).of('a'), [{ kind: 0, caption: 'a' }]);
});

test('a training clip has one of its captions, another in another epoch, and all of them are known', async () => {
  const { system, rows } = await opened();
  const whole = (row: Row): Row[] =>
    ['a red circle', 'moves left'].map((text) => ({ ...row, sample: { ...row.sample, text } }));
  const [look, move] = textsOf(system.assemble(whole(rows[0]!)));
  const drawn = Array.from({ length: 24 }, (_, epoch) =>
    textsOf(system.assemble([{ ...rows[0]!, epoch }])),
  ).flat();
  assert.deepEqual(new Set(drawn), new Set([look, move]));
  const batch = system.assemble(rows);
  assert.deepEqual(textsOf(system.assemble([rows[5]!, rows[2]!])), [
    textsOf(batch)[5],
    textsOf(batch)[2],
  ]);
  // In the order of the kinds, whatever was drawn; by two numbers each.
  assert.deepEqual(batch.arrays['known']!.shape, [8, 2, 2]);
  const known = textsOf(batch, 'known');
  const own = textsOf(batch, 'captions');
  for (const [i, caption] of own.entries()) {
    assert.equal([known[2 * i], known[2 * i + 1]].includes(caption), true);
    assert.equal(known[2 * i] === known[0], i % 4 === 0, 'what it is');
    assert.equal(known[2 * i + 1] === known[1], i < 4, 'how it moves');
  }
  // A clip of which less is told knows that alone.
  const less = textsOf(system.assemble([whole(rows[0]!)[1]!]), 'known');
  assert.deepEqual(less, [known[1], known[1]]);
});

test('a held-out clip is asked for each caption in turn, and no other of its own is a wrong answer', async () => {
  const { engine, system, params, rows } = await opened();
  const [recall] = system.heldOutTasks;
  assert.equal(recall!.numClasses, 6);
  const labels: number[][] = [];
  for (const epoch of [0, 1]) {
    const batch = recall!.assemble(rows.map((row) => ({ ...row, epoch })));
    const candidates = textsOf(batch, 'candidates');
    const [known, asked] = [batch.arrays['alsoTrue']!, recall!.labels(batch)];
    labels.push(asked);
    assert.deepEqual(known.shape, [8, candidates.length]);
    for (const [i, label] of asked.entries()) {
      const hidden = candidates.filter((_, k) => known.data[i * candidates.length + k] === 1);
      assert.equal(new Set(hidden).size, 1);
      assert.ok(!hidden.includes(candidates[label]!));
    }
    // Where all others are ruled out, what is left is right.
    const only = candidates.map((_, k) => k);
    const data = Float32Array.from(
      asked.flatMap((label) => only.map((k) => (k === label ? 0 : 1))),
    );
    const arrays = { ...batch.arrays, alsoTrue: { data, shape: known.shape } };
    const sums = system.sums(params, {}, uploadBatch(engine, { ...batch, arrays }));
    assert.equal(sums['contrastive']!.correct.dataSync()[0], 8);
  }
  for (const [i, label] of labels[0]!.entries()) assert.notEqual(label, labels[1]![i]);
  assert.deepEqual(new Set(labels.flat()), new Set([0, 1, 2, 3, 4, 5]));
});

test('each text is asked for another kind of it, where mixtures are exchanged', async () => {
  const { engine, system, params, rows } = await opened();
  const [exchanged] = system.furtherTasks!;
  const batch = exchanged!.assemble(rows);
  const kinds = textsOf(batch, 'candidates').map((ids) => ids.split(',').indexOf('0'));
  const askedBy = [...batch.arrays['askedBy']!.data];
  for (const [k, other] of askedBy.entries()) assert.notEqual(kinds[k], kinds[other]);
  const lossOf = (by: readonly number[]): number => {
    const own = { ...batch.arrays['askedBy']!, data: Int32Array.from(by) };
    const arrays = { ...batch.arrays, askedBy: own };
    const sums = system.sums(params, {}, uploadBatch(engine, { ...batch, arrays }));
    return sums['contrastive']!.lossSum.dataSync()[0]!;
  };
  const plain = system.sums(
    params,
    {},
    uploadBatch(engine, system.heldOutTasks[0]!.assemble(rows)),
  );
  assert.equal(lossOf([...askedBy.keys()]), plain['contrastive']!.lossSum.dataSync()[0]);
  assert.notEqual(lossOf(askedBy), lossOf([...askedBy.keys()]));
  const { system: whole } = await opened(['model.captions=[]']);
  assert.equal(whole.furtherTasks, undefined);
});

test('with one token a clip is the same to all texts, with several another to each', async () => {
  for (const tokens of [1, 3]) {
    const { engine, system, params, rows } = await opened([`model.mixture.tokens=${tokens}`]);
    const batch = uploadBatch(engine, system.assemble(rows));
    const { keys, values, texts, scores } = compared(system, params, batch);
    assert.deepEqual(keys.shape, [8, tokens, 8]);
    const [seen] = values.arraySync() as number[][][];
    const project = (value: readonly number[]): number[] => {
      const kernel = params.output.kernel.arraySync() as number[][];
      const made = kernel[0]!.map((_, e) =>
        value.reduce((sum, x, m) => sum + x * kernel[m]![e]!, 0),
      );
      return made.map((x) => x / Math.hypot(...made));
    };
    const first = project(seen![0]!);
    const alone = (texts.arraySync() as number[][]).map((text) =>
      text.reduce((sum, x, e) => sum + x * first[e]!, 0),
    );
    const off = Math.max(...scores[0]!.map((score, j) => Math.abs(score - alone[j]!)));
    assert.equal(off < 1e-5, tokens === 1, `${tokens} tokens: ${off}`);
  }
});

test('of a bag of frames all tokens are mixed, in whatever order the frames come', async () => {
  for (const frames of ['bag', 'tubelets']) {
    const { engine, system, config, params, rows } = await opened([`model.frames=${frames}`]);
    const [row] = rows as [Row];
    const size = config.data.frameSize ** 2 * 3;
    const count = row.frames.length / size;
    const reversed = Uint8Array.from(row.frames, (_, i) => {
      const frame = count - 1 - Math.floor(i / size);
      return row.frames[frame * size + (i % size)]!;
    });
    const both = [row, { ...row, frames: reversed }];
    const { keys, scores } = compared(system, params, uploadBatch(engine, system.assemble(both)));
    assert.equal(keys.shape[1], frames === 'bag' ? 3 * count : 3);
    const off = Math.max(...scores[0]!.map((score, j) => Math.abs(score - scores[1]![j]!)));
    assert.equal(off > 1e-5, frames === 'tubelets', `${frames} ${off}`);
  }
});

test('the tower of one token is that of CLIP, token and all', async () => {
  const engine = await openCpuEngine();
  const { system, params, rows } = await opened(['model.mixture.tokens=1']);
  const other = await openCaptioned('clip', { preset: 'tiny', overrides: SMALL });
  const identity = tf.eye(8);
  const clipParams = {
    ...(params as object),
    visionProjection: { kernel: identity },
    textProjection: params.textProjection,
    vision: { ...params.vision, classToken: tf.reshape(params.vision.classToken!, [8]) },
  };
  const batch = uploadBatch(engine, system.assemble(rows));
  const theirs = other.system.contrast!.embed(clipParams, {}, batch) as Record<
    'clips' | 'texts',
    tf.Tensor
  >;
  const keyValue = { kernel: tf.concat([identity, identity], 1) };
  const { values, texts } = compared(system, { ...params, keyValue }, batch);
  const lengths = tf.norm(values, 2, -1, true);
  const clips = tf.reshape(tf.div(values, lengths), [8, 8]);
  for (const [a, b] of [
    [clips, theirs.clips],
    [texts, theirs.texts],
  ] as const)
    assert.ok(tf.max(tf.abs(tf.sub(a, b))).dataSync()[0]! < 1e-5);
});
