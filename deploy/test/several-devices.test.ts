import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { readSummary, videoloom } from './command.ts';

/** The job with workers that each drive several devices. The same weights need the same mesh, not as many workers. */
const work = await temporaryFolder('work');

const train = (out: string, workers: number, ...overrides: string[]): string[] => [
  ...['train', 'videobert', '--preset', 'tiny', '--steps', '6', '--workers', String(workers)],
  ...['--out', out, 'data.demoTrainClips=24', 'data.demoHeldOutClips=8', 'checkpoint.everySteps=3'],
  ...overrides,
];

test('workers of two devices that share rows and parameters end with the same weights as one such worker', async () => {
  const mesh = ['engine.devices=2', 'parallel.mesh.fsdp=2'];
  for (const workers of [1, 2]) {
    const { code, output } = await videoloom(train(`workers-${workers}`, workers, ...mesh), {
      cwd: work,
    });
    assert.equal(code, 0, output);
  }
  const [one, two] = [
    await readSummary(join(work, 'workers-1')),
    await readSummary(join(work, 'workers-2')),
  ];
  assert.equal(two.weightsSha256, one.weightsSha256);
  assert.deepEqual(two.figures, one.figures);
});

test('another mesh is another run', async () => {
  const { code, output } = await videoloom(train('workers-1', 1, 'engine.devices=2'), {
    cwd: work,
  });
  assert.equal(code, 2, output);
  assert.match(output, /RUN_DIFFERS: .*parallel\.mesh\.fsdp: 2, now 1/);
});

test('rules and meshes that do not fit are refused before anything starts', async () => {
  const cases = [
    [['engine.devices=3'], /train\.microbatchSize \(4\) is not a multiple of the 3 parts/],
    [['engine.devices=2', 'parallel.mesh.tensor=4'], /does not come to engine\.devices \(2\)/],
  ] as const;
  for (const [overrides, message] of cases) {
    const { code, output } = await videoloom(train('refused', 1, ...overrides), { cwd: work });
    assert.equal(code, 2, output);
    assert.match(output, message);
  }
});
