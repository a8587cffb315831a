import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { readAnswered } from './answer-files.ts';
import { captionWords } from './caption-words.ts';
import { ciderD } from './cider.ts';
import { rougeL } from './rouge.ts';
import { plainAnswer, scoreAnswers, scoreCaptions, scoreVqa, type Answered } from './score.ts';
import { scoreTable } from './bootstrap.ts';
import { normalizedAnswer, vqaAccuracy } from './vqa-accuracy.ts';

/** What coco-caption and the evaluation code of VQA v2 say: fixtures/make.py. */
const REFERENCE = JSON.parse(
  readFileSync(join(import.meta.dirname, 'fixtures/coco-caption.json'), 'utf8'),
) as {
  words: { text: string; words: string[] }[];
  captions: Answered[];
  bleu: number[];
  rouge: number[];
  cider: number[];
  normalized: { answer: string; normalized: string }[];
  vqa: { answer: string; answers: string[]; accuracy: number }[];
};
const captions = REFERENCE.captions.map(({ answer, references }) => ({
  words: captionWords(answer),
  references: references.map(captionWords),
}));
const near = (actual: number, expected: number, what: string): void => {
  assert.ok(Math.abs(actual - expected) < 1e-6, `${what}: ${actual}, expected ${expected}`);
};

test('captions have the words that the tokenizer of coco-caption finds', () => {
  for (const { text, words } of REFERENCE.words) assert.deepEqual(captionWords(text), words, text);
});

test('BLEU, ROUGE-L and CIDEr-D of 40 captions are those of coco-caption (1e-6)', () => {
  const scores = new Map(scoreCaptions(REFERENCE.captions).map((score) => [score.name, score]));
  for (const [at, bleu] of REFERENCE.bleu.entries())
    near(scores.get(`BLEU-${at + 1}`)!.value, bleu, `BLEU-${at + 1}`);
  const cider = ciderD(captions);
  for (const [at, caption] of captions.entries()) {
    near(rougeL(caption), REFERENCE.rouge[at]!, `ROUGE-L of ${at}`);
    near(cider[at]!, REFERENCE.cider[at]!, `CIDEr-D of ${at}`);
  }
  for (const { name, value, interval, count } of scores.values()) {
    assert.equal(count, 40);
    assert.ok(
      interval[0] < value && value < interval[1],
      `${name}: ${value} in ${String(interval)}`,
    );
  }
});

test('one caption alone, without words, or like its reference', () => {
  const of = (answer: string) => {
    const scores = scoreCaptions([{ id: 'a', answer, references: ['a red ball rolls'] }]);
    return Object.fromEntries(scores.map(({ name, value }) => [name, value]));
  };
  // Nothing is rare where there is nothing else.
  assert.equal(of('a red ball rolls')['CIDEr-D'], 0);
  near(of('a red ball rolls')['BLEU-4']!, 1, 'BLEU-4');
  near(of('a red ball rolls')['ROUGE-L']!, 1, 'ROUGE-L');
  for (const value of Object.values(of('...'))) assert.ok(value < 1e-3 && value >= 0);
});

test('answers are normalized and counted as in the evaluation of VQA v2', () => {
  for (const { answer, normalized } of REFERENCE.normalized)
    assert.equal(normalizedAnswer(answer), normalized, answer);
  for (const { answer, answers, accuracy } of REFERENCE.vqa)
    near(vqaAccuracy(answer, answers), accuracy, answer);
  const [score] = scoreVqa(
    REFERENCE.vqa.map(({ answer, answers }, at) => ({
      id: String(at),
      answer,
      references: answers,
    })),
  );
  const mean =
    REFERENCE.vqa.reduce((sum, { accuracy }) => sum + accuracy, 0) / REFERENCE.vqa.length;
  near(score!.value, mean, 'mean');
  const [exact] = scoreAnswers([
    { id: '1', answer: ' Two  dogs.', references: ['cats', 'two dogs'] },
    { id: '2', answer: 'left', references: ['right'] },
  ]);
  assert.equal(exact!.value, 0.5);
  // Whoever says nothing, or something else, is not right.
  for (const [answer, reference] of [
    ['', 'A'],
    ['a', 'the'],
    ['-3', '3'],
    ['<', '>'],
    ['', '.'],
  ] as const)
    assert.equal(scoreAnswers([{ id: '1', answer, references: [reference] }])[0]!.value, 0, answer);
});

