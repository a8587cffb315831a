/** `paper` presets begin from released models: names, shapes and kinds of what they take fit. No weights are needed. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { before, describe, it } from 'node:test';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { stagesOf } from '../../config.ts';
import { openInitialSource, type InitialSource } from '../../initial-source.ts';
import { formOf, takenOf } from '../../initial-weights.ts';
import type { VideoLanguageSystem } from '../../systems/system.ts';
import { openTestSystem } from '../../test/open-system.ts';
import { leavesOf, partsOf } from '../../tree.ts';
import { runPeer, whyNoPeer } from '../parity/peer.ts';

const missing = await whyNoPeer();

/** A stage's recipe and the word pieces that its tables have rows for. */
const VOCABULARY: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  blip2: { represent: 30_523, generate: 50_272 },
  'video-llama': { listen: 32_000, alignment: 32_000, instruction: 32_000 },
  'video-llava': { alignment: 32_000, instruction: 32_000 },
  frozen: { captioning: 32_000 },
  'llava-dpo': { alignment: 32_000, instruction: 32_000, preference: 32_000 },
  minigpt4: { pretraining: 32_000, finetuning: 32_000 },
  'minigpt-v2': { pretraining: 32_000, multitask: 32_000, instruction: 32_000 },
  'minigpt4-video': { pictures: 32_000, films: 32_000, instruction: 32_000 },
};

describe('paper presets begin from released models', { skip: missing ?? false }, () => {
  let root: string;
  before(async () => {
    root = await temporaryFolder('released');
    await runPeer('released.py', root);
  });

  it('FLAVA with its heads for pre-training has all of the model', async () => {
    const { tensors, lacking } = await openInitialSource(path.join(root, 'flava-full'));
    assert.deepEqual([...lacking], []);
    assert.ok(tensors.has('joint/classToken'));
  });

  for (const [recipe, vocabularies] of Object.entries(VOCABULARY)) {
    it(recipe, async () => {
      const text = await readFile(new URL(`../../recipes/${recipe}.yaml`, import.meta.url), 'utf8');
      assert.deepEqual(stagesOf(text, 'paper'), Object.keys(vocabularies));
      const before = new Map<string, InitialSource>();
      for (const [stage, vocabulary] of Object.entries(vocabularies)) {
        const opened = await openTestSystem(recipe, stage, [], { preset: 'paper', vocabulary });
        const { system, config } = opened;
        const taken = new Set<string>();
        for (const [k, entry] of config.init.entries()) {
          const folder = path.join(root, path.basename(entry.from));
          const source = before.get(entry.from) ?? (await openInitialSource(folder));
          const where = `${stage}: init[${k}]`;
          for (const name of takenOf(system, entry, { source, where }).keys()) taken.add(name);
        }
        // Whatever is frozen was trained before, here or by its authors, but for norms that no state goes through.
        const frozen = config.train.frozen.filter((pattern) => !pattern.includes('*'));
        for (const [leaf, { shape }] of leavesOf(formOf(system))) {
          if (/^(image|video)\/finalNorm\//.test(leaf)) continue;
          if (!frozen.some((own) => leaf === own || leaf.startsWith(`${own}/`))) continue;
          for (const { name } of partsOf(leaf, shape)) assert.ok(taken.has(name), name);
        }
        before.set(stage, sourceOf(system));
      }
    });
  }
});

/** A stage's run, as later ones take its weights. */
function sourceOf(system: VideoLanguageSystem): InitialSource {
  const tensors = leavesOf(formOf(system)).flatMap(([leaf, { shape }]) =>
    partsOf(leaf, shape).map((part) => {
      const read = () => Promise.reject(new Error('there are no values'));
      return [part.name, { shape: part.shape, read }] as const;
    }),
  );
  return { tensors: new Map(tensors), lacking: new Set(), kinds: system.kinds ?? {} };
}
