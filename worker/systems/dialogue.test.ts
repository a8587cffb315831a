import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openTokenizer, trainTokenizer } from '../../video/text/tokenizer.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { openInitializer } from '../initializer.ts';
import { NO_LABEL } from '../losses/next-token.ts';
import { adamWScalars, initAdamW } from '../optim/adamw.ts';
import { compilePrograms } from '../programs.ts';
import { openTestSystem } from '../test/open-system.ts';
import { leavesOf, mapTree } from '../tree.ts';
import {
  assembleDialogues,
  dialogueGiven,
  filledTemplate,
  turnsOf,
  type Piece,
} from './dialogue.ts';
import { questionGiven } from './question-given.ts';
import { spokenDuring } from './subtitles.ts';
import { wholeWords } from './whole-words.ts';

const tokenizer = openTokenizer(
  trainTokenizer(['what is it ?', 'a red cat', 'one two three four five six'], {
    vocabularySize: 200,
  }),
);
const { pad, cls, sep } = tokenizer.special;
const idOf = (word: string): number => tokenizer.encode(word)[0]!;

test('a word that is several pieces, or unknown, is none that one token can ask for', () => {
  assert.ok(tokenizer.encode('cared').length > 1);
  assert.deepEqual(tokenizer.encode('☃'), [tokenizer.special.unk]);
  const known = wholeWords(tokenizer, ['red', 'cared', '☃', 'cat']);
  assert.deepEqual(
    [...known],
    [
      ['red', idOf('red')],
      ['cat', idOf('cat')],
    ],
  );
});

test('a template gives words and the places of soft tokens in its order', () => {
  const pieces = filledTemplate('[CLS] {seen} {question} [>]', {
    seen: [{ numSoft: 2 }],
    question: [{ words: 'what is it ?' }],
  });
  assert.deepEqual(pieces, [
    { words: '[CLS] ' },
    { numSoft: 2 },
    { words: 'what is it ?' },
    { words: ' [>]' },
  ]);
});

test('a template that names what there is not, or leaves out what there is, is refused', () => {
  const values = { seen: [{ numSoft: 1 }] };
  assert.throws(() => filledTemplate('{seen} {sene}', values), { code: 'TEMPLATE_INVALID' });
  assert.throws(() => filledTemplate('nothing', values), { code: 'TEMPLATE_INVALID' });
});

