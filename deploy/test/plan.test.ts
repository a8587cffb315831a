import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { videoloom } from './command.ts';

test('plan answers for all stages of a model of 7.8 thousand million parameters, by its shapes', async () => {
  const work = await temporaryFolder('work');
  const startMs = performance.now();
  const args = ['plan', 'minigpt4-video', '--preset', 'paper'];
  const { code, output } = await videoloom(args, { cwd: work });
  assert.equal(code, 0, output);
  const seconds = (performance.now() - startMs) / 1000;
  for (const stage of ['pictures', 'films', 'instruction'])
    assert.match(output, new RegExp(`^${stage}$`, 'm'));
  assert.match(output, /^parameters +56,627,200 .*projection 23,072,768, lora 33,554,432$/m);
  assert.match(output, /^frozen +7,724,367,872 .*language 6,738,415,616$/m);
  assert.match(output, /^memory a device +about [\d.]+ MiB$/m);
  assert.match(output, /^work +[\d.e+]+ GFLOP/m);
  assert.match(output, /planned by shapes, nothing of it was run/);
  assert.deepEqual(await readdir(work), [], 'no data was made');
  console.log(`${seconds.toFixed(1)} s`);
});

test('plan says what a run will take, and leaves no run behind', async () => {
  const work = await temporaryFolder('work');
  const args = [
    'plan',
    'videobert',
    '--preset',
    'tiny',
    'data.demoTrainClips=24',
    'model.layers=6',
  ];
  const { code, output } = await videoloom([...args, 'data.demoHeldOutClips=8'], { cwd: work });
  assert.equal(code, 0, output);
  const number = (pattern: RegExp): number => {
    const found = pattern.exec(output)?.[1];
    assert.ok(found !== undefined, `${pattern.source} in\n${output}`);
    return Number(found.replaceAll(',', ''));
  };
  const line = /^parameters +([\d,]+) \(([\d.]+) MiB\): (.*)$/m.exec(output)!;
  const modules = line[3]!.split(', ').map((text) => text.split(' ') as [string, string]);
  const sizes = new Map(modules.map(([name, size]) => [name, Number(size.replaceAll(',', ''))]));
  const total = [...sizes.values()].reduce((a, b) => a + b, 0);
  assert.equal(number(/^parameters +([\d,]+)/m), total);
  // A block: attention 4 w^2 + 4 w, MLP of four times the width 8 w^2 + 5 w, two norms 4 w.
  const width = 32;
  assert.equal(sizes.get('blocks'), 6 * (12 * width ** 2 + 13 * width));
  assert.equal(
    number(/^optimiser state +([\d.]+) MiB/m),
    Number(((8 * total) / 2 ** 20).toFixed(1)),
  );
  // Parameters, two moments and the gradient are there at once.
  assert.ok(number(/^memory a device +([\d.]+) MiB/m) >= (16 * total) / 2 ** 20 - 0.1);
  // Forward and backward of the blocks' kernels alone: 6 operations a weight and token.
  // 4 microbatches of 4 clips; [CLS], 20 word pieces, [>], 6 windows, [SEP].
  const tokens = 4 * 4 * (1 + 20 + 1 + 6 + 1);
  const least = (6 * 12 * width ** 2 * 6 * tokens) / 1e9;
  const gigaflops = number(/^work +([\d.e+-]+) GFLOP/m);
  assert.ok(
    gigaflops > least && gigaflops < 4 * least,
    `${gigaflops} GFLOP, blocks alone ${least}`,
  );
  assert.match(output, /^limit +[\d.e-]+ s a step at the [\d.]+ GFLOP\/s/m);
  assert.doesNotMatch(output, /run folder/, 'the one it made for itself is gone');
  assert.deepEqual(await readdir(work), ['data']);
});
