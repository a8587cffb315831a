import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import type { MediaFile, Sample } from '../../video/index/sample.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { uploadBatch } from '../batches.ts';
import { openInitializer } from '../initializer.ts';
import { visualBertLogits, type VisualBertParams } from '../models/visual-bert.ts';
import { visualBertSums, type VisualBertBatch } from '../models/visual-bert-training.ts';
import { CAPTIONED, captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { formulaWeights } from '../test/formula-weights.ts';
import { findRegions, readRegions, REGION_FEATURE_WIDTH, regionFeature } from './regions.ts';
import type { HostBatch } from './system.ts';
import { visualBertSizes } from './visual-bert.ts';

const OVERRIDES = ['data.frameSize=16', 'model.text.width=8', 'model.text.mlpWidth=8'];

function open(options: Omit<Parameters<typeof openCaptioned>[1], 'preset'> = {}) {
  const overrides = [...OVERRIDES, ...(options.overrides ?? [])];
  return openCaptioned('visual-bert', { ...options, preset: 'tiny', overrides });
}

/** Rows of an array of a batch. */
function rowsOf({ arrays }: HostBatch, name: string): number[][] {
  const { data, shape } = arrays[name]!;
  const size = data.length / shape[0]!;
  return Array.from({ length: shape[0]! }, (_, row) => [
    ...data.subarray(row * size, (row + 1) * size),
  ]);
}

test('tables of places and kinds of regions begin as those of the words, and are others', async () => {
  await openCpuEngine();
  const { system } = await open();
  const { bert, regions } = system.init(openInitializer(2)) as VisualBertParams;
  for (const name of ['position', 'segment'] as const) {
    assert.deepEqual(regions[name].dataSync(), bert.embedding[name].dataSync());
    assert.notEqual(regions[name].dataId, bert.embedding[name].dataId);
  }
});

test('losses are their formulas in scalars, over what counts', async () => {
  const engine = await openCpuEngine();
  const { system, config } = await open();
  const batch = system.assemble(captionedRows(config));
  const vocabulary = system.heldOutTasks.at(-1)!.numClasses;
  const model = config.model as unknown as Parameters<typeof visualBertSizes>[0];
  const sizes = visualBertSizes(model, vocabulary);
  const params = formulaWeights(system.init(openInitializer(2))) as VisualBertParams;
  const given = uploadBatch(engine, batch) as unknown as VisualBertBatch;
  const sums = visualBertSums(params, given, sizes);
  const logits = visualBertLogits(params, given, sizes);
  const [words, pairs] = [
    (await logits.words.array()) as number[][][],
    (await logits.pair.array()) as number[][],
  ];
  const loss = (own: readonly number[], label: number): number =>
    Math.log(own.reduce((sum, value) => sum + Math.exp(value), 0)) - own[label]!;
  let [mlm, match, asked] = [0, 0, 0];
  for (const [row, positions] of rowsOf(batch, 'wordPositions').entries()) {
    for (const [slot, at] of positions.entries()) {
      if (rowsOf(batch, 'wordWeights')[row]![slot] === 0) continue;
      asked++;
      mlm += loss(words[row]![at]!, rowsOf(batch, 'wordLabels')[row]![slot]!);
    }
    match += loss(pairs[row]!, rowsOf(batch, 'matchLabels')[row]![0]!);
  }
  assert.ok(asked > 0);
  assert.deepEqual(batch.counts, { mlm: asked, match: CAPTIONED.length });
  for (const [name, wanted] of [
    ['mlm', mlm],
    ['match', match],
  ] as const) {
    const [found] = await sums[name].lossSum.data();
    assert.ok(Math.abs(found! - wanted) < 1e-4 * wanted, `${name} ${found!} ${wanted}`);
  }
});

test('regions that are not there are not seen, those that are there are', async () => {
  const engine = await openCpuEngine();
  const { system, config } = await open({ overrides: ['model.maxRegions=6'] });
  const params = system.init(openInitializer(2));
  const batch = system.assemble(captionedRows(config)); // a grid of 2 x 2
  assert.ok(rowsOf(batch, 'regionsPresent').every((row) => row.join() === '1,1,1,1,0,0'));
  const { regions } = batch.arrays;
  const width = regions!.shape[2]!;
  const lossWith = async (changed: number): Promise<number> => {
    const data = Float32Array.from(regions!.data, (value, i) =>
      Math.floor(i / width) % 6 === changed ? value + 1 : value,
    );
    const arrays = { ...batch.arrays, regions: { ...regions!, data } };
    const { match } = system.sums(params, {}, uploadBatch(engine, { ...batch, arrays }));
    return (await match!.lossSum.data())[0]!;
  };
  const plain = await lossWith(-1);
  assert.equal(await lossWith(4), plain);
  assert.equal(await lossWith(5), plain);
  assert.notEqual(await lossWith(3), plain);
});

test('half of the captions are of other clips; their words are not asked, regions are never hidden', async () => {
  const { system, config } = await open();
  let matched = 0;
  for (let epoch = 0; epoch < 20; epoch++) {
    const rows = captionedRows(config, CAPTIONED, epoch);
    const batch = system.assemble(rows);
    const labels = rowsOf(batch, 'matchLabels').map(([label]) => label);
    for (const [row, label] of labels.entries()) {
      matched += label!;
      const weights = rowsOf(batch, 'wordWeights')[row]!;
      assert.equal(weights.includes(1), label === 1);
      assert.ok(rowsOf(batch, 'regions')[row]!.some((value) => value !== 0));
    }
  }
  // 160 draws: five standard deviations.
  assert.ok(Math.abs(matched - 80) < 5 * Math.sqrt(40), `${matched}`);
});

test('of a picture with several captions the first is its own, the second is its own or not', async () => {
  const samples = CAPTIONED.flatMap((sample): Sample[] => [
    sample,
    { ...sample, id: `${sample.id}b`, text: `there is ${sample.text.slice(2)}` },
  ]);
  const { system, config } = await open({ samples, overrides: ['model.text.maxTokens=24'] });
  const batch = system.assemble(captionedRows(config, samples));
  for (const [row, ids] of rowsOf(batch, 'ids').entries()) {
    const segments = rowsOf(batch, 'segments')[row]!;
    const present = rowsOf(batch, 'present')[row]!;
    assert.ok(segments.includes(1) && segments[0] === 0);
    const second = segments.indexOf(1);
    assert.equal(ids[second - 1], ids[present.lastIndexOf(1)], '[SEP] ends both');
    const positions = rowsOf(batch, 'wordPositions')[row]!;
    const isTrue = rowsOf(batch, 'matchLabels')[row]![0] === 1;
    for (const [slot, weight] of rowsOf(batch, 'wordWeights')[row]!.entries())
      if (weight === 1) assert.ok(isTrue || positions[slot]! < second);
  }
});

test('a box is what its pixels show, where it stands, and nothing where all is blank', async () => {
  const size = 16;
  const frame = Uint8Array.from({ length: size * size * 3 }, (_, i) => (i * 7) % 256);
  const box = [0.25, 0.5, 0.75, 1] as const; // 8 x 8 pixels from (4, 8), so 2 x 2 a cell
  const feature = regionFeature(frame, size, box);
  assert.equal(feature.length, REGION_FEATURE_WIDTH);
  for (const [i, value] of feature.entries()) {
    const [cell, c] = [Math.floor(i / 3), i % 3];
    const [x, y] = [4 + 2 * (cell % 4), 8 + 2 * Math.floor(cell / 4)];
    const pixels = [
      [0, 0],
      [1, 0],
      [0, 1],
      [1, 1],
    ].map(([right, down]) => frame[((y + down!) * size + x + right!) * 3 + c]!);
    const mean = pixels.reduce((a, b) => a + b) / 4;
    assert.ok(Math.abs(value - (mean / 127.5 - 1)) < 1e-6, `[${i}]`);
  }
  const { system, config } = await open();
  const own = rowsOf(system.assemble(captionedRows(config)), 'regions')[0]!;
  // The grid's first region: centre and size.
  assert.deepEqual(own.slice(48, 52), [0.25, 0.25, 0.5, 0.5]);
  const none = await open({ overrides: ['model.boxEmbedding=none'] });
  const bare = none.system.assemble(captionedRows(none.config)).arrays['regions']!;
  assert.equal(bare.shape[2], REGION_FEATURE_WIDTH);
  const blank = await open({ overrides: ['model.blank=true'] });
  const { data } = blank.system.assemble(captionedRows(blank.config)).arrays['regions']!;
  assert.ok(data.every((value) => value === 0));
});

test('regions come from a file beside the medium, or the ground truth of the demo world; a broken one is refused', async () => {
  const root = await temporaryFolder('regions');
  const folder = await temporaryFolder('run');
  await mkdir(join(root, 'a'));
  const file = (path: string): MediaFile => ({ path }) as unknown as MediaFile;
  await writeFile(
    join(root, 'a/told.regions.json'),
    JSON.stringify({ width: 200, height: 100, frames: [{ boxes: [[50, 25, 100, 125]] }] }),
  );
  await writeFile(
    join(root, 'a/truth.json'),
    JSON.stringify({
      ...{ width: 100, height: 100, frames: { ptsSeconds: [0, 0.5, 1], shots: [0, 0, 0] } },
      objects: [{ track: { firstFrame: 1, boxes: [[0, 0, 50, 50], null] } }],
    }),
  );
  await writeFile(join(root, 'a/words.json'), JSON.stringify({ caption: 'a red circle' }));
  const files = ['told.jpg', 'truth.mp4', 'words.mp4', 'alone.mp4'].map((name) =>
    file(`a/${name}`),
  );
  assert.equal(await findRegions({ root, files }, folder, 9), 2);
  assert.deepEqual(await readRegions(folder), [
    { timesSeconds: [0], boxes: [[[0.25, 0.25, 0.5, 1]]] },
    { timesSeconds: [0, 0.5, 1], boxes: [[], [[0, 0, 0.5, 0.5]], []] },
    null,
    null,
  ]);
  await writeFile(join(root, 'a/alone.regions.json'), '{"frames": []}');
  await assert.rejects(findRegions({ root, files }, folder, 9), {
    code: 'REGIONS_UNREADABLE',
    message: /alone\.regions\.json.*width, height and frames/,
  });
});

test('a question with regions of another asks the same words', async () => {
  const { system, config } = await open();
  const named = new Map(system.heldOutTasks.map((task) => [task.name, task]));
  const rows = captionedRows(config);
  const [own, other] = ['red or another', 'red or another, with regions of another'].map((name) =>
    named.get(name)!.assemble(rows),
  ) as [HostBatch, HostBatch];
  for (const name of ['ids', 'wordPositions', 'wordLabels', 'wordWeights'])
    assert.deepEqual(own.arrays[name], other.arrays[name]);
  assert.notDeepEqual(own.arrays['regions'], other.arrays['regions']);
});
