import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openTokenizer, trainTokenizer } from '../../video/text/tokenizer.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { openInitializer } from '../initializer.ts';
import { NO_LABEL } from '../losses/next-token.ts';
import { adamWScalars, initAdamW } from '../optim/adamw.ts';
import { compilePrograms } from '../programs.ts';
import { byteLevelTokenizer } from '../test/byte-level-tokenizer.ts';
import { openTestSystem } from '../test/open-system.ts';
import { leavesOf, mapTree } from '../tree.ts';
import {
  assembleDialogues,
  dialogueGiven,
  filledTemplate,
  readIds,
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

test('rows of one prompt are cut alike, as the longest answer has it', () => {
  const asked: Piece[] = [
    { words: 'one two three four five six', isContext: true },
    { words: ' what is it ?', isQuestion: true },
  ];
  const rows = ['red', 'a red cat'].map((words): Piece[] => [...asked, { words, isAnswer: true }]);
  const promptsOf = (rowsOfOnePrompt?: number): number[][] => {
    const made = assembleDialogues({ tokenizer, length: 11 }, rows, { rowsOfOnePrompt });
    return rows.map((_, row) => {
      const first = made.labelWeights.data.subarray(row * 11, (row + 1) * 11).indexOf(1);
      return [...readIds(made, row)].slice(0, first);
    });
  };
  const [short, long] = promptsOf() as [number[], number[]];
  assert.deepEqual([short.length, long.length], [9, 7]);
  assert.deepEqual(promptsOf(2), [long, long]);
});

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
    { words: ' ' },
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

test('what does not fit is cut off the answer and its end, then off the question, never off soft tokens', () => {
  const row = (question: string, answer: string): Piece[] => [
    ...[{ words: '[CLS] ' }, { numSoft: 4 }, { words: question, isQuestion: true }],
    { words: answer, isAnswer: true },
  ];
  const longQuestion = row('one two three four five six', 'cat');
  const { ids, softRows, present, labels } = assembleDialogues({ tokenizer, length: 9 }, [
    longQuestion,
  ]);
  assert.deepEqual(
    [...softRows.data].filter((at) => at >= 0),
    [0, 1, 2, 3],
  );
  const cat = idOf('cat');
  assert.deepEqual([...ids.data].slice(5), [idOf('one'), idOf('two'), idOf('three'), cat]);
  assert.deepEqual([...labels.data].slice(7), [NO_LABEL, cat]);
  assert.ok(present.data.every((is) => is === 1));
  assert.throws(() => assembleDialogues({ tokenizer, length: 6 }, [longQuestion]), {
    code: 'PROMPT_TOO_LONG',
  });
});

test('however long an answer is, it is trained on the prompt that is given when it is asked', () => {
  const prompt = filledTemplate('what {seen} it {question} is [>]', {
    seen: [{ numSoft: 4 }],
    question: [{ words: 'one two three', isQuestion: true }],
  });
  const [asked, trained] = [
    prompt,
    [...prompt, { words: 'a cat '.repeat(30), isAnswer: true }],
  ].map((pieces) => assembleDialogues({ tokenizer, length: 24 }, [pieces]));
  const size = asked!.present.data.indexOf(0);
  assert.equal(size, 'what it one two three is [>]'.split(' ').length + 4);
  for (const name of ['ids', 'softRows'] as const)
    assert.deepEqual(trained![name].data.subarray(0, size), asked![name].data.subarray(0, size));
  const said = Array.from({ length: 24 - size }, (_, i) => idOf(i % 2 === 0 ? 'a' : 'cat'));
  assert.deepEqual([...trained!.labels.data.subarray(size)], said, 'and no end token');
});

test('what is said beside the question gives way to an answer', () => {
  const row = [
    ...[
      { words: '[CLS]' },
      { numSoft: 2 },
      { words: 'a red cat', isContext: true },
      { numSoft: 1 },
    ],
    ...[{ words: 'is it ?', isQuestion: true }, { words: ' [>]' }],
    { words: 'two cat', isAnswer: true },
  ];
  const read = (length: number): string => {
    const arrays = assembleDialogues({ tokenizer, length }, [row]);
    return [...readIds(arrays, 0)].map((id) => tokenizer.pieceOf(id)).join(' ');
  };
  const [seen, beside] = ['[CLS] [PAD] [PAD]', '[PAD] is it ? [>] two cat [SEP]'];
  assert.equal(read(14), `${seen} a red cat ${beside}`);
  assert.equal(read(12), `${seen} a ${beside}`);
  assert.equal(read(11), `${seen} ${beside}`);
});

test('words side by side are one text to a tokenizer that reads spaces with the words behind them', () => {
  const bytes = byteLevelTokenizer(['red', 'circle', 'what', 'colour', 'photo', 'Answer', 'is']);
  const assembled = (template: string, question: string, answer?: string) => {
    const pieces = filledTemplate(template, { question: [{ words: question, isQuestion: true }] });
    const spoken = answer === undefined ? [] : [{ words: answer, isAnswer: true }];
    const arrays = assembleDialogues({ tokenizer: bytes, length: 80 }, [[...pieces, ...spoken]]);
    const { labels } = arrays;
    return {
      ids: [...readIds(arrays, 0)],
      labels: [...labels.data].filter((id) => id !== NO_LABEL).map((id) => bytes.pieceOf(id)),
    };
  };
  for (const [template, question, text] of [
    ['{question}', 'a photo of', 'a photo of red circle'],
    ['</s>{question}', 'a photo of', '</s>a photo of red circle'],
    [
      'Question: {question} Answer:',
      'what colour is it?',
      'Question: what colour is it? Answer: red circle',
    ],
    ['{question}\nAnswer: ', 'what ?', 'what ?\nAnswer: red circle'],
  ] as const) {
    const { ids, labels } = assembled(template, question, 'red circle');
    assert.deepEqual(ids, [...bytes.encode(text), bytes.special.sep], text);
    assert.deepEqual(labels, [' red', ' circle', '</s>']);
    assert.deepEqual(assembled(template, question).ids, ids.slice(0, -3), 'what is asked');
  }
});

test('WordPiece reads words side by side as it reads each by itself', () => {
  const pieces: Piece[] = [
    ...filledTemplate('[CLS] {seen} {question} [>]', {
      seen: [{ words: 'a red cat', isContext: true }],
      question: [{ words: 'what is it ?', isQuestion: true }],
    }),
    { words: 'one two', isAnswer: true },
  ];
  const apart = ['[CLS] ', 'a red cat', 'what is it ?', ' [>]', 'one two'];
  assert.deepEqual(
    [...readIds(assembleDialogues({ tokenizer, length: 20 }, [pieces]), 0)],
    [...apart.flatMap((words) => tokenizer.encode(words)), sep],
  );
});

test('a question is shown as far as it is given, what else is read beside it', () => {
  const asked = { words: 'one two three four five six', isQuestion: true };
  const seen = [{ words: '[CLS]' }, { numSoft: 4 }];
  const given = (length: number, ...pieces: readonly Piece[]) =>
    dialogueGiven({ tokenizer, length }, [...seen, ...pieces, { words: ' [>]' }]);
  assert.deepEqual(given(12, asked), { question: asked.words });
  assert.deepEqual(given(9, asked), { question: 'one two three', cutTo: 3 });
  assert.deepEqual(given(14, { words: 'a cat ' }, asked), {
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
