import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, it, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { openEngine, type Engine } from '../backend/engine.ts';
import { uploadBatch } from '../batches.ts';
import { resolveConfig } from '../config.ts';
import { freezeParameters } from '../frozen-parameters.ts';
import { formOf } from '../initial-weights.ts';
import { openInitializer } from '../initializer.ts';
import { imageQueries, type ImageQueryParams } from '../models/image-queries.ts';
import { adamWScalars, initAdamW } from '../optim/adamw.ts';
import { compilePrograms } from '../programs.ts';
import { openTestSystem, TEST_SAMPLES, testRows } from '../test/open-system.ts';
import { assertReadAsWords } from '../test/read-as-words.ts';
import { valuesOf } from '../test/run-folder.ts';
import { otherRow, ofOthers } from './frame-changes.ts';
import { qFormerSizes } from './q-former-part.ts';
import { unpackedPictures, visionSizes } from './vision-part.ts';

const WIDTHS = 'width: 16, layers: 2, heads: 2';
const SMALL = [
  `model.language={${WIDTHS}, keyValueHeads: 2, mlpWidth: 24}`,
  `model.vision={${WIDTHS}, mlpWidth: 24}`,
  `model.qFormer={queries: 2, ${WIDTHS}, mlpWidth: 24}`,
];

void describe('MiniGPT-4', () => {
  let engine: Engine;
  before(async () => {
    engine = await openEngine({ engine: 'cpu', cacheDir: userCacheDir(process.env) });
  });
  after(() => {
    engine.close();
  });

  for (const stage of ['pretraining', 'finetuning'] as const) {
    void it(`${stage}: a step changes the weight and the bias of one linear layer and nothing else`, async () => {
      const { system: whole, config } = await openTestSystem('minigpt4', stage, SMALL);
      const all = whole.init(openInitializer(3));
      const stored = await valuesOf(all);
      const system = freezeParameters(whole, config.train.frozen, formOf(whole), stored);
      const frozen = uploadBatch(engine, { arrays: system.frozen, counts: {}, numTokens: 0 });
      const params = system.init(openInitializer(3));
      const batch = system.assemble(testRows(TEST_SAMPLES.slice(0, 6), config));
      const programs = compilePrograms(engine, system, config.optimizer);
      const { gradient } = await programs.gradient(
        params,
        frozen,
        uploadBatch(engine, batch),
        tf.tensor1d([1]),
        {},
      );
      const scalars = adamWScalars(config.optimizer, {
        ...{ step: 1, learningRate: 0.1, gradientScale: 1 },
      });
      const [before, fixed] = [await valuesOf(params), await valuesOf(frozen)];
      const next = await programs.update(params, initAdamW(params), gradient, tf.tensor1d(scalars));
      const later = await valuesOf(next.params);
      // All that the program holds, trained or not, and what of it is other than before.
      const held = new Map([...later, ...(await valuesOf(frozen))]);
      const was = new Map([...before, ...fixed]);
      assert.equal(held.size, stored.size);
      const changed = [...held].flatMap(([name, { data }]) =>
        Buffer.from(data).equals(Buffer.from(was.get(name)!.data)) ? [] : [name],
      );
      assert.deepEqual(changed.sort(), ['projection/bias', 'projection/kernel']);
    });
  }

  void it('the soft prompt is one product and one sum of what the queries read', async () => {
    // A head of its own: more rows of the table are no more words to choose from.
    const { system, config } = await openTestSystem('minigpt4', 'finetuning', [
      ...SMALL,
      'model.language.tied=false',
    ]);
    const params = system.init(openInitializer(3)) as ImageQueryParams & {
      readonly projection: { readonly kernel: tf.Tensor; readonly bias: tf.Tensor };
      readonly language: { readonly embedding: tf.Tensor };
    };
    const rows = testRows(TEST_SAMPLES.slice(0, 2), config);
    const model = config.model as unknown as Parameters<typeof qFormerSizes>[0] & {
      readonly vision: Parameters<typeof visionSizes>[0];
      readonly qFormer: Parameters<typeof qFormerSizes>[0];
    };
    const { arrays } = system.assemble(rows);
    const packed = uploadBatch(engine, { arrays, counts: {}, numTokens: 0 });
    const read = imageQueries(params, unpackedPictures(packed['pictures']!, config.data), {
      vision: visionSizes(model.vision, config.data),
      qFormer: qFormerSizes(model.qFormer, { contextWidth: model.vision.width, hasText: false }),
    });
    const states = (await read.array()) as number[][][];
    const kernel = (await params.projection.kernel.array()) as number[][];
    const bias = (await params.projection.bias.array()) as number[];
    const prompts = states.map((row) =>
      row.map((query) =>
        bias.map((own, k) => query.reduce((sum, value, d) => sum + value * kernel[d]![k]!, own)),
      ),
    );
    assertReadAsWords(system, params, packed, prompts.flat());
  });
});

test('whatever else is trained is refused', () => {
  const text = readFileSync(new URL('../recipes/minigpt4.yaml', import.meta.url), 'utf8');
  const resolve = (frozen: string) =>
    resolveConfig({
      ...{ text, file: 'minigpt4', stage: 'pretraining' },
      overrides: [`train.frozen=[${frozen}]`],
    });
  assert.doesNotThrow(() => resolve('vision, queries, qFormer, language'));
  assert.throws(
    () => resolve('vision, language'),
    /one linear layer is trained and nothing else: add queries, qFormer to train\.frozen/,
  );
});

test('pictures of others: each conversation has the picture of the next one that is another, and its own words', async () => {
  const small = [...SMALL, 'data.windows=1'];
  const [own, permuted] = await Promise.all([
    openTestSystem('minigpt4', 'finetuning', small),
    openTestSystem('minigpt4', 'finetuning', [...small, 'model.permuted=true']),
  ]);
  const rows = testRows(TEST_SAMPLES.slice(0, 6), own.config);
  const [one, other] = [own.system.assemble(rows), permuted.system.assemble(rows)];
  assert.deepEqual(other.arrays['ids'], one.arrays['ids']);
  assert.notDeepEqual(other.arrays['pictures'], one.arrays['pictures']);
  const shown = own.system.assemble(ofOthers(rows)).arrays['pictures'];
  assert.deepEqual(other.arrays['pictures'], shown);
  // What is asked of the run is asked about its own picture.
  assert.deepEqual(
    permuted.system.answers!.assemble(rows, 'what ?').arrays['pictures'],
    own.system.answers!.assemble(rows, 'what ?').arrays['pictures'],
  );
  const mediaOf = ({ sample }: (typeof rows)[number]): string => JSON.stringify(sample.media);
  const { frames } = rows.find((row) => mediaOf(row) !== mediaOf(rows[0]!))!;
  const first = new Uint8Array((other.arrays['pictures']!.data as Int32Array).slice().buffer);
  assert.deepEqual([...first.subarray(0, 60)], [...frames.subarray(0, 60)]);
  assert.equal(otherRow([rows[0]!, rows[0]!], 0), undefined, 'there is no other');
});
