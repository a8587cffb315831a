import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { uploadBatch } from '../batches.ts';
import { openGenerator } from '../generation/generator.ts';
import { openInitializer } from '../initializer.ts';
import {
  initEncoderDecoder,
  readAll,
  writerOf,
  writtenLogits,
  type EncoderDecoderSizes,
} from '../models/encoder-decoder.ts';
import { CAPTIONED, captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { formulaWeights } from '../test/formula-weights.ts';
import { leavesOf } from '../tree.ts';
import { rightPairs } from './video-ofa.ts';

const OVERRIDES = [
  'data.frameSize=8',
  'model.patchSize=4',
  'model.encoder.width=8',
  'model.decoder.width=8',
];
const open = async (...more: string[]) =>
  openCaptioned('video-ofa', {
    ...{ preset: 'tiny', stage: 'clips', overrides: [...OVERRIDES, ...more] },
  });

test('token by token the decoder says what it says of the whole text', async () => {
  await openCpuEngine();
  const blocks = { width: 8, numLayers: 2, numHeads: 2, mlpWidth: 16 } as const;
  const kind = { activation: 'gelu-tanh', epsilon: 1e-5 } as const;
  const sizes: EncoderDecoderSizes = {
    picture: { width: 8, patchSize: 4, gridSize: 2, stem: undefined },
    encoder: { ...blocks, ...kind },
    decoder: { ...blocks, ...kind },
    ...{ vocabulary: 11, wordPositions: 6, gridPositions: 3, numFrames: 2 },
  };
  // As they begin, factors of heads are 1 and biases by distance 0.
  const params = formulaWeights(initEncoderDecoder(sizes, openInitializer(2)));
  const input = {
    pictures: tf.reshape(tf.sin(tf.range(0, 2 * 2 * 8 * 8 * 3)), [4, 8, 8, 3]),
    ids: tf.tensor2d([1, 2, 3, 4, 5, 0], [2, 3], 'int32'),
    present: tf.tensor2d([1, 1, 1, 1, 1, 0], [2, 3]),
  };
  const answer = [
    [1, 4, 7, 2],
    [1, 9, 3, 10],
  ];
  const whole = writtenLogits(
    params,
    tf.tensor2d(answer, [2, 4], 'int32'),
    readAll(params, input, sizes),
    sizes,
  );
  const expected = (await whole.array()) as number[][][];
  const writer = writerOf(sizes, 1);
  let { logits, state } = writer.prefill(params, input, 4);
  for (let step = 0; step < 4; step++) {
    const said = (await logits.array()) as number[][];
    for (const row of [0, 1]) {
      for (const [word, value] of said[row]!.entries()) {
        assert.ok(Math.abs(value - expected[row]![step]![word]!) < 1e-5, `${step} ${row} ${word}`);
      }
    }
    if (step === 3) break;
    const next = tf.tensor1d([answer[0]![step + 1]!, answer[1]![step + 1]!], 'int32');
    ({ logits, state } = writer.step(params, state, next));
  }
});

test('frames of a question of order are shuffled, and nothing else tells how', async () => {
  const { system, config } = await open();
  const rows = captionedRows(config);
  const task = system.heldOutTasks.find(({ name }) => name === 'frame-order-blind-accuracy')!;
  const { arrays } = task.assemble(rows);
  const { windows, frameSize } = config.data;
  const size = frameSize ** 2 * 3;
  const pixels = arrays['pixels']!.data;
  const bytes = new Uint8Array(pixels.buffer, pixels.byteOffset, pixels.byteLength);
  for (const [r, { frames }] of rows.entries()) {
    for (let at = 0; at < windows; at++) {
      const place = arrays['places']!.data[r * windows + at]!;
      const shown = bytes.subarray((r * windows + at) * size, (r * windows + at + 1) * size);
      assert.deepEqual([...shown], [...frames.subarray(place * size, (place + 1) * size)]);
    }
  }
  const length = arrays['ids']!.shape[1]!;
  const prompts = rows.map((_, r) => [...arrays['ids']!.data.slice(r * length, (r + 1) * length)]);
  assert.equal(new Set(prompts.map(String)).size, 1);
});

test('a caption stands in a prompt as it is, whatever its signs', async () => {
  const { system, config } = await open('model.tasks={caption: 0, match: 1, order: 0}');
  const row = captionedRows(config)[0]!;
  const lengthOf = (text: string): number => {
    const { arrays } = system.assemble([{ ...row, sample: { ...row.sample, text } }]);
    return [...arrays['present']!.data].filter((present) => present === 1).length;
  };
  // Every sign is a word of its own; `$$`, `$&` and `$'` mean something to String.replace.
  for (const text of ['red $$ star', "red $& star $'"]) {
    const numSigns = text.replaceAll(/[^$&']/g, '').length;
    assert.equal(lengthOf(text), lengthOf('red star') + numSigns, text);
  }
});

test('an order of frames whose numbers the tokenizer cannot tell is refused', async () => {
  const more = ['data.windows=16', 'model.answerTokens=20', 'model.wordPositions=64'];
  await open(...more);
  await assert.rejects(open(...more, 'model.vocabulary=48'), {
    ...{ code: 'CONFIG_INVALID', message: /data\.windows is 16, and \d+ is no word of the token/ },
  });
});

test('the answer to a question of order says which shown frame belongs to each sentence that it names', async () => {
  const only = 'model.tasks={caption: 0, match: 0, order: 1}';
  const { system, config } = await open(only, 'model.promptTokens=64', 'model.wordPositions=64');
  const { windows, frameSize } = config.data;
  const size = frameSize ** 2 * 3;
  const numNamed = new Set<number>();
  for (let epoch = 0; epoch < 6; epoch++) {
    const rows = captionedRows(config, CAPTIONED, epoch);
    const { arrays } = system.assemble(rows);
    const { data } = arrays['pixels']!;
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const written = (name: string, r: number): string => {
      const length = arrays[name]!.shape[1]!;
      const ids = [...arrays[name]!.data.slice(r * length, (r + 1) * length)];
      return system.answers!.decode(ids);
    };
    for (const [r, { sample, frames }] of rows.entries()) {
      const said = /"(.*)"/.exec(written('ids', r))![1]!.trim();
      const sentences = sample.cues.filter(({ text }) => said.includes(text));
      assert.equal(sentences.map(({ text }) => text).join(' '), said);
      const told = written('answers', r).split(' ').map(Number);
      assert.equal(told.length, sentences.length);
      numNamed.add(told.length);
      for (const [k, { startSeconds }] of sentences.entries()) {
        const at = (r * windows + told[k]!) * size; // one frame a second, one sentence a second
        const own = frames.subarray(startSeconds * size, (startSeconds + 1) * size);
        assert.deepEqual([...bytes.subarray(at, at + size)], [...own]);
      }
    }
  }
  assert.deepEqual([...numNamed].sort(), [1, 2, 3, 4]);
});

test('frames that are one and the same have no order: no pair of them is asked, and of pictures nothing', async () => {
  const only = 'model.tasks={caption: 0, match: 0, order: 1}';
  const [{ system, config }, mixed] = [await open(only), await open()];
  const shownAt = (timesSeconds: number[]) =>
    captionedRows(config).map((row) => ({
      ...{ ...row, timesSeconds },
      sample: { ...row.sample, cues: [] },
    }));
  const task = system.heldOutTasks.find(({ name }) => name === 'frame-order-accuracy')!;
  const twice = shownAt([0.5, 1.5, 1.5, 1.5]);
  const batch = task.assemble(twice);
  assert.equal(task.labels(batch).length, CAPTIONED.length * 3);
  const { data: places } = batch.arrays['places']!;
  for (let r = 0; r < twice.length; r++) {
    const length = batch.arrays['answers']!.shape[1]!;
    const ids = [...batch.arrays['answers']!.data.slice(r * length, (r + 1) * length)];
    const told = system.answers!.decode(ids).split(' ').map(Number);
    assert.equal(places[r * 4 + told[0]!], 0);
    assert.deepEqual(told.slice(1), told.slice(1).toSorted());
  }
  assert.equal(mixed.system.assemble(shownAt([0, 0, 0, 0])).counts['order'], 0);
});

test('an order that the answer has no room for is refused before anything is trained', async () => {
  await assert.rejects(
    open('data.windows=23'),
    /answerTokens .24. has no room.* set it to 25 or more/,
  );
  await open('data.windows=22');
});

test('a written order is right about a pair of frames that it names in their order', async () => {
  await openCpuEngine();
  const digits = Float32Array.from([-1, 0, 1, 2, 3]); // piece 0 is a word
  const written = [
    [3, 1, 4, 2], // frames 2, 0, 3, 1
    [3, 3, 0, 1], // 2, 2, a word, 0
  ];
  const places = [
    [1, 2, 0, 3], // shown frame 0 is the film's second, ...
    [1, 2, 0, 3],
  ];
  const found = rightPairs(
    {
      written: tf.tensor2d(written, [2, 4], 'int32'),
      places: tf.tensor2d(places, [2, 4], 'int32'),
    },
    digits,
  );
  const right = (await found.array()) as number[][][];
  for (const row of [0, 1]) {
    const order = written[row]!.map((id) => digits[id]!);
    for (let i = 0; i < 4; i++) {
      for (let j = 0; j < 4; j++) {
        if (i === j) continue; // never asked
        const [first, second] = [order.indexOf(i), order.indexOf(j)];
        const isNamed = first >= 0 && second >= 0;
        const isRight = isNamed && first < second === places[row]![i]! < places[row]![j]!;
        assert.equal(right[row]![i]![j], isRight ? 1 : 0, `${row}: ${i}, ${j}`);
      }
    }
  }
});

test('a caption that does not match is another one, and both answers are asked', async () => {
  const { system, config } = await open();
  const task = system.heldOutTasks.find(({ name }) => name === 'match-accuracy')!;
  const labels = task.labels(task.assemble(captionedRows(config)));
  const [first, second] = [...new Set(labels)];
  assert.equal(labels.filter((label) => label === first).length, 4);
  assert.equal(labels.filter((label) => label === second).length, 4);
});

test('whatever is asked, the words of the one decoder answer', async () => {
  const engine = await openCpuEngine();
  const { system, config } = await open();
  const params = system.init(openInitializer(3));
  const trees = new Set(leavesOf(params).map(([path]) => path.split('/')[0]));
  assert.deepEqual([...trees].sort(), ['frame', 'reader', 'words', 'writer']);
  for (const task of system.heldOutTasks) {
    const batch = task.assemble(captionedRows(config));
    const sums = system.sums(params, {}, uploadBatch(engine, batch));
    const [correct] = await sums[task.objective]!.correct.data();
    assert.ok(correct! >= 0 && correct! <= task.labels(batch).length, task.name);
  }
});

test('asked nothing it reads the question for a caption, else the question, and writes what evaluation sees it write', async () => {
  const engine = await openCpuEngine();
  const { system, config } = await open();
  const answers = system.answers!;
  const rows = captionedRows(config).slice(0, 2);
  const caption = system.heldOutTasks.find(({ name }) => name === 'caption-exact')!.assemble(rows);
  const asked = answers.assemble(rows, '');
  for (const [name, array] of Object.entries(asked.arrays)) {
    assert.deepEqual(array, caption.arrays[name], name);
  }
  assert.notDeepEqual(answers.assemble(rows, 'a red circle?').arrays['ids'], asked.arrays['ids']);

  const params = system.init(openInitializer(3));
  const generator = openGenerator(engine, answers.model, { maxNewTokens: answers.maxNewTokens });
  const written = await generator.generate({ params, frozen: {} }, uploadBatch(engine, asked), {
    strategy: { kind: 'greedy' },
    eosIds: answers.eosIds,
  });
  const whole = caption.arrays['answers']!;
  const length = whole.shape[1]!;
  const data = Int32Array.from(whole.data);
  for (const [r, { ids, isFinished }] of written.entries()) {
    data.set([...ids, ...(isFinished ? answers.eosIds : [])], r * length + 1);
  }
  const expected = { ...caption.arrays, answers: { data, shape: whole.shape } };
  const sums = system.sums(params, {}, uploadBatch(engine, { ...caption, arrays: expected }));
  assert.equal((await sums['caption']!.correct.data())[0], rows.length);
  data[1 + Math.floor(written[0]!.ids.length / 2)]! ^= 1; // one word of the first row
  const wrong = system.sums(params, {}, uploadBatch(engine, { ...caption, arrays: expected }));
  assert.equal((await wrong['caption']!.correct.data())[0], rows.length - 1);
});

test('tables of positions have rows for larger pictures and longer texts than are used, and never fewer', async () => {
  const shapesOf = async (...overrides: string[]) => {
    const { system } = await openCaptioned('video-ofa', {
      ...{ preset: 'tiny', stage: 'clips' },
      overrides: ['model.gridPositions=5', 'model.wordPositions=60', ...overrides],
    });
    return leavesOf(system.init(openInitializer(1))).map(([path, { shape }]) => [path, shape]);
  };
  const small = await shapesOf('data.frameSize=16', 'model.promptTokens=20');
  assert.deepEqual(await shapesOf('data.frameSize=40', 'model.promptTokens=60'), small);
  for (const [override, message] of [
    ['model.wordPositions=35', /wordPositions \(35\) is less than model\.promptTokens \(36\)/],
    ['model.answerTokens=37', /wordPositions \(36\) is less than model\.answerTokens \(37\)/],
    ['model.gridPositions=3', /gridPositions \(3\) is less than .*patchSize \(4\)/],
  ] as const) {
    await assert.rejects(openCaptioned('video-ofa', { preset: 'tiny', overrides: [override] }), {
      ...{ code: 'CONFIG_INVALID', message },
    });
  }
});

test('weight decay leaves tables, norms and factors of heads alone', async () => {
  const { system } = await open();
  const decayed = leavesOf(system.init(openInitializer(1)))
    .filter(([path, { shape }]) => system.decays(path, path.includes('*') ? shape.slice(1) : shape))
    .map(([path]) => path);
  assert.ok(decayed.length > 0 && decayed.every((path) => path.endsWith('/kernel')));
  const kernels = leavesOf(system.init(openInitializer(1))).filter(([path]) =>
    path.endsWith('/kernel'),
  );
  assert.equal(decayed.length, kernels.length);
});
