import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openRng } from '../../proto/random.ts';
import { picturedPatches, patchFeatures } from '../../video/visual-words/patch-features.ts';
import {
  assignVisualWords,
  featuresOfWords,
  fitVisualVocabulary,
} from '../../video/visual-words/visual-vocabulary.ts';
import { openTokenizer, trainTokenizer } from '../../video/text/tokenizer.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { uploadBatch } from '../batches.ts';
import { openGenerator } from '../generation/generator.ts';
import { openInitializer } from '../initializer.ts';
import { NO_LABEL } from '../losses/next-token.ts';
import { CAPTIONED, captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { drawnSpan, withSpanLast } from '../tokens/infill-span.ts';
import { mapTree, type TensorTree } from '../tree.ts';
import { openCm3leonAssembler, type Cm3leonAssembly } from './cm3leon-batch.ts';
import { everyExchange } from './picture-words.ts';
import type { HostBatch, Row } from './system.ts';
import { wholeSpans } from './whole-answers.ts';

/** Four patches of 4 x 4 pixels, which are of few looks. */
const [SIZE, PATCH] = [8, 4];
const NUM_PATCHES = 4;

function paintedRows(texts: readonly string[], epoch = 0): Row[] {
  const shades = [0, 90, 170, 250];
  return texts.map((text, number) => ({
    sample: { ...CAPTIONED[number % 8]!, id: String(number), text },
    ...{ number, epoch, timesSeconds: [0.5] },
    frames: Uint8Array.from({ length: SIZE * SIZE * 3 }, (_, i) => {
      const [x, y] = [Math.floor(i / 3) % SIZE, Math.floor(i / 3 / SIZE)];
      return shades[(number + Math.floor(x / PATCH) + 2 * Math.floor(y / PATCH)) % 4]!;
    }),
  }));
}

const TEXTS = [
  ...CAPTIONED.map(({ text }) => text),
  // What is spelt like a mark is none.
  'a [>] red circle [MASK] moves [SEP] left',
  'star',
  'a red circle moves left a blue star moves right a pink square moves left',
];
const tokenizer = openTokenizer(trainTokenizer(TEXTS, { vocabularySize: 90 }));
const codebook = fitVisualVocabulary(
  Float32Array.from(
    paintedRows(TEXTS).flatMap(({ frames }) => [
      ...patchFeatures(frames, { size: SIZE, patchSize: PATCH }),
    ]),
  ),
  { branching: 4, depth: 1, seed: 1, pcaDims: 8, featureWidth: 48 },
);

function assembler(more: Partial<Cm3leonAssembly> = {}) {
  return openCm3leonAssembler({
    ...{ seed: 3, tokenizer, codebook, frameSize: SIZE, patchSize: PATCH, textTokens: 12 },
    positions: 40,
    ...{ pictureFirst: 0.5, spans: { text: 0.5, picture: 0.4, whole: 0.3 }, permuted: false },
    ...more,
  });
}

/** The sequences of a batch without padding. */
function sequencesOf({ arrays }: HostBatch, pad: number, name = 'ids'): number[][] {
  const { data, shape } = arrays[name]!;
  const length = shape.at(-1)!;
  return Array.from({ length: data.length / length }, (_, i) => [
    ...data.subarray(i * length, (i + 1) * length),
  ]).map((ids) => ids.filter((id) => id !== pad));
}

test('no span crosses a <break>, and put back in its place it makes the document whole', () => {
  const { vocabulary, training, wordsOf, pictureOf } = assembler();
  const { eos, mask, infill, pad, firstCode } = vocabulary;
  const seen = new Map<string, number>();
  for (let epoch = 0; epoch < 400; epoch++) {
    const rows = paintedRows(TEXTS, epoch);
    for (const [i, ids] of sequencesOf(training(rows), pad).entries()) {
      const [words, codes] = [wordsOf(TEXTS[i]!), pictureOf(rows[i]!)];
      assert.ok(!words.includes(vocabulary.break) && !words.includes(mask) && words.length <= 12);
      const [hole, told] = [ids.indexOf(mask), ids.indexOf(infill)];
      const span = told < 0 ? [] : ids.slice(told + 1, -1);
      const whole =
        told < 0 ? ids : [...ids.slice(0, hole), ...span, ...ids.slice(hole + 1, told), eos];
      assert.equal(hole < 0, told < 0);
      if (told >= 0) {
        assert.ok(span.length > 0 && !span.includes(vocabulary.break), ids.join());
        const isCode = span.map((id) => id >= firstCode);
        assert.equal(new Set(isCode).size, 1, 'of one modality');
        assert.equal(ids.filter((id) => id === mask || id === infill).length, 2);
      }
      const end = vocabulary.break;
      const [textFirst, pictureFirst] = [[words, codes], [codes, words]].map(([a, b]) => [eos, ...a!, end, ...b!, end, eos]); // prettier-ignore
      const isTextFirst = whole.join() === textFirst!.join();
      assert.ok(isTextFirst || whole.join() === pictureFirst!.join(), whole.join());
      const parts = span.length === 0 ? 'none' : span[0]! >= firstCode ? 'picture' : 'text';
      const size = parts === 'picture' ? codes.length : words.length;
      for (const kind of [
        parts,
        isTextFirst ? 'text first' : 'picture first',
        ...(span.length === size ? ['whole'] : []),
      ])
        // prettier-ignore
        seen.set(kind, (seen.get(kind) ?? 0) + 1);
    }
  }
  const share = (kind: string): number => seen.get(kind)! / (400 * TEXTS.length);
  const shares = { none: 0.1, text: 0.5, picture: 0.4, 'text first': 0.5, 'picture first': 0.5 };
  for (const [kind, wanted] of Object.entries(shares))
    assert.ok(Math.abs(share(kind) - wanted) < 0.03, `${kind} ${share(kind)}`);
  assert.ok(share('whole') > 0.3);
});

test('spans have all lengths and all places, 100,000 times within their modality', () => {
  const rng = openRng(1, 'spans');
  const lengths = new Map<number, number>();
  for (let i = 0; i < 100_000; i++) {
    const length = 1 + (i % 9);
    const { start, end } = drawnSpan(length, rng);
    assert.ok(start >= 0 && end > start && end <= length);
    if (length === 5) lengths.set(end - start, (lengths.get(end - start) ?? 0) + 1);
  }
  for (const size of [1, 2, 3, 4, 5]) assert.ok(Math.abs(lengths.get(size)! / 11_111 - 0.2) < 0.02);
  assert.deepEqual(
    withSpanLast([1, 2, 3, 4, 5], { start: 1, end: 3 }, { mask: 8, infill: 9 }),
    [1, 8, 4, 5, 9, 2, 3],
  );
});

test('every token is predicted but <mask>, and what begins a sequence', () => {
  const { vocabulary, training } = assembler();
  const batch = training(paintedRows(TEXTS));
  const { data: ids } = batch.arrays['ids']!;
  const { data: labels } = batch.arrays['labels']!;
  for (const [at, id] of ids.entries()) {
    const isAsked = id !== vocabulary.mask && id !== vocabulary.pad;
    assert.equal(labels[at], isAsked ? id : NO_LABEL);
  }
  const numAsked = [...labels].filter((label) => label >= 0).length;
  assert.equal(batch.counts['next-token'], numAsked - TEXTS.length);
});

test('permuted, words keep their order and spans, and the pictures are those of others', () => {
  const rows = paintedRows(TEXTS.slice(0, 4));
  const { vocabulary, training, captions } = assembler();
  const other = assembler({ permuted: true });
  const parts = (batch: HostBatch) =>
    sequencesOf(batch, vocabulary.pad).map((ids) => ({
      words: ids.filter((id) => id < vocabulary.firstCode || id === vocabulary.infill),
      codes: ids.filter((id) => id >= vocabulary.firstCode && id !== vocabulary.infill),
    }));
  const [own, permuted] = [parts(training(rows)), parts(other.training(rows))];
  for (const [i, { words, codes }] of own.entries()) {
    assert.deepEqual(permuted[i]!.words, words);
    assert.notDeepEqual(permuted[i]!.codes, codes);
  }
  const asked = [captions, other.captions].map((ask) => ask(rows, 'infilled', () => 0));
  assert.deepEqual(asked[0], asked[1], 'held-out ones keep their own');
});

test('a picture comes back from its codes: of as many codes as looks exactly', () => {
  for (const { frames } of paintedRows(TEXTS.slice(0, 4))) {
    const shape = { size: SIZE, patchSize: PATCH };
    const features = patchFeatures(frames, shape);
    assert.deepEqual(picturedPatches(features, shape), frames);
    const codes = assignVisualWords(codebook, features);
    const back = picturedPatches(featuresOfWords(codebook, codes), shape);
    for (const [i, value] of back.entries()) assert.ok(Math.abs(value - frames[i]!) <= 1);
  }
});

const OVERRIDES = ['data.frameSize=16', 'model.decoder={width: 8, mlpWidth: 12}'];

async function opened(seed = 3) {
  const engine = await openCpuEngine();
  const { system, config } = await openCaptioned('cm3leon', {
    preset: 'tiny',
    overrides: OVERRIDES,
  });
  // Louder than at the start, so that all has a say.
  let number = seed;
  const params = mapTree<TensorTree>(system.init(openInitializer(seed)), ({ shape }) =>
    tf.randomNormal([...shape], 0, 0.7, 'float32', ++number),
  );
  const rows = captionedRows(config);
  return { engine, system, params, rows };
}

/** The held-out questions by the beginning of their names. */
async function taskOf(name: string) {
  const all = await opened();
  const task = all.system.heldOutTasks.find((own) => own.name.startsWith(name))!;
  const batch = task.assemble(all.rows.slice(0, 6));
  const sums = (arrays: HostBatch['arrays']): { loss: number; correct: number } => {
    const own = all.system.sums(all.params, {}, uploadBatch(all.engine, { ...batch, arrays }));
    const { lossSum, correct } = own['next-token']!;
    return { loss: lossSum.dataSync()[0]!, correct: correct.dataSync()[0]! };
  };
  return { ...all, task, batch, sums };
}

test('captions are compared by the likelihood of the picture alone, and rows count that have one', async () => {
  const { batch, sums, engine, system, params, task } = await taskOf('caption of');
  const { candidates, candidateWeights, answers, answerWeights } = batch.arrays;
  const [numRows, numCaptions, length] = candidates!.shape as [number, number, number];
  assert.equal(numCaptions, 8, 'as many as there are');
  assert.equal(new Set(task.labels(batch)).size > 2, true, 'its own stands anywhere');
  // Each candidate by itself, as a training sequence whose picture alone is asked.
  const lossOf = (row: number, caption: number): number => {
    const at = (row * numCaptions + caption) * length;
    const ids = candidates!.data.slice(at, at + length) as Int32Array;
    const labels = ids.map((id, i) => (candidateWeights!.data[at + i] === 1 ? id : NO_LABEL));
    assert.equal(labels.filter((label) => label >= 0).length, NUM_PATCHES);
    const arrays = {
      ids: { data: ids, shape: [1, length] },
      labels: { data: labels, shape: [1, length] },
    };
    const inputs = uploadBatch(engine, { arrays, counts: {}, numTokens: 0 });
    return system.sums(params, {}, inputs)['next-token']!.lossSum.dataSync()[0]!;
  };
  let [loss, correct] = [0, 0];
  for (let row = 0; row < numRows; row++) {
    const losses = Array.from({ length: numCaptions }, (_, caption) => lossOf(row, caption));
    const own = answers!.data[row]!;
    loss += losses[own]! + Math.log(losses.reduce((sum, value) => sum + Math.exp(-value), 0));
    correct += losses.indexOf(Math.min(...losses)) === own ? 1 : 0;
  }
  const found = sums(batch.arrays);
  assert.ok(Math.abs(found.loss / loss - 1) < 1e-4, `${found.loss} ${loss}`);
  assert.equal(found.correct, correct);
  const nothing = { ...answerWeights!, data: new Float32Array(numRows) };
  assert.deepEqual(sums({ ...batch.arrays, answerWeights: nothing }), { loss: 0, correct: 0 });
});

test('a caption is asked with its end, behind its picture and nothing of it', () => {
  const { vocabulary, captions, wordsOf, pictureOf } = assembler();
  const { eos, mask, infill, pad } = vocabulary;
  const rows = paintedRows(TEXTS);
  for (const form of ['infilled', 'continued'] as const) {
    const batch = captions(rows, form, (text) => TEXTS.indexOf(text));
    assert.deepEqual([...batch.arrays['answerClasses']!.data], [...TEXTS.keys()]);
    const { data: weights, shape } = batch.arrays['captionWeights']!;
    for (const [i, ids] of sequencesOf(batch, pad).entries()) {
      const [words, codes] = [wordsOf(TEXTS[i]!), pictureOf(rows[i]!)];
      const end = vocabulary.break;
      const before =
        form === 'continued' ? [eos, ...codes, end] : [eos, mask, end, ...codes, end, infill];
      const told = form === 'continued' ? [...words, end] : [...words, eos];
      assert.deepEqual(ids, [...before, ...told, ...(form === 'continued' ? [eos] : [])]);
      const asked = weights.subarray(i * shape[1]!, (i + 1) * shape[1]!);
      for (const [at, weight] of asked.entries())
        assert.equal(weight, at >= before.length && at < before.length + told.length ? 1 : 0);
    }
  }
});

test('an answer is whole where all of its asked tokens are the likeliest', async () => {
  await openCpuEngine();
  // Row by row what is guessed behind each token.
  const ids = [1, 2, 3, 4];
  const guesses = [
    [2, 3, 4, 0],
    [0, 3, 4, 0],
    [2, 0, 4, 0],
    [2, 3, 0, 4],
  ];
  const logits = tf.oneHot(tf.tensor2d(guesses, undefined, 'int32'), 5);
  const rows = tf.tensor2d(guesses.map(() => ids), undefined, 'int32'); // prettier-ignore
  const asked = tf.tensor2d(guesses.map(() => [0, 0, 1, 1])); // prettier-ignore
  const whole = wholeSpans(tf.cast(logits, 'float32'), rows, asked);
  assert.deepEqual(whole.arraySync(), [1, 1, 0, 0]);
});

test('what is to be filled in is asked as it was trained, and pictures are drawn of a text and of none', async () => {
  const { vocabulary, captions, toInfill, toDraw, wordsOf, pictureOf } = assembler();
  const { eos, mask, infill, pad } = vocabulary;
  const rows = paintedRows(TEXTS.slice(0, 3));
  const end = vocabulary.break;
  const trained = sequencesOf(captions(rows, 'infilled', () => 0), pad); // prettier-ignore
  for (const [i, ids] of sequencesOf(toInfill(rows, '[MASK]'), pad).entries())
    assert.deepEqual(ids, trained[i]!.slice(0, ids.length));
  const [part] = sequencesOf(toInfill(rows.slice(0, 1), 'a red [MASK] moves left'), pad);
  const [before, after] = [wordsOf('a red'), wordsOf('moves left')];
  assert.deepEqual(part, [
    eos,
    ...before,
    mask,
    ...after,
    end,
    ...pictureOf(rows[0]!),
    end,
    infill,
  ]);
  // With 24 places 3 words are left beside a picture and 12 that may be written.
  const [cut] = sequencesOf(
    assembler({ positions: 24 }).toInfill(rows.slice(0, 1), 'a red [MASK] moves left'),
    pad,
  );
  assert.deepEqual(cut!.slice(0, 5), [eos, ...before, mask, after[0]]);
  assert.equal(cut!.length + 12, 24);
  const drawn = toDraw(TEXTS.slice(0, 2));
  assert.deepEqual(
    sequencesOf(drawn, pad),
    TEXTS.slice(0, 2).map((text) => [eos, ...wordsOf(text), end]),
  );
  for (const ids of sequencesOf(drawn, pad, 'unaskedIds')) assert.deepEqual(ids, [eos, mask, end]);

  const { engine, system, params } = await opened();
  const { draws } = system;
  const generator = openGenerator(engine, draws!.model, { maxNewTokens: draws!.numTokens });
  const prompt = uploadBatch(engine, draws!.assemble(['a red circle', 'a blue star']));
  const strategy = { kind: 'sample', seed: 1 } as const;
  const pictures = await generator.generate({ params, frozen: {} }, prompt, {
    strategy,
    eosIds: [],
  });
  for (const { ids } of pictures) {
    assert.equal(ids.length, NUM_PATCHES);
    const { pixels, width } = draws!.picture(ids);
    assert.deepEqual([pixels.length, width], [16 * 16 * 3, 16]);
    assert.ok(ids.every((id) => Number.isInteger(id)) && pixels.some((value) => value > 0));
  }
  assert.equal(draws!.textOf('a [MASK] circle', 'red'), 'a red circle');
  assert.equal(draws!.textOf('a blue star', 'a red circle'), 'a blue star');
  assert.equal(draws!.textOf('', 'a red circle'), 'a red circle');
});

test('a caption has one for each word of a list in the place of its own', () => {
  const list = ['red', 'pink', 'blue'];
  assert.deepEqual(everyExchange('a blue star , a red star', list), {
    texts: ['a red star , a red star', 'a pink star , a red star', 'a blue star , a red star'],
    own: 2,
  });
  assert.equal(everyExchange('a white star', list), undefined);
});
