/** What a run begins with: weights of a run before it, as far as they mean the same here. */
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { openCpuEngine } from './backend/cpu-engine.ts';
import { makeRunFolder } from './test/run-folder.ts';
import { disposeTree } from './tree.ts';

const SIZES = { kind: 'llama', width: 16, layers: 1, mlpWidth: 24, maxPositions: 64, tied: true };

describe('a run that begins from another', () => {
  let root: string;
  let runs = 0;
  before(async () => {
    await openCpuEngine();
    root = await temporaryFolder('initial');
  });

  /** A run of a recipe's stage, and its folder. */
  const begin = async (recipe: string, stage: string | undefined, overrides: readonly string[]) => {
    const folder = join(root, `run-${runs++}`);
    await mkdir(folder);
    const given = stage === undefined ? {} : { stage };
    const { params, ...made } = await makeRunFolder(folder, { recipe, ...given, overrides });
    disposeTree(params);
    return { folder, ...made };
  };
  const language = (fields: object): string =>
    `model.language=${JSON.stringify({ ...SIZES, heads: 4, keyValueHeads: 4, ...fields })}`;
  const from = (folder: string, more: object = {}): string =>
    `init=${JSON.stringify([{ from: folder, ...more }])}`;

  it('is refused where it would compute something else with weights that fit', async () => {
    const { folder } = await begin('blip2', 'language', [language({})]);
    const init = from(folder);
    await begin('blip2', 'language', [language({}), init]);
    for (const [fields, wanted] of [
      [{ heads: 2, keyValueHeads: 2 }, /heads is 4 there and 2 in this model/],
      [{ ropeTheta: 500 }, /ropeTheta is 10000 there and 500 in this model/],
      [{ epsilon: 1e-6 }, /epsilon is 0.00001 there and 0.000001 in this model/],
    ] as const) {
      await assert.rejects(begin('blip2', 'language', [language(fields), init]), wanted);
    }
  });

  it('is refused so too where a part has another path there', async () => {
    const bind = [
      'data.frameSize=16',
      'model.vision={width: 16, layers: 1, heads: 2, mlpWidth: 24}',
    ];
    const { folder } = await begin('blip2', 'bind', bind);
    const part = from(folder, { take: 'image/tower', as: 'vision' });
    const represent = (heads: number): Promise<unknown> =>
      begin('blip2', 'represent', [
        ...['data.frameSize=16', part],
        `model.vision={width: 16, layers: 1, heads: ${heads}, mlpWidth: 24}`,
        'model.qFormer={queries: 2, width: 16, layers: 2, heads: 2, mlpWidth: 24}',
      ]);
    await represent(2);
    await assert.rejects(represent(4), /image\/tower\/.* and vision\/.*heads is 2 there and 4/);
  });

  it('is refused so too by what listens', async () => {
    const listen = (heads: number): string[] => [
      `model.audio={segments: 8, width: 16, layers: 1, heads: ${heads}, mlpWidth: 24}`,
    ];
    const listening = await begin('video-llama', 'listen', listen(2));
    await assert.rejects(
      begin('video-llama', 'listen', [...listen(4), from(listening.folder)]),
      /audio\/tower\/.*heads is 2 there and 4 in this model/,
    );
  });
});
