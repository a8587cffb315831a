import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import type { Figure } from '../../proto/gen/videoloom/v1/run.ts';
import type { SampleIndex } from '../../video/index/sample-index.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { openInitializer } from '../initializer.ts';
import type { Programs } from '../programs.ts';
import type { Run } from '../run.ts';
import { openCaptioned } from '../test/captioned-system.ts';
import { testRows } from '../test/open-system.ts';
import { placedSamples } from '../test/placed-samples.ts';
import { mapTree, type TensorTree } from '../tree.ts';
import { languageOf } from '../systems/language-part.ts';
import {
  mergedPatches,
  type MergedPatchesConfig,
  type MergedPatchesParams,
} from '../systems/merged-patches.ts';
import type { HostArray, HostBatch, WrittenTask } from '../systems/system.ts';
import type { HeldOutOptions } from './held-out-rows.ts';
import { bestConstant, writtenFigures } from './written.ts';

const SAMPLES = placedSamples(2);
const WIDTHS = 'width: 16, layers: 2, heads: 2, mlpWidth: 24';
const NUM_NEW = 3;

async function opened() {
  const engine = await openCpuEngine();
  const { system, config } = await openCaptioned('minigpt-v2', {
    ...{ stage: 'instruction', samples: SAMPLES },
    overrides: [
      `model.language={${WIDTHS}, keyValueHeads: 2}`,
      `model.vision={patchSize: 8, ${WIDTHS}}`,
      ...['data.frameSize=32', `model.maxAnswerTokens=${NUM_NEW}`, 'model.length=40'],
      'train.microbatchSize=4',
    ],
  });
  const rows = testRows(SAMPLES, config);
  const clips = rows.map(({ frames, timesSeconds }) => ({ frames, timesSeconds }));
  const run = {
    ...{ system, config },
    index: { heldOut: SAMPLES } as unknown as SampleIndex,
    heldOutLoader: {
      load: (leases: readonly { readonly sample: number }[]) =>
        Promise.resolve(leases.map(({ sample }) => ({ sample, ...clips[sample]! }))),
    },
  } as unknown as Run;
  const params = system.init(openInitializer(3));
  // Large enough for answers that differ from one another.
  const loud = mapTree(params, (tensor) => tf.mul(tensor, 3));
  return { engine, system, run, rows, params, loud };
}

/** The likeliest words of a row, each found by going through the whole conversation again. */
function greedyOf(
  { system, run, loud }: Awaited<ReturnType<typeof opened>>,
  prompt: HostBatch,
): string {
  const params = loud as MergedPatchesParams;
  const { data } = run.config;
  const model = run.config.model as unknown as MergedPatchesConfig;
  const rows = (params.language as { readonly embedding: tf.Tensor }).embedding.shape[0];
  const language = languageOf(model.language, rows);
  const { seen, languageOf: adapted } = mergedPatches(model, data, language);
  const [ids, present, softRows, pictures] = ['ids', 'present', 'softRows', 'pictures'].map(
    (name) => prompt.arrays[name]!,
  ) as [HostArray, HostArray, HostArray, HostArray];
  const soft = seen(
    params,
    tf.tensor2d(pictures.data, pictures.shape as [number, number], 'int32'),
  );
  const length = present.data.indexOf(0);
  const words: number[] = [];
  while (words.length < NUM_NEW) {
    const all = [...ids.data.subarray(0, length), ...words];
    const states = language.decoder.states(adapted(params), {
      ids: tf.tensor2d(all, [1, all.length], 'int32'),
      present: tf.ones([1, all.length]),
      softRows: tf.tensor2d(softRows.data.subarray(0, all.length), [1, all.length], 'int32'),
      soft,
    });
    const logits = language.decoder.logits(adapted(params), states);
    const likeliest = tf.argMax(logits, -1).dataSync()[all.length - 1]!;
    if (system.answers!.eosIds.includes(likeliest)) break;
    words.push(likeliest);
  }
  return system.answers!.decode(words);
}

test('what is written is the likeliest word after word, and workers that share it find the same', async () => {
  const all = await opened();
  const { engine, system, run, rows, params, loud } = all;
  const spoken: string[] = [];
  for (const row of rows.slice(0, 5))
    spoken.push(greedyOf(all, system.writtenTasks![4]!.assemble([row])));
  assert.ok(new Set(spoken).size > 1, spoken.join());
  // Of five samples those are right that say what the first of them says.
  const task: WrittenTask = {
    ...system.writtenTasks![4]!,
    name: 'first five',
    asks: (sample) => SAMPLES.indexOf(sample) < 5,
    isRight: (_sample, text) => text === spoken[0],
  };
  const own = { ...run, system: { ...system, writtenTasks: [task] } };
  const options = (rank: number, worldSize: number, parts: Float64Array[]): HeldOutOptions => ({
    ...{ run: own, engine, frozen: {}, microbatchSize: 4, rank, worldSize, step: 1 },
    programs: undefined as unknown as Programs<TensorTree>,
    collectives: {
      allGather: (_step: number, _name: string, tally: Float64Array) => {
        parts.push(tally);
        return Promise.resolve(parts);
      },
    },
    signal: new AbortController().signal,
  });
  const wanted = spoken.filter((text) => text === spoken[0]).length / 5;
  const alone = await writtenFigures(options(0, 1, []), loud, params);
  assert.deepEqual(
    alone.map(({ name, value, count }) => ({ name, value, count })),
    [{ name: 'first five', value: wanted, count: 5 }],
  );
  const parts: Float64Array[] = [];
  await writtenFigures(options(0, 2, parts), loud, params);
  const shared: Figure[] = await writtenFigures(options(1, 2, parts), loud, params);
  assert.deepEqual(shared, alone);
  engine.close();
});

test('chance is what the best constant answer reaches', () => {
  const task = {
    answerOf: ({ text }: { readonly text: string }) => text,
    isRight: ({ text }: { readonly text: string }, said: string) =>
      Math.abs(Number(text) - Number(said)) <= 1,
  };
  const samples = ['1', '2', '3', '9'].map((text) => ({ ...SAMPLES[0]!, text }));
  assert.equal(bestConstant(task, samples), 3 / 4); // 2 is near 1, 2 and 3
});
