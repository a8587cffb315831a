import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, describe, it, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openRng } from '../../proto/random.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { asOwnTokenizer, openPretrainedTokenizer } from '../../video/text/pretrained-tokenizer.ts';
import { openTokenizer, trainTokenizer, type Tokenizer } from '../../video/text/tokenizer.ts';
import { openEngine, type Engine } from '../backend/engine.ts';
import { resolveConfig, type Config } from '../config.ts';
import { openInitializer } from '../initializer.ts';
import { hardNegatives, queryContrastSums } from '../losses/query-contrast.ts';
import { blip2Joint, blip2Queries, initBlip2, type Blip2Sizes } from '../models/blip2.ts';
import { openTestSystem, TEST_SAMPLES, testRows } from '../test/open-system.ts';
import { NO_LABEL } from '../losses/next-token.ts';
import { blip2System } from './blip2.ts';
import { exchanged } from './picture-words.ts';
import type { Row } from './system.ts';
import { firstAlike } from './text-number.ts';

const SIZES: Blip2Sizes = {
  vision: {
    ...{ imageSize: 8, patchSize: 4, channels: 3, width: 8, numLayers: 1, numHeads: 2 },
    ...{ mlpWidth: 16, activation: 'gelu', epsilon: 1e-5 },
  },
  qFormer: {
    ...{ width: 8, numLayers: 3, numHeads: 2, mlpWidth: 16, activation: 'gelu', epsilon: 1e-12 },
    ...{ contextWidth: 8, crossEvery: 2, hasText: true },
  },
  ...{ numQueries: 2, vocabulary: 20, length: 5, embedding: 4 },
};

