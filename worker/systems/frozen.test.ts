import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, it, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { openEngine, type Engine } from '../backend/engine.ts';
import { uploadBatch } from '../batches.ts';
import { resolveConfig, type Config } from '../config.ts';
import { freezeParameters } from '../frozen-parameters.ts';
import { formOf } from '../initial-weights.ts';
import { openInitializer } from '../initializer.ts';
import { nfResNet, type NfResNetParams } from '../models/nf-resnet.ts';
import { adamWScalars, initAdamW } from '../optim/adamw.ts';
import { compilePrograms } from '../programs.ts';
import { openTestSystem, TEST_SAMPLES, testRows } from '../test/open-system.ts';
import { assertReadAsWords } from '../test/read-as-words.ts';
import { valuesOf } from '../test/run-folder.ts';
import { leavesOf } from '../tree.ts';
import { frozen } from './frozen.ts';
import type { HostBatch, Row, VideoLanguageSystem } from './system.ts';
import { unpackedPictures } from './vision-part.ts';

const SMALL = [
  'model.language={width: 16, layers: 2, heads: 2, keyValueHeads: 2, mlpWidth: 24}',
  'model.vision={width: 2, blocks: [1, 1]}',
  'data.windows=2',
];
const [PREFIX, WIDTH] = [2, 16];
const open = (...overrides: string[]) =>
  openTestSystem('frozen', 'captioning', [...SMALL, ...overrides]);

function taskOf({ heldOutTasks }: VideoLanguageSystem, name: string) {
  return heldOutTasks.find((task) => task.name === name)!;
}

/** The colours of two clips that answer differently. */
function colourRows(config: Config): Row[] {
  return testRows(TEST_SAMPLES, config).filter(({ sample }) =>
    sample.text.startsWith('what colour'),
  );
}

/** The bytes of each picture of a row. */
function picturesOf({ arrays }: HostBatch, { data }: Config, row: number): Uint8Array[] {
  const { data: packed, shape } = arrays['pictures']!;
  const whole = new Uint8Array(
    (packed as Int32Array).slice(row * shape[1]!, (row + 1) * shape[1]!).buffer,
  );
  const size = data.frameSize ** 2 * 3;
  return Array.from({ length: whole.length / size }, (_, i) =>
    whole.slice(i * size, (i + 1) * size),
  );
}

void describe('Frozen', () => {
  let engine: Engine;
  before(async () => {
    engine = await openEngine({ engine: 'cpu', cacheDir: userCacheDir(process.env) });
  });
  after(() => {
    engine.close();
  });

  void it('a step changes all of the encoder and no bit of the language model', async () => {
    const { system: whole, config } = await open();
    const stored = await valuesOf(whole.init(openInitializer(3)));
    const system = freezeParameters(whole, config.train.frozen, formOf(whole), stored);
    const fixed = uploadBatch(engine, { arrays: system.frozen, counts: {}, numTokens: 0 });
    const batch = uploadBatch(engine, system.assemble(testRows(TEST_SAMPLES.slice(0, 6), config)));
    const programs = compilePrograms(engine, system, config.optimizer);
    let params = system.init(openInitializer(3));
    assert.ok(leavesOf(params).every(([path]) => !path.startsWith('language/')));
    let state = initAdamW(params);
    const first = await valuesOf(params);
    // What is behind a gain of 0 has a gradient from the second step on.
    for (const step of [1, 2]) {
      const { gradient } = await programs.gradient(params, fixed, batch, tf.tensor1d([1]), {});
      const norm = Math.hypot(...leavesOf(gradient).flatMap(([, leaf]) => [...leaf.dataSync()]));
      assert.ok(Number.isFinite(norm) && norm > 0);
      const scalars = adamWScalars(config.optimizer, {
        ...{ step, learningRate: 0.01, gradientScale: 1 },
      });
      const next = await programs.update(params, state, gradient, tf.tensor1d(scalars));
      [params, state] = [next.params, next.state];
    }
    const same = (one: ReadonlyMap<string, { data: Uint8Array }>, name: string, data: Uint8Array) =>
      Buffer.from(one.get(name)!.data).equals(Buffer.from(data));
    for (const [name, { data }] of await valuesOf(params))
      assert.ok(!same(first, name, data), `${name} is as it was`);
    const kept = await valuesOf(fixed);
    for (const [name, { data }] of stored) {
      if (!name.startsWith('language/')) continue;
      const [, own] = [...kept].find(([path]) => path.endsWith(name))!;
      assert.ok(Buffer.from(own.data).equals(Buffer.from(data)), name);
    }
  });

  void it('each picture of a conversation becomes its own vectors, where it stands', async () => {
    // A head of its own: more rows of the table are no more words to choose from.
    const { system, config } = await open('model.language.tied=false', 'data.windows=1');
    const params = system.init(openInitializer(3)) as {
      readonly vision: NfResNetParams;
      readonly prefix: { readonly kernel: tf.Tensor; readonly bias: tf.Tensor };
      readonly language: { readonly embedding: tf.Tensor };
    };
    const rows = colourRows(config).slice(0, 2);
    const examples = [rows[1]!, rows[0]!];
    const { arrays } = system.assemble(rows.map((row) => ({ ...row, examples })));
    const packed = uploadBatch(engine, { arrays, counts: {}, numTokens: 0 });
    const images = unpackedPictures(packed['pictures']!, config.data);
    const read = nfResNet(params.vision, images).arraySync() as number[][];
    assert.equal(read.length, 6);
    const kernel = params.prefix.kernel.arraySync() as number[][];
    const bias = params.prefix.bias.arraySync() as number[];
    const vectors = read.flatMap((state) =>
      Array.from({ length: PREFIX }, (_, n) =>
        Array.from({ length: WIDTH }, (__, k) => {
          const out = n * WIDTH + k;
          return state.reduce((sum, value, d) => sum + value * kernel[d]![out]!, bias[out]!);
        }),
      ),
    );
    assertReadAsWords(system, params, packed, vectors);
  });
});

