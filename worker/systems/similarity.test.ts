import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { uploadBatch } from '../batches.ts';
import { captionedOf } from '../eval/evaluate-similarity.ts';
import { similarityOf } from '../eval/vectors.ts';
import { freezeParameters } from '../frozen-parameters.ts';
import { openInitializer } from '../initializer.ts';
import { llipSimilarities, type LlipParams } from '../models/llip.ts';
import { CAPTIONED, captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { valuesOf } from '../test/run-folder.ts';
import type { TensorTree } from '../tree.ts';

interface Compared {
  readonly recipe: string;
  readonly clips: string;
  readonly stage?: string;
  readonly overrides?: readonly string[];
}

/** Of each system that compares, what its contrast calls clips and texts. */
const SYSTEMS: readonly Compared[] = [
  { recipe: 'clip', clips: 'clips' },
  { recipe: 'siglip', clips: 'clips' },
  { recipe: 'coca', clips: 'clips' },
  { recipe: 'flava', clips: 'pictures', overrides: ['model.maskedPatches=2'] },
  { recipe: 'blip2', stage: 'represent', clips: 'images' },
];

for (const { recipe, clips, overrides = [], ...own } of SYSTEMS) {
  test(`${recipe} compares clips and texts apart as in training together`, async () => {
    const engine = await openCpuEngine();
    const { system, config } = await openCaptioned(recipe, {
      ...{ preset: 'tiny', overrides: ['data.windows=1', 'data.frameSize=16', ...overrides] },
      ...own,
    });
    const rows = captionedRows(config, CAPTIONED.slice(0, 3));
    const params = system.init(openInitializer(4));
    const { similarity, contrast } = system;
    const together = contrast!.embed(params, {}, uploadBatch(engine, system.assemble(rows)));
    const wanted = [together[clips]!, together['texts']!];
    const apart = [
      similarity!.clips(params, {}, uploadBatch(engine, similarity!.assembleClips(rows))),
      similarity!.texts(
        params,
        {},
        uploadBatch(engine, similarity!.assembleTexts(rows.map(({ sample }) => sample.text))),
      ),
    ];
    for (const [which, tensor] of apart.entries()) {
      assert.deepEqual(tensor.shape, wanted[which]!.shape);
      const [values, others] = [tensor.dataSync(), wanted[which]!.dataSync()];
      for (const [i, value] of values.entries()) assert.ok(Math.abs(value - others[i]!) < 1e-5);
    }
    assert.ok(new Set(apart[1]!.dataSync()).size > apart[1]!.shape[1]!, 'texts differ');
  });
}

test('Llip mixes a clip for each text apart as in training together', async () => {
  const engine = await openCpuEngine();
  const { system, config } = await openCaptioned('llip', {
    ...{ preset: 'tiny', overrides: ['data.windows=2', 'data.frameSize=16', 'model.captions=[]'] },
  });
  const rows = captionedRows(config, CAPTIONED.slice(0, 3));
  const params = system.init(openInitializer(4)) as LlipParams;
  const { similarity, contrast } = system;
  const together = contrast!.embed(params, {}, uploadBatch(engine, system.assemble(rows)));
  const { keys, values, queries, texts } = together as Record<
    'keys' | 'values' | 'queries' | 'texts',
    tf.Tensor
  >;
  const { heads: numHeads, temperature } = (
    config.model as unknown as { mixture: { heads: number; temperature: number } }
  ).mixture;
  const sizes = { numHeads, temperature };
  const wanted = llipSimilarities(params.output, { keys, values }, { queries, texts }, sizes);
  const flat = (x: tf.Tensor): tf.Tensor => tf.reshape(x, [3, -1]);
  const found = similarity!.compare!(
    params,
    {},
    flat(similarity!.clips(params, {}, uploadBatch(engine, similarity!.assembleClips(rows)))),
    flat(
      similarity!.texts(
        params,
        {},
        uploadBatch(engine, similarity!.assembleTexts(rows.map(({ sample }) => sample.text))),
      ),
    ),
  );
  assert.deepEqual(found.shape, [3, 3]);
  const [own, other] = [found.dataSync(), wanted.dataSync()];
  for (const [i, value] of own.entries()) assert.ok(Math.abs(value - other[i]!) < 1e-5);
  assert.ok(new Set(own).size > 3, 'pairs differ');
});

test('a clip of several vectors is as like a text as the most alike of them', () => {
  const text = Float32Array.from([1, 0.5]);
  // Products 2, 3.5 and -1.
  assert.equal(similarityOf(Float32Array.from([1, 2, 3, 1, 0, -2]), text), 3.5);
  assert.equal(similarityOf(Float32Array.from([0.125, 0]), text), 0.125);
});

for (const { recipe, clips: part, stage } of [
  { recipe: 'clip', clips: 'vision' },
  { recipe: 'llip', clips: 'text' },
  { recipe: 'blip2', stage: 'represent', clips: 'vision' },
] as const satisfies readonly Compared[]) {
  test(`${recipe} compares as well where its ${part} is frozen`, async () => {
    const engine = await openCpuEngine();
    const { system, config } = await openCaptioned(recipe, {
      ...{ preset: 'tiny', overrides: ['data.windows=1', 'data.frameSize=16'] },
      ...(stage === undefined ? {} : { stage }),
    });
    const rows = captionedRows(config, CAPTIONED.slice(0, 2));
    const params = system.init(openInitializer(4));
    const weights = await valuesOf(params);
    const held = freezeParameters(system, [part], system.init(openInitializer(5)), weights);
    const arrays = uploadBatch(engine, { arrays: held.frozen, counts: {}, numTokens: 0 });
    const alikeBy = (own: typeof system, trained: TensorTree, fixed: TensorTree): number[] => {
      const how = own.similarity!;
      const seen = how.clips(trained, fixed, uploadBatch(engine, how.assembleClips(rows)));
      const said = uploadBatch(engine, how.assembleTexts(['a red star', 'up']));
      const both = [seen, how.texts(trained, fixed, said)].map((x) => tf.reshape(x, [2, -1]));
      const [clips, texts] = both as [tf.Tensor, tf.Tensor];
      const made = how.compare?.(trained, fixed, clips, texts) ?? tf.concat(both, 1);
      return [...made.dataSync()];
    };
    assert.deepEqual(
      alikeBy(held, held.init(openInitializer(4)), arrays),
      alikeBy(system, params, {}),
    );
  });
}

test('Llip has the captions that it reads, each once; other systems have the whole text', async () => {
  const sample = { ...CAPTIONED[0]!, text: 'a red star moves up' };
  const captionsBy = async (...overrides: string[]): Promise<readonly string[]> => {
    const { system } = await openCaptioned('llip', {
      ...{ preset: 'tiny', overrides: ['data.windows=2', 'data.frameSize=16', ...overrides] },
    });
    return captionedOf([sample, { ...sample, id: 'again' }], system.similarity!)[0]!.captions;
  };
  assert.deepEqual(await captionsBy(), ['a red star', 'moves up']);
  assert.deepEqual(await captionsBy('model.captions=[]'), [sample.text]);
  assert.deepEqual(captionedOf([sample], {})[0]!.captions, [sample.text]);
});