void describe('BLIP-2, first stage', () => {
  let engine: Engine;
  before(async () => {
    engine = await openEngine({ engine: 'cpu', cacheDir: userCacheDir(process.env) });
  });
  after(() => {
    engine.close();
  });

  void it('while writing no query sees a word, and no word those after it', () => {
    const params = initBlip2(SIZES, openInitializer(4));
    const seen = tf.randomNormal([1, 4, 8], 0, 1, 'float32', 5);
    const present = tf.ones([1, 5]);
    const states = (ids: number[]): number[][] => {
      const text = { ids: tf.tensor2d([ids], [1, 5], 'int32'), present };
      const all = blip2Joint(params, seen, text, SIZES, 'write');
      return (all.arraySync() as number[][][])[0]!;
    };
    const [one, other] = [states([1, 7, 8, 9, 3]), states([1, 7, 8, 11, 3])];
    // Two queries, then words 0, 1, 2; word 3 is another one.
    assert.deepEqual(one.slice(0, 5), other.slice(0, 5));
    assert.notDeepEqual(one[5], other[5]);
    const alone = (blip2Queries(params, seen, SIZES).arraySync() as number[][][])[0]!;
    for (const [i, row] of alone.entries())
      for (const [k, value] of row.entries()) assert.ok(Math.abs(value - one[i]![k]!) < 1e-5);
  });

  void it('pairs that do not match are never of one group, and the similar ones are drawn most', () => {
    const groups = tf.tensor1d([1, 1, 2, 3]);
    const logits = tf.tensor2d([
      [9, 9, 2, 0],
      [9, 9, 0, 2],
      [0, 5, 9, 0],
      [0, 0, 3, 9],
    ]);
    const drawn = hardNegatives(logits, groups, tf.zeros([4, 4]));
    assert.deepEqual([...drawn.dataSync()], [2, 3, 1, 2]);
  });

  void it('the contrast is the formula, with even targets for rows that belong together', () => {
    const images = tf.tensor3d([
      [
        [1, 0],
        [0, 1],
      ],
      [
        [0.6, 0.8],
        [1, 0],
      ],
      [
        [0, 1],
        [-1, 0],
      ],
    ]);
    const texts = tf.tensor2d([
      [1, 0],
      [0, 1],
      [0.8, 0.6],
    ]);
    const ids = [5, 6, 5];
    const { lossSum, correct } = queryContrastSums(
      { images, texts, groupIds: tf.tensor1d(ids), counted: tf.ones([3]) },
      tf.scalar(2),
      0.1,
    );
    const [queries, words] = [images.arraySync(), texts.arraySync()];
    const similar = queries.map((own) =>
      words.map((word) =>
        Math.max(...own.map((query) => query[0]! * word[0]! + query[1]! * word[1]!)),
      ),
    );
    const loss = (row: number[], i: number): number => {
      const sum = row.reduce((total, value) => total + Math.exp(2 * value), 0);
      const alike = ids.filter((id) => id === ids[i]).length;
      return -row.reduce((total, value, j) => {
        const target = (ids[j] === ids[i] ? 0.9 / alike : 0) + 0.1 / 3;
        return total + target * (2 * value - Math.log(sum));
      }, 0);
    };
    const turned = similar.map((_, i) => similar.map((row) => row[i]!));
    const expected = [...similar.map(loss), ...turned.map(loss)].reduce((a, b) => a + b, 0) / 2;
    assert.ok(Math.abs(lossSum.dataSync()[0]! - expected) < 1e-5);
    const nearest = similar.map((row) => ids[row.indexOf(Math.max(...row))]);
    const right = nearest.filter((id, i) => id === ids[i]).length;
    assert.equal(correct.dataSync()[0], right);
  });

  void it('one word is exchanged for another of its list', () => {
    const lists = [
      ['red', 'blue', 'green'],
      ['circle', 'star'],
    ];
    for (let k = 0; k < 20; k++) {
      const text = exchanged('a red circle moves left', lists, openRng(1, 'test', k))!;
      const words = text.split(' ');
      const changed = words.filter((word, i) => word !== 'a red circle moves left'.split(' ')[i]);
      assert.equal(changed.length, 1);
      assert.ok(lists.flat().includes(changed[0]!));
    }
    assert.equal(exchanged('nothing here', lists, openRng(1, 'test')), undefined);
  });

  void it('a microbatch counts what it weighs, and is a function of its rows', async () => {
    const { system, config } = await openTestSystem('blip2', 'represent', []);
    const rows = testRows(TEST_SAMPLES.slice(0, 6), config);
    const batch = system.assemble(rows);
    const sum = (name: string): number => [...batch.arrays[name]!.data].reduce((a, b) => a + b, 0);
    assert.equal(batch.counts['match'], sum('matchWeights'));
    assert.equal(batch.counts['write'], sum('writeWeights'));
    assert.deepEqual(system.assemble(rows), batch);
  });

  void it('where all rows belong together, pairs that do not match have no weight', async () => {
    const { system, config } = await openTestSystem('blip2', 'represent', []);
    const rows = testRows([TEST_SAMPLES[0]!, TEST_SAMPLES[6]!, TEST_SAMPLES[0]!], config);
    const { arrays, counts } = system.assemble(rows);
    assert.equal(counts['match'], 3);
    const tensors = mapValues(arrays, ({ data, shape }) => tf.tensor(data, [...shape]));
    const params = system.init(openInitializer(11));
    const { match } = system.sums(params, {}, tensors);
    // The same pictures with their own texts, as a question puts them.
    const { images, ids, present } = tensors;
    const asked = { pairLabels: tf.ones([3], 'int32'), pairWeights: tf.ones([3]) };
    const own = system.sums(
      params,
      {},
      { images: images!, ids: ids!, present: present!, ...asked },
    );
    const loss = (sums: typeof match): number => sums!.lossSum.dataSync()[0]!;
    assert.ok(Math.abs(loss(match) - loss(own['match'])) < 1e-5);
  });
});

function mapValues<A, B>(
  record: Readonly<Record<string, A>>,
  map: (value: A) => B,
): Record<string, B> {
  return Object.fromEntries(Object.entries(record).map(([name, value]) => [name, map(value)]));
}

test('a blind second stage is trained and asked with grey pictures alone', async () => {
  const { system, config } = await openTestSystem('blip2', 'generate', ['model.blind=true']);
  const rows = testRows(TEST_SAMPLES.slice(0, 3), config);
  const others = rows.map((row) => ({ ...row, frames: row.frames.toReversed() }));
  assert.deepEqual(system.assemble(others), system.assemble(rows));
  for (const task of system.heldOutTasks)
    assert.deepEqual(task.assemble(others), task.assemble(rows), task.name);
});

