import assert from 'node:assert/strict';
import { after, before, describe, it, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { openEngine, type Engine } from '../backend/engine.ts';
import { openInitializer } from '../initializer.ts';
import { vit } from '../models/vit.ts';
import { openCaptioned } from '../test/captioned-system.ts';
import { testRows } from '../test/open-system.ts';
import { placedSamples } from '../test/placed-samples.ts';
import { openTokenizer, trainTokenizer } from '../../video/text/tokenizer.ts';
import { readIds, type DialogueArrays } from './dialogue.ts';
import { languageOf } from './language-part.ts';
import { mergedPatches, type MergedPatchesConfig } from './merged-patches.ts';
import { taskOf } from './minigpt-v2.ts';
import type { HostBatch, Row } from './system.ts';
import { packedPictures, unpackedPictures, visionSizes } from './vision-part.ts';

const SAMPLES = placedSamples(4);
const WIDTHS = 'width: 16, layers: 1, heads: 2, mlpWidth: 24';
const SMALL = [
  `model.language={${WIDTHS}, keyValueHeads: 2}`,
  `model.vision={patchSize: 4, ${WIDTHS}}`,
  'data.frameSize=16',
];
const TOKENIZER = openTokenizer(
  trainTokenizer(
    SAMPLES.map(({ text }) => text),
    { vocabularySize: 256 },
  ),
);

function open(overrides: readonly string[] = []) {
  return openCaptioned('minigpt-v2', {
    ...{ stage: 'instruction', samples: SAMPLES },
    overrides: [...SMALL, ...overrides],
  });
}

/** What a row says, soft tokens as dots. */
function saidIn({ arrays }: HostBatch, row: number): string {
  const ids = readIds(arrays as unknown as DialogueArrays, row);
  const { data, shape } = arrays['softRows']!;
  const soft = data.subarray(row * shape[1]!, (row + 1) * shape[1]!);
  return [...ids].map((id, at) => (soft[at]! >= 0 ? '.' : TOKENIZER.pieceOf(id))).join(' ');
}

const rowsOf = (config: Parameters<typeof testRows>[1], ...tasks: string[]): Row[] =>
  testRows(
    SAMPLES.filter(({ parts }) => tasks.includes(taskOf(parts![1]!.text!)!)),
    config,
  );

test('what a task is called stands in brackets at the start of a question', () => {
  assert.equal(taskOf('[refer] where is it ?'), 'refer');
  assert.equal(taskOf('where is [refer] ?'), undefined);
  assert.equal(taskOf('where is it ?'), undefined);
});

test('where things are is asked for by one row of tokens in two tasks, but for the identifier', async () => {
  const said = async (overrides: readonly string[]): Promise<[string, string][]> => {
    const { system, config } = await open(overrides);
    const [refer, vqa] = ['refer', 'vqa'].map((task) => {
      const rows = rowsOf(config, task);
      const tasks = system.writtenTasks!.find(({ name }) => name === `[${task}] written`)!;
      const batch = tasks.assemble(rows);
      return rows.map((_, row) => saidIn(batch, row));
    });
    return refer!.map((words, i) => [words, vqa![i]!]);
  };
  for (const [refer, vqa] of await said([])) {
    assert.match(refer, /^\[CLS\] (\. ){4}\[ refer \] where is the \w+ \w+ \? \[>\]$/);
    assert.equal(vqa, refer.replace('[ refer ]', '[ vqa ]'));
  }
  for (const [refer, vqa] of await said(['model.identifiers=false'])) {
    assert.match(refer, /^\[CLS\] (\. ){4}where is the \w+ \w+ \? \[>\]$/);
    assert.equal(vqa, refer);
  }
});

test('a box counts with half of both shared, other answers as they are, each where its task asks', async () => {
  const { system, config } = await open();
  const tasks = new Map(system.writtenTasks!.map((task) => [task.name, task]));
  assert.deepEqual(
    [...tasks.keys()],
    [
      ...['refer', 'identify', 'vqa', 'caption'].map((name) => `[${name}] written`),
      ...['all tasks written', '[vqa] and [refer] exchanged'],
    ],
  );
  const isRight = (name: string, task: string, text: string): boolean => {
    const [{ sample }] = rowsOf(config, task) as [Row];
    assert.ok(tasks.get(name)!.asks!(sample));
    return tasks.get(name)!.isRight(sample, text);
  };
  // The first picture's first object, in tens: half of its width is half of the box.
  const [box] = rowsOf(config, 'refer') as [Row];
  const [left, top, right, bottom] = box.sample.parts![2]!.text!.match(/\d+/g)!.map(Number) as [
    ...[number, number, number, number],
  ];
  const written = (...edges: number[]) => `{ ${edges.map((edge) => `< ${edge} >`).join(' ')} }`;
  const half = (left + right) / 2;
  assert.ok(isRight('[refer] written', 'refer', written(left, top, right, bottom)));
  assert.ok(isRight('all tasks written', 'refer', written(left, top, Math.ceil(half), bottom)));
  assert.ok(!isRight('[refer] written', 'refer', written(left, top, Math.floor(half) - 1, bottom)));
  assert.ok(!isRight('[refer] written', 'refer', 'top left'));
  for (const task of ['identify', 'vqa', 'caption']) {
    const [{ sample }] = rowsOf(config, task) as [Row];
    const answer = sample.parts![2]!.text!;
    const spelt = TOKENIZER.decode(TOKENIZER.encode(answer));
    assert.equal(tasks.get(`[${task}] written`)!.answerOf(sample), spelt);
    assert.ok(isRight(`[${task}] written`, task, spelt));
    assert.ok(!isRight('all tasks written', task, `${spelt} left`));
    assert.ok(!tasks.get('[refer] written')!.asks!(sample));
  }
});

test('exchanged, a question about a box wants words, and one about words a box', async () => {
  const { system, config } = await open();
  const task = system.writtenTasks!.find(({ name }) => name.endsWith('exchanged'))!;
  const rows = rowsOf(config, 'refer', 'vqa');
  assert.ok(rows.every(({ sample }) => task.asks!(sample)));
  const batch = task.assemble(rows);
  for (const [row, { sample }] of rows.entries()) {
    const own = taskOf(sample.parts![1]!.text!);
    const other = own === 'refer' ? 'vqa' : 'refer';
    assert.match(saidIn(batch, row), new RegExp(`\\[ ${other} \\] where is`));
    assert.equal(task.isRight(sample, 'top left'), other === 'vqa');
    assert.equal(task.isRight(sample, '{ < 0 > < 10 > < 20 > < 30 > }'), other === 'refer');
  }
});

test('a language model on words alone finds names and boxes in what is said of the whole picture', async () => {
  const { system, config } = await openCaptioned('minigpt-v2', {
    ...{ stage: 'language', samples: SAMPLES },
    overrides: [SMALL[0]!],
  });
  for (const task of ['refer', 'identify']) {
    let numGrounded = 0;
    const rows = rowsOf(config, task);
    for (let epoch = 0; epoch < 20; epoch++) {
      const batch = system.assemble(rows.map((row) => ({ ...row, epoch })));
      numGrounded += rows.filter((_, row) => saidIn(batch, row).includes('< / p >')).length;
    }
    const share = numGrounded / (20 * rows.length);
    assert.ok(
      Math.abs(share - 0.5) < 4 * Math.sqrt(0.25 / (20 * rows.length)),
      `${task}: ${share}`,
    );
  }
});

void describe('soft tokens', () => {
  let engine: Engine;
  before(async () => {
    engine = await openEngine({ engine: 'cpu', cacheDir: userCacheDir(process.env) });
  });
  after(() => {
    engine.close();
  });

  void it('are four patches side by side, in the order of a row, times one matrix', async () => {
    const { system, config } = await open();
    const model = config.model as unknown as MergedPatchesConfig;
    const language = languageOf(model.language, 50);
    const { seen, init } = mergedPatches(model, config.data, language);
    const params = init(openInitializer(4));
    const rows = rowsOf(config, 'caption');
    const packed = system.assemble(rows).arrays['pictures']!;
    assert.deepEqual(
      packed,
      packedPictures(rows, config.data, () => [0]),
      'one picture a row',
    );
    const pictures = engine.upload(packed.data, packed.shape);
    const found = (await seen(params, pictures).array()) as number[][][];
    const states = (await vit(
      params.vision,
      unpackedPictures(pictures, config.data),
      visionSizes(model.vision, config.data),
    ).array()) as number[][][];
    const kernel = (await params.projection.kernel.array()) as number[][];
    const bias = (await params.projection.bias!.array()) as number[];
    assert.deepEqual([found.length, found[0]!.length, found[0]![0]!.length], [rows.length, 4, 16]);
    for (const [row, tokens] of found.entries()) {
      for (const [k, token] of tokens.entries()) {
        // Behind the class token the patches of the picture's row k, from the left.
        const side = [0, 1, 2, 3].flatMap((i) => states[row]![1 + 4 * k + i]!);
        for (const [w, value] of token.entries()) {
          const wanted = side.reduce((sum, x, d) => sum + x * kernel[d]![w]!, bias[w]!);
          assert.ok(Math.abs(value - wanted) < 1e-5, `${value} and ${wanted}`);
        }
      }
    }
    tf.dispose([pictures]);
  });
});