test('an interval narrows with the number of answers, and is the same each time', () => {
  const of = (count: number) =>
    scoreAnswers(
      Array.from({ length: count }, (_, at) => ({
        ...{ id: String(at), answer: at % 4 === 0 ? 'no' : 'yes', references: ['yes'] },
      })),
    )[0]!;
  const { interval, value } = of(400);
  assert.equal(value, 0.75);
  // Of a share p of n: 1.96 sqrt(p (1 - p) / n).
  const half = 1.96 * Math.sqrt((0.75 * 0.25) / 400);
  for (const [at, sign] of [-1, 1].entries())
    assert.ok(Math.abs(interval[at]! - (value + sign * half)) < 0.01, String(interval));
  assert.deepEqual(of(400), of(400));
  assert.match(
    scoreTable([of(40)]),
    /^ +score +95 % +n\nexact match +0\.750 +0\.\d{3} to 0\.\d{3} +40\n$/,
  );
});

test("COCO's, VQA's and plain files are read, and what is wrong is told with its place", async () => {
  const folder = await temporaryFolder('scores');
  const write = async (name: string, content: unknown): Promise<string> => {
    const path = join(folder, name);
    await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content));
    return path;
  };
  const coco = await write('coco.json', {
    images: [],
    annotations: [
      { image_id: 7, id: 1, caption: 'one' },
      { image_id: 7, id: 2, caption: 'two' },
      { image_id: 8, id: 3, caption: 'three' },
    ],
  });
  const said = await write('said.json', [
    { image_id: 8, caption: 'c' },
    { image_id: 7, caption: 'a' },
  ]);
  assert.deepEqual(await readAnswered(said, coco), [
    { id: '8', answer: 'c', references: ['three'] },
    { id: '7', answer: 'a', references: ['one', 'two'] },
  ]);
  const vqa = await write('vqa.json', {
    annotations: [{ question_id: 1, image_id: 5, answers: [{ answer: 'x' }, { answer: 'y' }] }],
  });
  const answers = await write('answers.jsonl', '{"question_id":1,"answer":"x"}\n\n');
  assert.deepEqual(await readAnswered(answers, vqa), [
    { id: '1', answer: 'x', references: ['x', 'y'] },
  ]);
  const own = await write('own.jsonl', '{"id":"a","answer":"b","references":["c"]}');
  assert.deepEqual(await readAnswered(own, undefined), [
    { id: 'a', answer: 'b', references: ['c'] },
  ]);

  // With the mark that some editors put before all else.
  const marked = await write('marked.json', '\uFEFF[{"id":"a","answer":"b","references":["c"]}]');
  assert.deepEqual(await readAnswered(marked, undefined), await readAnswered(own, undefined));

  const wrong = async (content: unknown, message: RegExp, references?: string): Promise<void> => {
    const path = await write('wrong.jsonl', content);
    await assert.rejects(readAnswered(path, references), { message });
  };
  await wrong('{"id":1', /wrong\.jsonl:1: it is no JSON/);
  await wrong([{ caption: 'a' }], /wrong\.jsonl#0: it has no id, image_id or question_id/);
  await wrong([{ id: 1 }], /wrong\.jsonl#0: it has neither caption nor answer/);
  await wrong([{ id: 1, answer: 7 }], /wrong\.jsonl#0: answer is 7: /);
  await wrong(
    [
      { id: 1, answer: 'a' },
      { id: 1, answer: 'b' },
    ],
    /#1: a second one for 1/,
    coco,
  );
  await wrong(
    [
      { image_id: 7, caption: 'a' },
      { image_id: 9, caption: 'b' },
    ],
    /^1 ids of .*coco\.json are not in .*wrong\.jsonl \(8\); 1 ids of .* are not in .* \(9\)/,
    coco,
  );
  await wrong([], /there is no record in it/);
  await assert.rejects(readAnswered(join(folder, 'none'), undefined), {
    code: 'SCORE_FILE_INVALID',
    message: /none cannot be read: ENOENT/,
  });
});

test('an answer is the same however a tokenizer spaces its marks', () => {
  for (const [said, meant] of [
    ['A star , top left .', 'a star, top left'],
    ['{ < 10 > < 20 > < 30 > < 40 > }', '{<10><20><30><40>}'],
    ["it ' s red", "it's red"],
    ['  two\n words ', 'two words'],
  ])
    assert.equal(plainAnswer(said!), plainAnswer(meant!));
  assert.notEqual(plainAnswer('two words'), plainAnswer('twowords'));
  assert.notEqual(plainAnswer('{<1><2><3><4>}'), plainAnswer('{<12><3><4>}'));
  assert.equal(plainAnswer('?'), '?');
});