test('labels are the answer and its end alone; soft tokens are numbered, padding is nobody', () => {
  const { ids, present, softRows, labels, labelWeights } = assembleDialogues(
    { tokenizer, length: 10 },
    [
      [
        { words: '[CLS] ' },
        { numSoft: 2 },
        { words: 'it' },
        { numSoft: 1 },
        { words: 'red cat', isAnswer: true },
      ],
    ],
  );
  const [it, red, cat] = [idOf('it'), idOf('red'), idOf('cat')];
  assert.deepEqual([...ids.data], [cls, pad, pad, it, pad, red, cat, sep, pad, pad]);
  assert.deepEqual([...softRows.data], [-1, 0, 1, -1, 2, -1, -1, -1, -1, -1]);
  assert.deepEqual([...present.data], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
  const none = NO_LABEL;
  assert.deepEqual([...labels.data], [none, none, none, none, none, red, cat, sep, none, none]);
  assert.deepEqual([...labelWeights.data], [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]);
});

test('what does not fit is cut off words, never off soft tokens', () => {
  const row = [
    { words: '[CLS]' },
    { numSoft: 4 },
    { words: 'one two three four five six' },
    { words: 'cat', isAnswer: true },
  ];
  const { ids, softRows, present } = assembleDialogues({ tokenizer, length: 9 }, [row]);
  assert.deepEqual(
    [...softRows.data].filter((at) => at >= 0),
    [0, 1, 2, 3],
  );
  assert.deepEqual([...ids.data].slice(5), [idOf('one'), idOf('two'), idOf('cat'), sep]);
  assert.ok(present.data.every((is) => is === 1));
  assert.throws(() => assembleDialogues({ tokenizer, length: 5 }, [row]), {
    code: 'PROMPT_TOO_LONG',
  });
});

test('a question is shown as far as it is given, what else is read beside it', () => {
  const asked = { words: 'one two three four five six', isQuestion: true };
  const seen = [{ words: '[CLS]' }, { numSoft: 4 }];
  const given = (length: number, ...pieces: readonly Piece[]) =>
    dialogueGiven({ tokenizer, length }, [...seen, ...pieces, { words: '[>]' }]);
  assert.deepEqual(given(12, asked), { question: asked.words });
  assert.deepEqual(given(9, asked), { question: 'one two three', cutTo: 3 });
  assert.deepEqual(given(14, { words: 'a cat' }, asked), {
    ...{ question: asked.words, words: 'a cat one two three four five six' },
  });
  assert.deepEqual(questionGiven(tokenizer, 'a [MASK] cat is [MASK] red', 5), {
    ...{ question: 'a [MASK] cat is [MASK]', cutTo: 5 },
  });
});

test('a caption answers the question that describes; a conversation has its own', () => {
  const sample = { id: 'a', media: [], cues: [], decodeMegapixels: 0, text: 'a red cat' };
  assert.deepEqual(turnsOf(sample, 'what is it ?'), [
    { question: 'what is it ?', answer: 'a red cat' },
  ]);
  const parts = [
    { role: 'user', media: 0 },
    { role: 'user', text: 'one ?' },
    { role: 'assistant', text: 'two' },
    { role: 'user', text: 'three ?' },
    { role: 'assistant', text: 'four' },
  ] as const;
  assert.deepEqual(turnsOf({ ...sample, parts }, 'what is it ?'), [
    { question: 'one ?', answer: 'two' },
    { question: 'three ?', answer: 'four' },
  ]);
});

test('subtitles are given once, with the frame during which they begin', () => {
  const cue = (startSeconds: number, text: string) => ({
    ...{ startSeconds, endSeconds: startSeconds + 5, text },
  });
  const cues = [
    cue(0, 'before'),
    cue(1.2, 'in the first'),
    cue(2, 'at the second'),
    cue(9, 'late'),
  ];
  assert.deepEqual(spokenDuring(cues, [1, 2, 3]), ['before in the first', 'at the second', 'late']);
});

test("a step takes weight decay off matrices, LoRA's too, and off nothing else", async () => {
  const engine = await openCpuEngine();
  const { system, config } = await openTestSystem('minigpt4-video', 'instruction', [
    'data.frameSize=32',
  ]);
  const { optimizer } = config;
  assert.ok(optimizer.weightDecay > 0);
  const programs = compilePrograms(engine, system, optimizer);
  // LoRA's B begins as zero, which shows no decay.
  const params = mapTree(system.init(openInitializer(3)), ({ shape }) => tf.fill(shape, 0.5));
  const paths = leavesOf(params).map(([path]) => path);
  const numParameters = leavesOf(params).reduce((sum, [, { size }]) => sum + size, 0);
  const learningRate = 0.1;
  const scalars = adamWScalars(optimizer, { step: 1, learningRate, gradientScale: 1 });
  const updated = await programs.update(
    params,
    initAdamW(params),
    tf.zeros([numParameters]),
    tf.tensor1d(scalars),
  );
  const decayed = 0.5 * (1 - learningRate * optimizer.weightDecay);
  for (const [path, tensor] of leavesOf(updated.params)) {
    const isMatrix = /\/kernel$/.test(path) || /^lora\/.*\/(a|b)$/.test(path);
    const value = tensor.dataSync()[0]!;
    assert.ok(Math.abs(value - (isMatrix ? decayed : 0.5)) < 1e-6, `${path}: ${value}`);
  }
  for (const name of ['a', 'b'])
    assert.ok(paths.some((path) => path.startsWith('lora/') && path.endsWith(`/${name}`)));
});
