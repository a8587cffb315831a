/** Heads of models that begin from those whose table of words is their head too. */
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { trainTokenizer } from '../video/text/tokenizer.ts';
import { openCpuEngine } from './backend/cpu-engine.ts';
import type { Engine } from './backend/engine.ts';
import { openInitializer } from './initializer.ts';
import { initLlama, llama, type LlamaConfig, type LlamaParams } from './models/llama.ts';
import { llamaConfigJson, llamaWeights } from './pretrained/llama.ts';
import { writeModelFolder } from './pretrained/model-folder.ts';
import { largestDifference } from './pretrained/parity/reference-tensors.ts';
import { exportTree } from './pretrained/weights.ts';
import { TEST_SAMPLES } from './test/open-system.ts';
import { makeRunFolder } from './test/run-folder.ts';
import { leavesOf } from './tree.ts';

const SIZES: LlamaConfig = {
  ...{ vocabularySize: 40, width: 24, mlpWidth: 40, numLayers: 2, numHeads: 3, headWidth: 8 },
  ...{ numKeyValueHeads: 3, epsilon: 1e-5, ropeTheta: 10_000, isTied: true },
};
const language = (tied: boolean): string =>
  `model.language=${JSON.stringify({
    ...{ kind: 'llama', width: 24, layers: 2, heads: 3, keyValueHeads: 3, mlpWidth: 40 },
    ...{ maxPositions: 64, tied },
  })}`;

describe('a head of its own, from a model whose table of words is its head', () => {
  let root: string;
  let engine: Engine;
  let tied: LlamaParams;

  before(async () => {
    engine = await openCpuEngine();
    root = await temporaryFolder('tied');
    tied = initLlama(SIZES, openInitializer(3));
    await writeModelFolder(join(root, 'model'), {
      config: llamaConfigJson(SIZES, 64),
      tensors: await exportTree(tied, llamaWeights(SIZES)),
    });
    const words = trainTokenizer(
      TEST_SAMPLES.map(({ text }) => text),
      { vocabularySize: 40 },
    );
    await writeFile(join(root, 'model', 'tokenizer.json'), JSON.stringify(words));
    const roles = { cls_token: '[CLS]', sep_token: '[SEP]', pad_token: '[PAD]' };
    await writeFile(join(root, 'model', 'tokenizer_config.json'), JSON.stringify(roles));
  });
  after(() => {
    engine.close();
  });

  const begin = async (name: string, overrides: readonly string[]) => {
    const folder = join(root, name);
    await mkdir(folder);
    return makeRunFolder(folder, { recipe: 'blip2', stage: 'language', overrides });
  };
  const from = (entry: object): string => `init=${JSON.stringify([entry])}`;
  const ids = tf.tensor2d([2, 9, 12, 7, 5, 8, 2, 8, 11, 6, 1, 4], [2, 6], 'int32');
  const logitsOf = (params: LlamaParams, isTied: boolean): tf.Tensor => {
    const decoder = llama({ ...SIZES, isTied });
    return decoder.logits(params, decoder.states(params, { ids, present: tf.ones([2, 6]) }));
  };

  it('begins as that: it computes what the model computes, from its folder or from a run', async () => {
    await begin('run', [language(true), from({ from: join(root, 'model') })]);
    for (const source of ['model', 'run']) {
      const { params } = await begin(`own-${source}`, [
        language(false),
        from({ from: join(root, source) }),
      ]);
      assert.ok(new Map(leavesOf(params)).has('head/kernel'));
      const [ours, theirs] = [logitsOf(params as LlamaParams, false), logitsOf(tied, true)];
      const difference = await largestDifference(ours, theirs);
      assert.ok(difference < 1e-5, `from the ${source}, logits are off by ${difference}`);
    }
  });

  it('is drawn where the words are taken alone, or where it is skipped', async () => {
    const drawn = async (name: string, entry: object): Promise<boolean> => {
      const { params } = await begin(name, [
        language(false),
        from({ from: join(root, 'model'), ...entry }),
      ]);
      const { head, embedding } = params as LlamaParams;
      return (await largestDifference(head!.kernel, tf.transpose(embedding))) > 1e-3;
    };
    assert.ok(await drawn('words', { take: 'embedding', as: 'embedding' }));
    assert.ok(await drawn('skipped', { skip: ['head'] }));
  });
});
