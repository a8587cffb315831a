import assert from 'node:assert/strict';
import { before, describe, it, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import type { Sample } from '../../video/index/sample.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import type { Engine } from '../backend/engine.ts';
import { registerGradients } from '../backend/gradients.ts';
import { uploadBatch } from '../batches.ts';
import type { Config } from '../config.ts';
import { freezeParameters } from '../frozen-parameters.ts';
import { formOf } from '../initial-weights.ts';
import { openInitializer } from '../initializer.ts';
import { adamWScalars, initAdamW } from '../optim/adamw.ts';
import { compilePrograms } from '../programs.ts';
import { openShapeSystem } from '../plan-shapes.ts';
import { withReference } from '../reference-parameters.ts';
import { openTestSystem, TEST_SAMPLES, testRows } from '../test/open-system.ts';
import { valuesOf } from '../test/run-folder.ts';
import { leavesOf, mapTree, type TensorTree } from '../tree.ts';
import { preferenceOf, trainedPreference } from './preference-part.ts';
import type { HostBatch, VideoLanguageSystem } from './system.ts';

const OTHER = ['left', 'a red star', 'red', 'down'];

/** With a second answer each, which is liked less. */
const SAMPLES = TEST_SAMPLES.map((sample, at): Sample => ({
  ...sample,
  parts: sample.parts!.map((part) =>
    part.role === 'assistant' ? { ...part, rejected: OTHER[at % OTHER.length]! } : part,
  ),
}));

/** The answer that was liked less as the only one. */
const turned = (sample: Sample): Sample => ({
  ...sample,
  parts: sample.parts!.map((part) => {
    const { rejected, ...rest } = part;
    return rejected === undefined ? part : { ...rest, text: rejected };
  }),
});

const SMALL = [
  'model.language={width: 16, layers: 2, heads: 2, keyValueHeads: 1, mlpWidth: 24}',
  'model.vision={width: 16, layers: 1, heads: 2, mlpWidth: 24}',
  'data.windows=2',
];
const BETA = 0.3;

registerGradients();

const CASES = [
  { what: 'films', recipe: 'llava-dpo', stage: 'preference', views: [''], overrides: [] },
  {
    ...{ what: 'pictures and films', recipe: 'llava-dpo', stage: 'preference' },
    views: [', of a picture', ', of a film'],
    overrides: ['model.pictures=true'],
  },
  {
    ...{ what: 'pictures, with LoRA', recipe: 'minigpt-v2', stage: 'instruction', views: [''] },
    overrides: [
      'model.vision={patchSize: 4, width: 16, layers: 1, heads: 2, mlpWidth: 24}',
      'model.preference={loss: sigmoid, labelSmoothing: 0, shuffled: false}',
    ],
  },
] as const;

for (const { what, recipe, stage, views, overrides } of CASES) {
  void describe(`preferences, of ${what}`, () => {
    let engine: Engine;
    let system: VideoLanguageSystem;
    let config: Config;
    let frozen: TensorTree;
    let params: TensorTree;
    let batch: HostBatch;
    const rowsOf = (samples: readonly Sample[]) => testRows(samples, config);

    before(async () => {
      engine = await openCpuEngine();
      const opened = await openTestSystem(recipe, stage, [
        ...SMALL,
        ...overrides,
        ...[`model.preference.beta=${BETA}`, 'model.preference.answerWeight=0.5'],
      ]);
      config = opened.config;
      const form = formOf(opened.system);
      const weights = await valuesOf(opened.system.init(openInitializer(3)));
      const patterns = config.train.frozen;
      const compared = withReference(opened.system, patterns, form, weights);
      system = freezeParameters(compared, patterns, form, weights);
      frozen = uploadBatch(engine, { arrays: system.frozen, counts: {}, numTokens: 0 });
      params = system.init(openInitializer(3));
      batch = system.assemble(rowsOf(SAMPLES.slice(0, 4)));
    });

    const sumsOf = (own: TensorTree, of: HostBatch) =>
      tf.tidy(() =>
        Object.fromEntries(
          Object.entries(system.sums(own, frozen, uploadBatch(engine, of))).map(([name, sums]) => [
            name,
            { lossSum: sums.lossSum.dataSync()[0]!, correct: sums.correct.dataSync()[0]! },
          ]),
        ),
      );

    void it('begin indifferent: a loss of log 2 a pair, half of the pairs right', () => {
      const { preference, 'reward margin': margin } = sumsOf(params, batch);
      assert.ok(Math.abs(preference!.lossSum / 4 - Math.log(2)) < 1e-6);
      assert.equal(preference!.correct, 2);
      assert.equal(margin!.lossSum, 0);
      assert.deepEqual([batch.counts['preference'], batch.counts['reward margin']], [4, 4]);
    });

    void it('have the loss of the four log-probabilities, each computed of one answer alone', () => {
      const moved = mapTree(params, (tensor) =>
        tf.add(tensor, tf.mul(tf.sin(tf.reshape(tf.range(0, tensor.size), tensor.shape)), 0.1)),
      );
      const single = (own: TensorTree, sample: Sample, view: string, at: number): number => {
        const task = system.heldOutTasks.find(({ name }) => name === `next-token${view}`)!;
        const [row] = rowsOf([sample]);
        return -sumsOf(own, task.assemble([{ ...row!, number: at }]))['next-token']!.lossSum;
      };
      let [loss, margin, correct, answers] = [0, 0, 0, 0];
      for (const [at, sample] of SAMPLES.slice(0, 4).entries()) {
        const view = views[Math.floor((at * views.length) / 4)]!;
        const chosen = single(moved, sample, view, at);
        const gains =
          chosen -
          single(params, sample, view, at) -
          (single(moved, turned(sample), view, at) - single(params, turned(sample), view, at));
        loss += Math.log(1 + Math.exp(-BETA * gains));
        margin += BETA * gains;
        correct += gains > 0 ? 1 : 0;
        answers -= chosen;
      }
      const sums = sumsOf(moved, batch);
      assert.ok(Math.abs(margin) > 0.01, 'the policy has moved');
      assert.ok(Math.abs(sums['preference']!.lossSum - loss) < 1e-4, 'loss');
      assert.ok(Math.abs(sums['reward margin']!.lossSum - margin) < 1e-4, 'margin');
      assert.equal(sums['preference']!.correct, correct);
      assert.ok(Math.abs(sums['next-token']!.lossSum - answers) < 1e-4, 'preferred answers');
    });
  });
}

test('steps move the policy to the preferred answers, and of the reference not a bit', async () => {
  const engine = await openCpuEngine();
  const { system: opened, config } = await openTestSystem('llava-dpo', 'preference', SMALL);
  const form = formOf(opened);
  const weights = await valuesOf(opened.init(openInitializer(3)));
  const { frozen: patterns } = config.train;
  const system = freezeParameters(
    withReference(opened, patterns, form, weights),
    patterns,
    form,
    weights,
  );
  const bytesOf = async (tree: TensorTree): Promise<Buffer> =>
    Buffer.concat(
      await Promise.all(
        leavesOf(tree).map(async ([, leaf]) =>
          Buffer.from(((await leaf.data()) as Float32Array).slice().buffer),
        ),
      ),
    );
  const frozen = uploadBatch(engine, { arrays: system.frozen, counts: {}, numTokens: 0 });
  let params = system.init(openInitializer(3));
  const [trained, before] = [await bytesOf(params), await bytesOf(frozen)];
  const batch = system.assemble(testRows(SAMPLES.slice(0, 4), config));
  const programs = compilePrograms(engine, system, config.optimizer);
  const scales = tf.tensor1d([1 / 4, 0, 0]);
  let state = initAdamW(params);
  const losses: number[] = [];
  for (let step = 1; step <= 3; step++) {
    const inputs = uploadBatch(engine, batch);
    const { gradient, sums } = await programs.gradient(params, frozen, inputs, scales, {});
    losses.push((await sums.data())[0]! / 4);
    const scalars = adamWScalars(config.optimizer, { step, learningRate: 0.01, gradientScale: 1 });
    ({ params, state } = await programs.update(params, state, gradient, tf.tensor1d(scalars)));
  }
  assert.ok(Math.abs(losses[0]! - Math.log(2)) < 1e-6);
  assert.ok(losses[2]! < losses[1]! && losses[1]! < losses[0]!, losses.join());
  assert.ok(!(await bytesOf(params)).equals(trained));
  assert.ok((await bytesOf(frozen)).equals(before));
  // Its weights are those that the policy began with, and a copy of what is trained alone.
  const kept = Object.entries(frozen).filter(([name]) => name.startsWith('reference:'));
  assert.ok((await bytesOf(Object.fromEntries(kept))).equals(trained));
});

test('drawn by lot, half of the preferences are turned round, in every epoch the same', async () => {
  const { system, config } = await openTestSystem('llava-dpo', 'preference', [
    ...[...SMALL, 'model.preference.shuffled=true'],
  ]);
  const turn = preferenceOf(SAMPLES[0]!)!;
  const preference = { shuffled: true } as Parameters<typeof trainedPreference>[1];
  const drawn = Array.from({ length: 400 }, (_, number) =>
    trainedPreference(turn, preference, { seed: 1, number }),
  );
  const numTurned = drawn.filter(({ answer }) => answer === turn.rejected).length;
  assert.ok(Math.abs(numTurned - 200) < 50, String(numTurned));
  const epochs = [0, 1].map((epoch) => system.assemble(testRows(SAMPLES, config, epoch)).arrays);
  assert.deepEqual(epochs[0]!['ids'], epochs[1]!['ids']);
  // What is held out is asked as it is.
  const task = system.heldOutTasks.find(({ objective }) => objective === 'preference')!;
  const plain = await openTestSystem('llava-dpo', 'preference', SMALL);
  const own = plain.system.heldOutTasks.find(({ objective }) => objective === 'preference')!;
  const rows = testRows(SAMPLES, config);
  assert.deepEqual(task.assemble(rows).arrays['ids'], own.assemble(rows).arrays['ids']);
});

test('a plan counts the copy of what is trained', async () => {
  const { config } = await openTestSystem('llava-dpo', 'preference', SMALL);
  const { trained, frozen } = await openShapeSystem(config);
  assert.equal(frozen.get('reference'), trained.get('language'));
  assert.deepEqual([...frozen.keys()].sort(), ['image', 'projection', 'reference', 'video']);
});
