/** What a run begins with: weights of a run before it, as far as they mean the same here. */
import assert from 'node:assert/strict';
import { cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { exists } from '../proto/exists.ts';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { openCpuEngine } from './backend/cpu-engine.ts';
import { encodeSafetensors, type TensorData } from './checkpoint/format.ts';
import { withInitialWeights } from './initial-weights.ts';
import { openInitializer } from './initializer.ts';
import { describeRun } from './run.ts';
import { openRunSystem } from './run-system.ts';
import { INITIAL_FILE, readInitialWeights, weightsOfRun } from './run-weights.ts';
import { makeRunFolder, valuesOf } from './test/run-folder.ts';
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

  it('leaves no file of a preparation that broke off, and heeds none that it does not need', async () => {
    const first = await begin('blip2', 'language', [language({})]);
    const other = await begin('blip2', 'language', [language({}), from(first.folder)]);
    const stale = join(other.folder, INITIAL_FILE);
    const folder = join(root, `run-${runs++}`);
    await mkdir(folder);
    await cp(stale, join(folder, INITIAL_FILE));
    const overrides = [language({}), 'train.seed=7'];
    const { system, config, params } = await makeRunFolder(folder, {
      ...{ recipe: 'blip2', stage: 'language', overrides },
    });
    assert.ok(!(await exists(join(folder, INITIAL_FILE))));
    await cp(stale, join(folder, INITIAL_FILE));
    const again = (await withInitialWeights(system, config, { folder, sha256: undefined })).init(
      openInitializer(9),
    );
    const [drawn, found] = [await valuesOf(params), await valuesOf(again)];
    for (const [name, { data }] of drawn) assert.deepEqual(found.get(name)?.data, data, name);
  });

  it('does not begin with drawn weights where the file of the others is missing', async () => {
    const first = await begin('blip2', 'language', [language({})]);
    const second = await begin('blip2', 'language', [language({}), from(first.folder)]);
    const third = await begin('blip2', 'language', [language({}), 'train.frozen=[blocks]']);
    for (const [{ folder, system, config }, field] of [
      [second, 'init'],
      [third, 'train.frozen'],
    ] as const) {
      await rm(join(folder, INITIAL_FILE));
      const wanted = {
        code: 'INITIAL_WEIGHTS_MISSING',
        message: new RegExp(`${folder}/initial.* as ${field} of its config says. Copy it from`),
      };
      await assert.rejects(
        withInitialWeights(system, config, { folder, sha256: undefined }),
        wanted,
      );
      await assert.rejects(weightsOfRun(folder, config), wanted);
    }
  });

  it('is refused with a file in which one bit has flipped, and with one that is cut off', async () => {
    const first = await begin('blip2', 'language', [language({})]);
    const given = ['train.frozen=[blocks]', from(first.folder)];
    const { folder, config } = await begin('blip2', 'language', [language({}), ...given]);
    const file = join(folder, INITIAL_FILE);
    const right = await readFile(file);
    await describeRun(folder);
    const flipped = Buffer.from(right);
    flipped[flipped.length - 5]! ^= 1;
    for (const [bytes, why] of [
      [flipped, /initial.* its SHA-256 is [0-9a-f]{64}, and the plan .* Copy it from/],
      [right.subarray(0, -4), /initial.* cut off/],
    ] as const) {
      await writeFile(file, bytes);
      const wanted = { code: 'INITIAL_WEIGHTS_DAMAGED', message: why };
      // Who trains the run, and who begins from it.
      await assert.rejects(describeRun(folder), wanted);
      await assert.rejects(weightsOfRun(folder, config), wanted);
    }
  });

  it('is refused with a file of other weights', async () => {
    const first = await begin('blip2', 'language', [language({})]);
    const given = ['train.frozen=[blocks]', from(first.folder)];
    const { folder } = await begin('blip2', 'language', [language({}), ...given]);
    const { system, config } = await openRunSystem(folder);
    const right = await readInitialWeights(folder, config, undefined);
    const [name, tensor] = [...right].find(([path]) => path.startsWith('blocks/'))!;
    const without = [...right].filter(([path]) => path !== name);
    for (const [weights, wanted] of [
      [[...right, ['sound', tensor]], /initial.* is not of this run: it has sound, and the model/],
      [
        [...without, [name, { ...tensor, shape: [1, ...tensor.shape] }]],
        /is F32 \[1, .* there, and F32 \[/,
      ],
      [without, /it lacks blocks\/.*, which is frozen/],
    ] as const) {
      const map = new Map(weights as [string, TensorData][]);
      await writeFile(join(folder, INITIAL_FILE), encodeSafetensors(map));
      await assert.rejects(withInitialWeights(system, config, { folder, sha256: undefined }), {
        ...{ code: 'INITIAL_WEIGHTS_UNFIT', message: wanted },
      });
    }
  });
});
