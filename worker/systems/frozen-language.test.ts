/** What holds of every system that speaks through a decoder: checked on each recipe's last stage, made small. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openEngine, type Engine } from '../backend/engine.ts';
import { uploadBatch } from '../batches.ts';
import { freezeParameters, frozenPaths } from '../frozen-parameters.ts';
import { openGenerator } from '../generation/generator.ts';
import { formOf } from '../initial-weights.ts';
import { openInitializer } from '../initializer.ts';
import { openTestSystem, TEST_SAMPLES, testRows } from '../test/open-system.ts';
import { leavesOf, partsOf, withLeaves, type TensorTree } from '../tree.ts';
import type { HostArray, HostBatch, VideoLanguageSystem } from './system.ts';
import type { TensorData } from '../checkpoint/format.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';

const SMALL_LANGUAGE =
  'model.language={width: 16, layers: 2, heads: 2, keyValueHeads: 1, mlpWidth: 24}';
const SMALL_VISION = 'model.vision={width: 16, layers: 1, heads: 2, mlpWidth: 24}';
const smallQueries = (name: string): string =>
  `model.${name}={queries: 2, width: 16, layers: 2, heads: 2, mlpWidth: 24}`;

/** In place of the language model, which Video-LLaVA's last stage trains. */
const TUNINGS = [
  '{method: lora, rank: 2, alpha: 3}',
  '{method: dora, rank: 2, alpha: 3, targets: [query, down]}',
  '{method: vera, rank: 5, targets: [query, down]}',
  '{method: adapters, width: 3}',
  '{method: prompt, tokens: 3}',
  '{method: prefix, tokens: 3}',
].map((tuning) => ({
  ...{ recipe: 'video-llava', stage: 'instruction', tuning },
  overrides: [
    ...['data.windows=2', 'train.frozen=[image, video, language]'],
    `model.tuning=${tuning}`,
  ],
}));

interface Tried {
  readonly recipe: string;
  readonly stage: string;
  /** In place of {@link SMALL_VISION}. */
  readonly vision?: string;
  readonly overrides: readonly string[];
  readonly tuning?: string;
}

const SYSTEMS: readonly Tried[] = [
  { recipe: 'blip2', stage: 'generate', overrides: [smallQueries('qFormer')] },
  {
    ...{ recipe: 'frozen', stage: 'captioning', overrides: ['data.windows=1'] },
    vision: 'model.vision={width: 4, blocks: [1, 1]}',
  },
  { recipe: 'minigpt4', stage: 'finetuning', overrides: [smallQueries('qFormer')] },
  { recipe: 'video-llava', stage: 'alignment', overrides: ['data.windows=2'] },
  { recipe: 'video-llava', stage: 'instruction', overrides: ['data.windows=2'] },
  { recipe: 'minigpt-v2', stage: 'instruction', overrides: [] },
  {
    recipe: 'minigpt4-video',
    stage: 'instruction',
    overrides: ['data.windows=2', 'model.merge=2'],
  },
  {
    recipe: 'video-llama',
    stage: 'instruction',
    overrides: [
      ...['qFormer', 'videoQFormer', 'audioQFormer'].map(smallQueries),
      'model.audio={segments: 2, width: 16, layers: 1, heads: 2, mlpWidth: 24}',
      ...['data.windows=2', 'data.audio={numMels: 80, numFrames: 4}'],
    ],
  },
  ...TUNINGS,
];

/** As `prepare` writes them. */
function weightsOf(system: VideoLanguageSystem): Map<string, TensorData> {
  const params = system.init(openInitializer(3));
  return new Map(
    leavesOf(params).flatMap(([path, tensor]) => {
      const bytes = new Uint8Array((tensor.dataSync() as Float32Array).slice().buffer);
      const parts = partsOf(path, tensor.shape);
      const size = bytes.length / parts.length;
      return parts.map(({ name, shape }, k): [string, TensorData] => [
        name,
        { dtype: 'F32', shape, data: bytes.subarray(k * size, (k + 1) * size) },
      ]);
    }),
  );
}

/** A batch whose tokens at padding are others. */
function withOtherPadding(batch: HostBatch): HostBatch {
  const { ids, present } = batch.arrays as Record<string, HostArray>;
  const data = Int32Array.from(ids!.data, (id, at) => (present!.data[at] === 0 ? 7 : id));
  return { ...batch, arrays: { ...batch.arrays, ids: { ...ids!, data } } };
}