/** BLIP-2's first stage of a preset with small towers and any tokenizer. */
async function smallSystem(recipe: string, preset: string | undefined, tokenizer: Tokenizer) {
  const text = await readFile(new URL(`../recipes/${recipe}.yaml`, import.meta.url), 'utf8');
  const overrides = [
    ...['vision.patchSize=8', 'vision.layers=1', 'qFormer.layers=2'],
    ...['vision', 'qFormer'].flatMap((part) => [
      ...[`${part}.width=8`, `${part}.heads=2`, `${part}.mlpWidth=8`],
    ]),
  ].map((override) => `model.${override}`);
  const config = resolveConfig({
    ...{ text, file: recipe, preset, stage: 'represent' },
    overrides: ['data.frameSize=16', ...overrides],
  });
  const data = { ...config.data, seed: config.train.seed };
  const model = config.model as unknown as Parameters<typeof blip2System>[0];
  return { system: blip2System(model, data, tokenizer), config };
}

function rowsOf(texts: readonly string[], config: Config): Row[] {
  return testRows(
    texts.map((text, i) => ({ ...TEST_SAMPLES[3 * (i % 4)]!, text })),
    config,
  );
}

test("with BERT's tokenizer, which has no [>], every word that is to be written can be seen", async () => {
  const texts = ['a red circle', 'two stars , one blue'];
  const own = trainTokenizer(texts, { vocabularySize: 120 });
  const text = JSON.stringify(own).replaceAll('"[>]"', '"[unused0]"');
  const config = {
    ...{ pad_token: '[PAD]', unk_token: '[UNK]', cls_token: '[CLS]', sep_token: '[SEP]' },
    mask_token: '[MASK]',
  };
  const bert = openPretrainedTokenizer({ tokenizer: JSON.parse(text) as object, config });
  const tokenizer = asOwnTokenizer(bert, { rows: 0, place: 'bert' });
  assert.ok(tokenizer.encode('[>]').length > 1);
  const small = await smallSystem('blip2', undefined, tokenizer);
  const { arrays } = small.system.assemble(rowsOf(texts, small.config));
  const [, length] = arrays['writeIds']!.shape as [number, number];
  const { sep, join, pad } = tokenizer.special;
  for (const [row, words] of texts.entries()) {
    const of = (name: string): number[] => [
      ...arrays[name]!.data.subarray(row * length, (row + 1) * length),
    ];
    const spoken = [join, ...tokenizer.encode(words), sep];
    const padded = [...spoken, ...new Array<number>(length - spoken.length).fill(pad)];
    assert.deepEqual(of('writeIds'), padded);
    assert.deepEqual(
      of('writeLabels').map((label) => (label === NO_LABEL ? 0 : 1)),
      padded.map((_, at) => (at > 0 && at < spoken.length ? 1 : 0)),
    );
    assert.deepEqual(
      of('present'),
      padded.map((_, at) => (at < spoken.length ? 1 : 0)),
    );
  }
});

for (const [recipe, preset] of [
  ['blip2', 'base'],
  ['blip2', 'paper'],
  ['video-llama', 'base'],
] as const) {
  test(`${recipe}, ${preset}: other captions are other captions, whatever words they share`, async () => {
    const texts = [
      'a white dog runs on the beach',
      'a white car parked in a street',
      'two red buses , one red',
      'a man in a red shirt',
    ];
    const tokenizer = openTokenizer(trainTokenizer(texts, { vocabularySize: 200 }));
    const { system, config } = await smallSystem(recipe, preset, tokenizer);
    const { arrays } = system.assemble(rowsOf([...texts, texts[0]!], config));
    assert.deepEqual([...firstAlike(arrays['textIds']!).data], [0, 1, 2, 3, 0]);
    const write = system.heldOutTasks.find(({ name }) => name === 'write')!;
    const asked = write.labels(write.assemble(rowsOf(texts, config)));
    const all = texts.flatMap((text) => [...tokenizer.encode(text), tokenizer.special.sep]);
    assert.deepEqual(asked, all, 'every word is asked for');
  });
}
