/** How recipes say what a language model is adapted by, and what of a run it leaves to be trained. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { resolveConfig } from '../config.ts';
import { freezeParameters } from '../frozen-parameters.ts';
import { formOf } from '../initial-weights.ts';
import { kindAt, kindDifferences } from '../part-kind.ts';
import { openTestSystem } from '../test/open-system.ts';
import { leavesOf, numElements } from '../tree.ts';
import type { VideoLanguageSystem } from './system.ts';

const DORA = 'model.tuning={method: dora, rank: 2, alpha: 4}';

function messageOf(recipe: string, stage: string, ...overrides: string[]): string | undefined {
  const text = readFileSync(new URL(`../recipes/${recipe}.yaml`, import.meta.url), 'utf8');
  try {
    resolveConfig({ text, file: recipe, stage, overrides });
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

test('the language model is frozen where something is trained in its place', () => {
  const frozen = (parts: string): string => `train.frozen=[${parts}]`;
  assert.equal(
    messageOf('video-llava', 'instruction', DORA, frozen('image, video')),
    'video-llava: model.tuning is trained in place of the language model: add language to train.frozen',
  );
  assert.equal(
    messageOf('video-llava', 'instruction', DORA, frozen('image, video, language')),
    undefined,
  );
  assert.match(
    messageOf('video-llava', 'language', DORA, frozen('blocks'))!,
    /add embedding, finalNorm to train\.frozen/,
  );
  for (const recipe of ['blip2', 'minigpt4', 'minigpt-v2', 'minigpt4-video', 'video-llama']) {
    const stage =
      recipe === 'blip2' ? 'generate' : recipe === 'minigpt4' ? 'finetuning' : 'instruction';
    assert.equal(messageOf(recipe, stage, DORA), undefined, recipe);
  }
});

test('what stands before texts needs learned positions too', () => {
  const opt = ['model.language.kind=opt', 'model.length=40', 'model.maxAnswerTokens=12'];
  const prompt = 'model.tuning={method: prefix, tokens: 5}';
  const message = (places: number) =>
    messageOf('blip2', 'generate', ...opt, prompt, `model.language.maxPositions=${places}`);
  assert.equal(message(57), undefined);
  assert.match(
    message(56)!,
    /no place for model\.tuning\.tokens \(5\), model\.length.*set it to 57/,
  );
});

test('a field that a method does not have is told with those that it has', () => {
  assert.match(
    messageOf('minigpt-v2', 'instruction', 'model.tuning={method: dora, rnk: 2, alpha: 4}')!,
    /unknown field model\.tuning\.rnk; did you mean model\.tuning\.rank\?/,
  );
});

function trainedOf(system: VideoLanguageSystem, frozen: readonly string[]) {
  return formOf(freezeParameters(system, frozen, formOf(system), 'shapes alone'));
}

test('what is summed and saved is the tuning and what else is not frozen', async () => {
  const tuned = await openTestSystem('video-llava', 'instruction', [
    ...['data.windows=2', DORA, 'train.frozen=[image, video, language]'],
  ]);
  const trained = trainedOf(tuned.system, tuned.config.train.frozen);
  const { width, layers } = tuned.config.model['language'] as Record<'width' | 'layers', number>;
  const vision = tuned.config.model['vision'] as { readonly width: number };
  const projection = (vision.width + 1) * width + (width + 1) * width;
  const dora = layers * 2 * (2 * (width + width) + width);
  assert.equal(numElements(trained), projection + dora);
  const { system, config } = await openTestSystem('minigpt-v2', 'instruction', [DORA]);
  const paths = leavesOf(trainedOf(system, config.train.frozen)).map(([path]) => path);
  assert.deepEqual([...new Set(paths.map((path) => path.split('/')[0]))], ['projection', 'tuning']);
});

test("VeRA's vectors are of no use to a run with other matrices, and LoRA's factors of another strength are others", async () => {
  const kindOf = async (tuning: string) => {
    const { system } = await openTestSystem('minigpt-v2', 'instruction', [
      `model.tuning=${tuning}`,
    ]);
    return kindAt(system.kinds!, 'tuning/blocks/0/attention/query/b')!;
  };
  const vera = await kindOf('{method: vera, rank: 2, key: 3}');
  assert.deepEqual(kindDifferences(vera, await kindOf('{method: vera, rank: 2}')), [
    'key is 3 there and 0 in this model',
  ]);
  const lora = await kindOf('{method: lora, rank: 2, alpha: 3}');
  assert.deepEqual(kindDifferences(lora, await kindOf('{method: lora, rank: 2, alpha: 6}')), [
    'alpha is 3 there and 6 in this model',
  ]);
});

test('adapters are in no form that peft has: an export says so', async () => {
  const { system } = await openTestSystem('minigpt-v2', 'instruction', [
    'model.tuning={method: adapters, width: 4}',
  ]);
  const part = system.published!.find(({ path }) => path === 'tuning')!;
  assert.match(part.unfit!, /peft has no adapters of this form/);
  assert.ok(!system.published!.some(({ path }) => path === 'lora'));
});