for (const { recipe, stage, vision = SMALL_VISION, overrides, tuning } of SYSTEMS) {
  void describe([recipe, `stage ${stage}`, tuning].filter(Boolean).join(', '), () => {
    let engine: Engine;
    let system: VideoLanguageSystem;
    let frozen: TensorTree;
    let params: TensorTree;
    let batch: HostBatch;
    let isFrozen: Set<string>;
    let rows: ReturnType<typeof testRows>;

    before(async () => {
      engine = await openEngine({ engine: 'cpu', cacheDir: userCacheDir(process.env) });
      const opened = await openTestSystem(recipe, stage, [
        ...[SMALL_LANGUAGE, vision, ...overrides],
      ]);
      const form = formOf(opened.system);
      const patterns = opened.config.train.frozen;
      system = freezeParameters(opened.system, patterns, form, weightsOf(opened.system));
      isFrozen = frozenPaths(
        patterns,
        leavesOf(form).map(([path]) => path),
      );
      frozen = uploadBatch(engine, { arrays: system.frozen, counts: {}, numTokens: 0 });
      params = system.init(openInitializer(3));
      rows = testRows(TEST_SAMPLES.slice(0, 6), opened.config);
      batch = system.assemble(rows);
    });
    after(() => {
      engine.close();
    });

    const lossOf = async (
      of: HostBatch,
    ): Promise<{ loss: number; gradients: Map<string, number> }> => {
      const run = engine.compile(
        (own: TensorTree, fixed: TensorTree, inputs: TensorTree) => {
          const total = (...leaves: tf.Tensor[]): tf.Scalar =>
            tf.sum(system.sums(withLeaves(own, leaves), fixed, inputs)['next-token']!.lossSum);
          const { value, grads } = tf.valueAndGrads(total)(leavesOf(own).map(([, leaf]) => leaf));
          return { value, largest: grads.map((gradient) => tf.max(tf.abs(gradient))) };
        },
        { name: 'loss' },
      );
      const { value, largest } = await run(params, frozen, uploadBatch(engine, of));
      const paths = leavesOf(params).map(([path]) => path);
      const gradients = new Map<string, number>();
      for (const [i, path] of paths.entries()) gradients.set(path, (await largest[i]!.data())[0]!);
      return { loss: (await value.data())[0]!, gradients };
    };

    void it('every trained parameter has a gradient, through what is frozen', async () => {
      assert.ok(isFrozen.size > 0);
      const trained = leavesOf(params).map(([path]) => path);
      assert.ok(trained.every((path) => !isFrozen.has(path)));
      const { loss, gradients } = await lossOf(batch);
      assert.ok(Number.isFinite(loss) && loss > 0);
      // What is multiplied with something that begins as zero has none yet, nor has what a gain of zero is behind; a key's
      // bias moves all scores of a row alike.
      const isShut = /\/(a|d|down\/(kernel|bias))$|^vision\/stages\/.*\/(narrow|middle|wide)\//;
      const without = [...gradients].filter(([path, size]) => size === 0 && !isShut.test(path));
      assert.deepEqual(without, []);
    });

    void it('nobody sees what stands at padding', async () => {
      const [one, other] = [await lossOf(batch), await lossOf(withOtherPadding(batch))];
      assert.equal(one.loss, other.loss);
    });

    void it('labels are counted once, and the same rows make the same batch', () => {
      const { labels, labelWeights, present } = batch.arrays as Record<string, HostArray>;
      const counted = [...labels!.data].filter((label) => label >= 0).length;
      assert.equal(batch.counts['next-token'], counted);
      assert.ok(labels!.data.every((label, at) => label < 0 || present!.data[at] === 1));
      assert.ok(
        labelWeights!.data.every((weight, at) => (weight === 1) === labels!.data[at]! >= 0),
      );
      assert.deepEqual(system.assemble(rows), batch);
    });

    void it('the first word of a greedy answer is what the loss finds likeliest', async () => {
      const question = 'what colour is it ?';
      const answers = system.answers!;
      const task = system.heldOutTasks.findLast(
        ({ name }) => name === question || name === `${question}, of a film`,
      );
      if (task === undefined) return; // asked nothing but captions
      const generator = openGenerator(engine, answers.model, { maxNewTokens: 1 });
      const prompt = uploadBatch(engine, answers.assemble(rows.slice(0, 1), question));
      const greedy = { strategy: { kind: 'greedy' }, eosIds: [] } as const;
      const [text] = await generator.generate({ params, frozen }, prompt, greedy);
      generator.close();
      const asked = task.assemble(rows.slice(0, 1));
      const { labels, labelWeights } = asked.arrays as Record<string, HostArray>;
      assert.equal(
        [...labelWeights!.data].reduce((a, b) => a + b, 0),
        1,
      );
      const wanted = Int32Array.from(labels!.data, (label, at) =>
        labelWeights!.data[at] === 1 ? text!.ids[0]! : label,
      );
      const likely = { ...asked.arrays, labels: { ...labels!, data: wanted } };
      const run = engine.compile(
        (own: TensorTree, fixed: TensorTree, inputs: TensorTree) =>
          system.sums(own, fixed, inputs)['next-token']!.correct,
        { name: 'correct' },
      );
      const correct = await run(params, frozen, uploadBatch(engine, { ...asked, arrays: likely }));
      assert.equal((await correct.data())[0], 1);
    });
  });
}