test('whatever else is frozen, or a language model that is trained, is refused', () => {
  const text = readFileSync(new URL('../recipes/frozen.yaml', import.meta.url), 'utf8');
  const resolve = (parts: string) =>
    resolveConfig({
      ...{ text, file: 'frozen', stage: 'captioning' },
      overrides: [`train.frozen=[${parts}]`],
    });
  assert.doesNotThrow(() => resolve('language'));
  for (const parts of ['', 'vision', 'language, vision', 'language/blocks'])
    assert.throws(() => resolve(parts), /the language model is frozen and nothing else: set train/);
  const others = (override: string) =>
    resolveConfig({ ...{ text, file: 'frozen', stage: 'captioning' }, overrides: [override] });
  assert.throws(() => others('train.microbatchSize=1'), /has too few other clips to stand before/);
  assert.throws(() => others('model.tuning={method: prompt, tokens: 2}'), /never changes here/);
});

test('captions are what is trained on, in place of each question about the same clip', async () => {
  const { config } = await open();
  const arranged = frozen.arrange!(config, TEST_SAMPLES);
  assert.equal(arranged.length, TEST_SAMPLES.length);
  for (const [i, { id, media, text, parts }] of arranged.entries()) {
    assert.deepEqual([id, media, parts], [TEST_SAMPLES[i]!.id, TEST_SAMPLES[i]!.media, undefined]);
    const even = media[0]!.file % 2 === 0;
    assert.equal(text, even ? 'a red circle moves left' : 'a blue star moves up');
  }
  const plain = { ...arranged[0]!, text: 'a dog' };
  assert.deepEqual(frozen.arrange!(config, [plain]), [plain]);
});

test('asked behind an example, a row has that clip, its question and its answer before its own', async () => {
  const { system, config } = await open('data.windows=1');
  const rows = colourRows(config).slice(0, 2);
  const [alone, behind, foreign] = [
    ...['what colour is it ?', 'what colour is it ?, after an example'],
    'what colour is it ?, another picture',
  ].map((name) => taskOf(system, name).assemble(rows)) as [HostBatch, HostBatch, HostBatch];
  const present = ({ arrays }: HostBatch): number[] =>
    [0, 1].map((row) => {
      const { data, shape } = arrays['present']!;
      return [...data.slice(row * shape[1]!, (row + 1) * shape[1]!)].filter((one) => one > 0)
        .length;
    });
  const [own, more] = [present(alone), present(behind)];
  // Two vectors, what is asked in five pieces and more, a sign, the answer and its end.
  for (const row of [0, 1]) assert.ok(more[row]! >= own[row]! + 9, `${own[row]} and ${more[row]}`);
  const [first, second] = [0, 1].map((row) => picturesOf(alone, config, row)[0]!);
  assert.notDeepEqual(first, second);
  assert.deepEqual(picturesOf(behind, config, 0), [second, first]);
  assert.deepEqual(picturesOf(behind, config, 1), [first, second]);
  // The answers that count are the row's own, and what other pictures are beside is as it was.
  const task = taskOf(system, 'what colour is it ?');
  assert.deepEqual(task.labels(behind), task.labels(alone));
  assert.deepEqual(foreign.arrays['ids'], alone.arrays['ids']);
  assert.deepEqual(
    [0, 1].map((row) => picturesOf(foreign, config, row)[0]),
    [second, first],
  );
  const given = system.answers!.given({ ...rows[0]!, examples: [rows[1]!] }, 'what colour is it ?');
  assert.equal(given.question, 'what colour is it ?');
  assert.equal(given.words, 'what colour is it? blue what colour is it?');
});

