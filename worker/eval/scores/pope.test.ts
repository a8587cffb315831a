import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { readQuestions } from '../question-file.ts';
import { readYesNo } from './pope-files.ts';
import { saysYes, scorePope, type YesNoAnswered } from './pope.ts';

/** What scikit-learn says: fixtures/make-benchmarks.py. */
const { pope: REFERENCE } = JSON.parse(
  readFileSync(join(import.meta.dirname, 'fixtures/benchmarks.json'), 'utf8'),
) as {
  pope: { said: string[]; truth: number[] } & Record<
    'accuracy' | 'precision' | 'recall' | 'f1' | 'yes',
    number
  >;
};

const valuesOf = (answered: readonly YesNoAnswered[]) =>
  Object.fromEntries(scorePope(answered).map(({ name, value }) => [name, value]));

test('an answer is no where its first sentence has No, no or not as a word of its own', () => {
  for (const [answer, isYes] of [
    ['Yes, there is a dog.', true],
    ['No, there is no dog.', false],
    ['There is, not far away, a dog', false],
    ['A dog. It is not far.', true],
    ['NO', true], // as in the original: neither No nor no
    ['Nothing is there', true],
    ['no?', true], // marks but full stops and commas stay with the word
    ['', true],
  ] as const)
    assert.equal(saysYes(answer), isYes, answer);
});

test('accuracy, precision, recall, F1 and the yes ratio are those of scikit-learn', () => {
  const { said, truth, accuracy, precision, recall, f1, yes } = REFERENCE;
  const answered = said.map((answer, at) => ({
    ...{ answer, isYes: truth[at] === 1, category: '' },
  }));
  const values = valuesOf(answered);
  const wanted = { accuracy, precision, recall, F1: f1, 'yes ratio': yes };
  for (const [name, value] of Object.entries(wanted))
    assert.ok(Math.abs(values[name]! - value) < 1e-12, `${name}: ${values[name]}, ${value}`);
  for (const { value, interval, count } of scorePope(answered)) {
    assert.equal(count, 60);
    assert.ok(interval[0] < value && value < interval[1]);
  }
});

test('who always says yes has accuracy 0.5 and recall 1; who never does has precision 0', () => {
  const half = (answer: string, category = '') =>
    [true, false].map((isYes) => ({ answer, isYes, category }));
  assert.deepEqual(valuesOf(half('yes')), {
    ...{ accuracy: 0.5, precision: 0.5, recall: 1, F1: 2 / 3, 'yes ratio': 1 },
  });
  assert.deepEqual(valuesOf(half('no')), {
    ...{ accuracy: 0.5, precision: 0, recall: 0, F1: 0, 'yes ratio': 0 },
  });
  const chances = scorePope(half('yes')).map(({ name, chance }) => [name, chance]);
  assert.deepEqual(Object.fromEntries(chances), {
    ...{ accuracy: 0.5, precision: undefined, recall: undefined, F1: 2 / 3 },
    'yes ratio': undefined,
  });
  const two = valuesOf([...half('yes', 'random'), ...half('no', 'popular')]);
  assert.equal(two['random recall'], 1);
  assert.equal(two['popular recall'], 0);
});

test("POPE's and LLaVA's files are read, and what is wrong is told with its place", async () => {
  const folder = await temporaryFolder('pope');
  const write = async (name: string, records: readonly unknown[]): Promise<string> => {
    const path = join(folder, name);
    await writeFile(path, records.map((record) => `${JSON.stringify(record)}\n`).join(''));
    return path;
  };
  const labels = await write('coco_pope_random.json', [
    { question_id: 1, image: 'a.jpg', text: 'Is there a dog in the image?', label: 'yes' },
    { question_id: 2, image: 'a.jpg', text: 'Is there a cat in the image?', label: 'no' },
  ]);
  const wanted = [
    { answer: 'Yes', isYes: true, category: '' },
    { answer: 'No', isYes: false, category: '' },
  ];
  const inOrder = await write('ordered.jsonl', [
    { question: 'is there a  dog in the image?', answer: 'Yes' },
    { question: 'is there a cat in the image?', answer: 'No' },
  ]);
  assert.deepEqual(await readYesNo(inOrder, labels), wanted);
  const byId = await write('llava.jsonl', [
    { question_id: 2, prompt: 'Is there a cat in the image?', text: 'No' },
    { question_id: 1, prompt: 'Is there a dog in the image?', text: 'Yes' },
  ]);
  assert.deepEqual(await readYesNo(byId, labels), [...wanted].reverse());
  const own = await write('own.jsonl', [
    { id: 'a', answer: 'Yes', label: 'yes', category: 'popular' },
  ]);
  assert.deepEqual(await readYesNo(own, undefined), [
    { answer: 'Yes', isYes: true, category: 'popular' },
  ]);

  const wrong = async (records: readonly unknown[], message: RegExp): Promise<void> => {
    await assert.rejects(readYesNo(await write('wrong.jsonl', records), labels), { message });
  };
  await wrong([{ answer: 'Yes' }], /1 answers without ids, which stand for the 2 questions/);
  await wrong(
    [
      { question: 'is there a bird?', answer: 'Yes' },
      { question: '', answer: 'No' },
    ],
    /wrong\.jsonl:1: it answers "is there a bird\?", and .*random\.json:1 asks/,
  );
  await wrong([{ question_id: 1, answer: 'Yes' }], /1 ids of .*random\.json are not in/);
  await wrong([], /there is no record in it/);
  const loud = await write('loud.jsonl', [{ id: 1, image: 'a', text: 'b', label: ' Yes' }]);
  assert.equal((await readQuestions(loud))[0]!.kept.label, 'yes');
  const maybe = await write('maybe.jsonl', [{ id: 1, answer: 'Yes', label: 'maybe' }]);
  await assert.rejects(readYesNo(maybe, undefined), {
    message: /maybe\.jsonl#0: label is "maybe": expected yes or no/,
  });
});
