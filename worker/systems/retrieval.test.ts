import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { uploadBatch } from '../batches.ts';
import { openInitializer } from '../initializer.ts';
import { CAPTIONED, captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { checkGlobalContrast } from '../test/global-contrast.ts';

const OVERRIDES = [
  'data.frameSize=8',
  'model.vision.patchSize=4',
  'model.vision.width=8',
  'model.vision.mlpWidth=8',
  'model.text.width=8',
  'model.text.mlpWidth=8',
];
/** Two clips of it have one caption. */
const ROWS = [0, 1, 2, 3, 4, 5, 6, 0].map((row) => CAPTIONED[row]!);

/** Where captions are whole texts. */
const WHOLE: Readonly<Record<string, readonly string[]>> = { llip: ['model.captions=[]'] };

for (const recipe of ['clip', 'siglip', 'coca', 'llip']) {
  const overrides = [...OVERRIDES, ...(WHOLE[recipe] ?? [])];
  describe(recipe, () => {
    test('the gradient of the global batch is that of one comparison of all rows, whatever its parts', async () => {
      const engine = await openCpuEngine();
      const { system, config } = await openCaptioned(recipe, {
        preset: 'tiny',
        overrides,
      });
      const rows = captionedRows(config, ROWS);
      const { counts } = system.assemble(rows);
      const weights = Object.fromEntries(
        Object.entries(system.objectives).map(([name, weight]) => [name, weight / counts[name]!]),
      );
      await checkGlobalContrast(engine, system, { rows, weights });
    });

    test('a held-out clip is told among all held-out captions, each of them once', async () => {
      const engine = await openCpuEngine();
      const { system, config } = await openCaptioned(recipe, {
        preset: 'tiny',
        overrides,
      });
      const [recall] = system.heldOutTasks;
      assert.equal(recall!.numClasses, CAPTIONED.length);
      const batch = recall!.assemble(captionedRows(config));
      assert.deepEqual(recall!.labels(batch), [0, 1, 2, 3, 4, 5, 6, 7]);
      const sums = system.sums(system.init(openInitializer(3)), {}, uploadBatch(engine, batch));
      const [correct] = await sums['contrastive']!.correct.data();
      assert.ok(correct! >= 0 && correct! <= 8);
    });
  });
}

test('a bag of frames has no order, tubelets have', async () => {
  const engine = await openCpuEngine();
  for (const [recipe, frames] of [
    ['clip', 'bag'],
    ['clip', 'tubelets'],
    ['coca', 'bag'],
    ['coca', 'tubelets'],
  ] as const) {
    const { system, config } = await openCaptioned(recipe, {
      preset: 'tiny',
      overrides: [...OVERRIDES, `model.frames=${frames}`],
    });
    const params = system.init(openInitializer(3));
    const [row] = captionedRows(config);
    const size = config.data.frameSize ** 2 * 3;
    const count = row!.frames.length / size;
    const reversed = Uint8Array.from(row!.frames, (_, i) => {
      const frame = count - 1 - Math.floor(i / size);
      return row!.frames[frame * size + (i % size)]!;
    });
    const [forth, back] = await Promise.all(
      [row!, { ...row!, frames: reversed }].map(async (shown) => {
        const batch = uploadBatch(engine, system.assemble([shown]));
        return system.contrast!.embed(params, {}, batch)['clips']!.data();
      }),
    );
    const difference = Math.max(...forth!.map((value, i) => Math.abs(value - back![i]!)));
    assert.equal(difference > 1e-4, frames === 'tubelets', `${recipe} ${frames} ${difference}`);
  }
});