test('every second caption is trained on behind the picture and the caption of another clip', async () => {
  const { system, config } = await open('data.windows=1');
  const rows = testRows(frozen.arrange!(config, TEST_SAMPLES), config);
  const batch = system.assemble(rows);
  const { data, shape } = batch.arrays['ids']!;
  for (const [row, { sample }] of rows.entries()) {
    const read = system.answers!.decode([...data.slice(row * shape[1]!, (row + 1) * shape[1]!)]);
    const asked = `what happens? ${sample.text}`;
    const other = rows
      .slice(row)
      .find((one) => one.sample.media[0]!.file !== sample.media[0]!.file);
    const [first, second] = picturesOf(batch, config, row);
    if (row % 2 === 0) assert.equal(read, asked);
    else {
      const example = other ?? rows[0]!;
      assert.equal(read, `what happens? ${example.sample.text} ${asked}`);
      assert.deepEqual(first, example.frames);
    }
    assert.deepEqual(row % 2 === 0 ? first : second, rows[row]!.frames);
  }
  // Captions and their ends alone count, once each.
  const words = rows.reduce((sum, { sample }) => sum + sample.text.split(' ').length + 1, 0);
  assert.equal(batch.counts['next-token'], words);
  const { system: alone } = await open('data.windows=1', 'model.examples=0');
  assert.equal(picturesOf(alone.assemble(rows), config, 1).length, 1);
});

test('pictures of others in training: words and examples stay, what is asked about is of another', async () => {
  const [own, permuted] = await Promise.all([
    open('data.windows=1'),
    open('data.windows=1', 'model.permuted=true'),
  ]);
  const rows = colourRows(own.config).slice(0, 2);
  const shown = rows.map((row) => ({ ...row, examples: [rows[0]!] }));
  const [one, other] = [own.system.assemble(shown), permuted.system.assemble(shown)];
  assert.deepEqual(other.arrays['ids'], one.arrays['ids']);
  const [first, second] = [0, 1].map((row) => picturesOf(one, own.config, row)[1]!);
  assert.deepEqual(picturesOf(other, own.config, 0), [first, second]);
  assert.deepEqual(picturesOf(other, own.config, 1), [first, first]);
  // What is asked of the run is asked about its own picture.
  assert.deepEqual(
    permuted.system.heldOutTasks[0]!.assemble(rows).arrays['pictures'],
    own.system.heldOutTasks[0]!.assemble(rows).arrays['pictures'],
  );
  assert.deepEqual(
    permuted.system.answers!.assemble(rows, 'what ?').arrays['pictures'],
    own.system.answers!.assemble(rows, 'what ?').arrays['pictures'],
  );
});

test('a language model reads other clips before, each with the question and what is said of it', async () => {
  const { system, config } = await openTestSystem('frozen', 'documents', [
    ...['model.language={width: 16, layers: 1, heads: 2, keyValueHeads: 2, mlpWidth: 24}'],
  ]);
  const rows = testRows(TEST_SAMPLES, config);
  const numbers = new Set<number>();
  for (let epoch = 0; epoch < 6; epoch++) {
    const { arrays } = system.assemble(rows.map((row) => ({ ...row, epoch })));
    const { data, shape } = arrays['ids']!;
    const labels = arrays['labels']!.data;
    for (const [row, { sample }] of rows.entries()) {
      const ids = [...data.slice(row * shape[1]!, (row + 1) * shape[1]!)];
      const answer = [...labels.slice(row * shape[1]!, (row + 1) * shape[1]!)];
      const asked = sample.text.split('\n')[0]!.replace(' ?', '?');
      // [SEP] is 3, [>] is 5.
      const end = answer.findIndex((label) => label >= 0);
      const examples = ids.slice(1, end).join().split(',3,').slice(0, -1);
      numbers.add(examples.length);
      for (const example of examples) {
        const words = system.answers!.decode(example.split(',').map(Number));
        const [said, reply] = words.split(asked).map((part) => part.trim());
        assert.ok(reply !== undefined && reply !== '', words);
        assert.ok(said!.includes(reply) || /circle moves|star moves/.test(reply), words);
      }
    }
  }
  assert.deepEqual([...numbers].sort(), [0, 1, 2]);
  // Who asks has given none.
  const { arrays } = system.answers!.assemble(rows.slice(0, 1), 'what colour is it ?');
  assert.ok(![...arrays['ids']!.data].includes(3));
});
