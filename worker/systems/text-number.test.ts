/** Texts that a model cannot tell apart are one text: as negatives, as answers to choose from, and as classes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Sample } from '../../video/index/sample.ts';
import { CAPTIONED, captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { openTestSystem, TEST_SAMPLES, testRows } from '../test/open-system.ts';
import type { HostArray, HostBatch, VideoLanguageSystem } from './system.ts';
import { candidateTexts, firstAlike, textClasses, textNumbers } from './text-number.ts';

/** The first three are read alike where six word pieces are read; the fourth has another fourth word. */
const SPELT = [
  'a red circle moves left',
  'A  RED circle moves left ',
  'a red circle moves left and away',
  'a red circle stays left',
];
const READ = [0, 0, 0, 1];

const spelt: readonly Sample[] = SPELT.map((text, i) => ({
  ...CAPTIONED[i]!,
  text,
  cues: [{ startSeconds: 0, endSeconds: 4, text }],
}));

/** Which of a list's values are equal, by their first places. */
function pattern(values: ArrayLike<number>): number[] {
  const all = Array.from(values);
  const distinct = [...new Set(all)];
  return all.map((value) => distinct.indexOf(value));
}

/** Which rows of numbers are equal. */
function alike(numbers: HostArray): number[] {
  return pattern(firstAlike(numbers).data);
}

function taskOf({ heldOutTasks }: VideoLanguageSystem, name: string) {
  return heldOutTasks.find((task) => task.name === name)!;
}

test('numbers and classes are those of the ids', () => {
  const texts = [[1, 23], Int32Array.of(1, 23), [12, 3], [], [0], [12, 3]];
  const numbers = textNumbers(texts);
  assert.deepEqual(numbers.shape, [6, 2]);
  assert.deepEqual([...firstAlike(numbers).data], [0, 0, 2, 3, 4, 2]);
  for (const number of numbers.data) assert.ok(Number.isInteger(number) && number < 2 ** 24);
  const idsOf = (text: string): number[] => [text.length];
  const classes = textClasses(['ab', 'cd', 'e', 'ab'], idsOf);
  assert.deepEqual(classes.texts, ['ab', 'e']);
  assert.deepEqual(['xy', 'e', 'fgh'].map(classes.classOf), [0, 1, undefined]);
});

test('texts as many as the largest batches have are told apart', () => {
  const texts = Array.from({ length: 32_768 }, (_, i) => [i * 7919, 5, i % 97]);
  const { data } = textNumbers(texts);
  const rows = texts.map((_, i) => `${data[2 * i]} ${data[2 * i + 1]}`);
  assert.equal(new Set(rows).size, texts.length);
});

test('of more texts than can be compared some are drawn from all, by the seed', () => {
  const texts = Array.from({ length: 5000 }, (_, i) => String(i));
  const idsOf = (text: string): number[] => [Number(text)];
  const { texts: chosen, classOf } = candidateTexts(texts, idsOf, 7);
  assert.equal(new Set(chosen).size, 1024);
  assert.deepEqual(candidateTexts(texts, idsOf, 7).texts, chosen);
  assert.notDeepEqual(candidateTexts(texts, idsOf, 8).texts, chosen);
  const late = chosen.filter((text) => Number(text) >= 2500).length;
  assert.ok(late > 400 && late < 624, `${late} of the later half`);
  assert.equal(texts.filter((text) => classOf(text) !== undefined).length, 1024);
});

for (const recipe of ['clip', 'siglip', 'coca', 'llip']) {
  test(`${recipe}: captions that are read alike belong together, and are one candidate`, async () => {
    // Begun and ended, and five words; siglip has no beginning.
    const overrides = [
      ...[`model.text.maxTokens=${recipe === 'siglip' ? 6 : 7}`, 'data.frameSize=32'],
      ...(recipe === 'llip' ? ['model.captions=[]'] : []),
    ];
    const { system, config } = await openCaptioned(recipe, {
      ...{ preset: 'tiny', overrides, samples: spelt },
    });
    const rows = captionedRows(config, spelt);
    assert.deepEqual(alike(system.assemble(rows).arrays['captions']!), READ);
    const recall = taskOf(system, 'recall-at-1');
    assert.equal(recall.numClasses, 2);
    assert.deepEqual(recall.labels(recall.assemble(rows)), READ);
  });
}

test('merlot: transcripts that are read alike belong together, and are one choice', async () => {
  const { system, config } = await openCaptioned('merlot', {
    ...{ preset: 'tiny', overrides: ['model.segmentTokens=6'], samples: spelt },
  });
  const rows = captionedRows(config, spelt);
  const numbers = system.assemble(rows).arrays['textNumbers']!;
  const perRow = numbers.shape[1]!;
  const firsts = [...firstAlike(numbers).data].filter((_, i) => i % perRow === 0);
  assert.deepEqual(pattern(firsts), READ);
  const recall = taskOf(system, 'transcript-recall-at-1');
  assert.equal(recall.numClasses, 2);
  assert.deepEqual(
    recall.labels(recall.assemble(rows)),
    READ.flatMap((label) => new Array<number>(perRow).fill(label)),
  );
});

test('video-ofa: no clip is asked about a caption that is read as its own, and captions have their classes', async () => {
  const alike = spelt.slice(0, 2);
  const open = async (samples: readonly Sample[]) => {
    const { system, config } = await openCaptioned('video-ofa', {
      ...{ preset: 'tiny', stage: 'clips', samples },
      overrides: ['model.answerTokens=7', 'model.tasks={caption: 1, match: 1, order: 0}'],
    });
    return { system, rows: captionedRows(config, samples) };
  };
  const answers = ({ system, rows }: Awaited<ReturnType<typeof open>>): number[] => {
    const match = taskOf(system, 'match-accuracy');
    return match.labels(match.assemble(rows));
  };
  const [same, all] = [await open(alike), await open(spelt)];
  assert.equal(new Set(answers(same)).size, 1, 'yes to both');
  const caption = taskOf(all.system, 'caption-exact');
  assert.equal(caption.numClasses, 2);
  assert.deepEqual(caption.labels(caption.assemble(all.rows)), READ);
});

test('bind and blip2: texts that are read alike belong together', async () => {
  const texts = [
    'a red circle moves left',
    'A RED  circle moves left ',
    'a blue star moves up',
    'a red circle stays',
  ];
  const samples = texts.map((text, file) => {
    const { id, cues, decodeMegapixels } = TEST_SAMPLES[3 * file]!;
    // Of a clip of which nothing else is said.
    const media = [{ file, startSeconds: 2, endSeconds: 4 }];
    return { id, media, cues, decodeMegapixels, text };
  });
  const groups = async (recipe: string, stage: string, overrides: string[]): Promise<number[]> => {
    const { system, config } = await openTestSystem(recipe, stage, overrides);
    const { arrays }: HostBatch = system.assemble(testRows(samples, config));
    return alike(arrays['textIds']!);
  };
  assert.deepEqual(await groups('blip2', 'represent', []), [0, 0, 1, 0], 'what is pictured');
  const wordForWord = ['model.pictureWords=[]'];
  assert.deepEqual(await groups('blip2', 'represent', wordForWord), [0, 0, 1, 2]);
  assert.deepEqual(await groups('video-llava', 'bind', []), [0, 0, 1, 2]);
  // `[CLS]` and three words.
  const short = ['model.textLength=4'];
  assert.deepEqual(await groups('blip2', 'represent', [...wordForWord, ...short]), [0, 0, 1, 0]);
  assert.deepEqual(await groups('video-llava', 'bind', short), [0, 0, 1, 0]);
});
