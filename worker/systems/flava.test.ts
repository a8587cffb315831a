import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import type { Sample } from '../../video/index/sample.ts';
import { patchFeatures } from '../../video/visual-words/patch-features.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { registerGradients } from '../backend/gradients.ts';
import { uploadBatch } from '../batches.ts';
import { openInitializer } from '../initializer.ts';
import { compilePrograms } from '../programs.ts';
import { CAPTIONED, captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { checkGlobalContrast } from '../test/global-contrast.ts';
import { leavesOf } from '../tree.ts';
import type { HostBatch, Row } from './system.ts';

const OVERRIDES = [
  'data.frameSize=16',
  'model.image.patchSize=4',
  ...['image', 'text', 'joint'].flatMap((part) => [
    `model.${part}.width=8`,
    `model.${part}.mlpWidth=8`,
  ]),
];
const ADAMW = { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weightDecay: 0, clipNorm: 1 };

function open(...more: readonly string[]) {
  return openCaptioned('flava', { preset: 'tiny', overrides: [...OVERRIDES, ...more] });
}
const ALL = {
  pairs: ['model.unpaired.pictures=0', 'model.unpaired.texts=0', 'model.mismatchedShare=0'],
  pictures: ['model.unpaired.pictures=1', 'model.unpaired.texts=0'],
  texts: ['model.unpaired.pictures=0', 'model.unpaired.texts=1'],
};

/** Rows of an array of a batch. */
function rowsOf({ arrays }: HostBatch, name: string): number[][] {
  const { data, shape } = arrays[name]!;
  const size = data.length / shape[0]!;
  return Array.from({ length: shape[0]! }, (_, row) => [
    ...data.subarray(row * size, (row + 1) * size),
  ]);
}

test('rows of one modality alone have no part in the multimodal encoder: its gradient is exactly zero', async () => {
  const engine = await openCpuEngine();
  registerGradients();
  const ofJoint =
    /^(joint|imageToJoint|textToJoint|imageProjection|textProjection|logitScale|heads\/(joint|match))/;
  for (const [kind, overrides] of Object.entries(ALL)) {
    const { system, config } = await open(...overrides);
    const params = system.init(openInitializer(3));
    const programs = compilePrograms(engine, system, ADAMW);
    const host = system.assemble(captionedRows(config));
    const batch = uploadBatch(engine, host);
    const scales = tf.ones([Object.keys(system.objectives).length]);
    const embeddings = await programs.contrast!.embed(params, {}, batch);
    const compared = await programs.contrast!.compare(params, {}, embeddings, scales);
    const result = await programs.gradient(params, {}, batch, scales, compared.cotangents);
    const gradient = await programs.readGradient(result.gradient);
    let offset = 0;
    const reached = new Map<string, boolean>();
    for (const [path, { size }] of leavesOf(params)) {
      const own = gradient.subarray(offset, offset + size);
      const direct = (await compared.direct[path]?.data()) ?? new Float32Array(size);
      reached.set(
        path,
        own.some((value, i) => value + direct[i]! !== 0),
      );
      offset += size;
    }
    const reachedOf = (pattern: RegExp): boolean[] => [
      ...new Set([...reached].flatMap(([path, is]) => (pattern.test(path) ? [is] : []))),
    ];
    assert.deepEqual(reachedOf(ofJoint), [kind === 'pairs'], kind);
    assert.deepEqual(reachedOf(/^image\/(blocks|maskToken)/), [kind !== 'texts'], kind);
    assert.deepEqual(reachedOf(/^text\/blocks/), [kind !== 'pictures'], kind);
    assert.deepEqual(reachedOf(/^heads\/image\//), [kind === 'pictures'], kind);
    assert.deepEqual(reachedOf(/^heads\/text\//), [kind === 'texts'], kind);
  }
});

test('the contrast of the global batch is that of its pairs, whatever its parts', async () => {
  const engine = await openCpuEngine();
  const { system, config } = await open(
    'model.unpaired.pictures=0.3',
    'model.unpaired.texts=0.2',
    'train.seed=5',
  );
  const rows = captionedRows(config);
  const numCompared = system.assemble(rows).counts['contrastive']!;
  assert.ok(numCompared > 2 && numCompared < rows.length, `${numCompared}`);
  await checkGlobalContrast(engine, system, { rows, weights: { contrastive: 1 / numCompared } });
});

test('what is hidden is asked by what a row is, in every epoch the same', async () => {
  const { system, config } = await open('model.unpaired.pictures=0.3', 'model.unpaired.texts=0.3');
  const kinds: string[][] = [];
  for (const epoch of [0, 1, 2, 3]) {
    const batch = system.assemble(captionedRows(config, CAPTIONED, epoch));
    const asked = Object.fromEntries(
      ['patchAlone', 'patchJoint', 'wordAlone', 'wordJoint', 'match', 'pair'].map((name) => [
        name,
        rowsOf(batch, `${name}Weights`).map((row) => row.some((weight) => weight !== 0)),
      ]),
    );
    kinds.push(
      CAPTIONED.map((_, row) => {
        const own = Object.keys(asked).filter((name) => asked[name]![row]);
        if (own.join() === 'patchAlone') return 'picture';
        if (own.join() === 'wordAlone') return 'text';
        const isMatch = rowsOf(batch, 'matchLabels')[row]![0] === 1;
        const wanted = isMatch ? 'patchJoint,wordJoint,match,pair' : 'match,pair';
        assert.equal(own.join(), wanted, `row ${row}`);
        return 'pair';
      }),
    );
  }
  for (const other of kinds) assert.deepEqual(other, kinds[0]);
  assert.deepEqual(new Set(kinds[0]), new Set(['pair', 'picture', 'text']));
});

test('a text that does not match tells something else of a picture, and its own is contrasted', async () => {
  const { system, config } = await open(...ALL.pairs.slice(0, 2), 'model.mismatchedShare=1');
  const batch = system.assemble(captionedRows(config));
  const [masked, own] = [rowsOf(batch, 'maskedIds'), rowsOf(batch, 'ids')];
  const [labels, positions] = [rowsOf(batch, 'wordLabels'), rowsOf(batch, 'wordPositions')];
  // Captions are `a COLOUR SHAPE moves WAY`: where colour and shape are the same, a still picture is of both.
  for (const [row, ids] of masked.entries()) {
    assert.equal(rowsOf(batch, 'matchLabels')[row]![0], 0);
    const restored = [...ids];
    for (const [slot, at] of positions[row]!.entries()) restored[at] = labels[row]![slot]!;
    assert.notDeepEqual(restored.slice(2, 4), own[row]!.slice(2, 4));
  }
  assert.equal(batch.counts['mmm-text'], 0);
  assert.equal(batch.counts['itm'], CAPTIONED.length);
});

test('hidden patches are asked for what they look like, hidden words for what stood there', async () => {
  const { system, config } = await open(...ALL.pairs);
  // Patches of one colour each, of which there are four.
  const shades = [0, 80, 160, 240];
  const size = 16;
  const painted = captionedRows(config).map((row, number): Row => {
    const frame = Uint8Array.from({ length: size * size * 3 }, (_, i) => {
      const [x, y] = [Math.floor(i / 3) % size, Math.floor(i / 3 / size)];
      return shades[(number + Math.floor(x / 4) + Math.floor(y / 4) * 3) % 4]!;
    });
    return { ...row, frames: Uint8Array.from(row.frames, (_, i) => frame[i % frame.length]!) };
  });
  const batch = system.assemble(painted);
  const [positions, labels] = [rowsOf(batch, 'patchPositions'), rowsOf(batch, 'patchLabels')];
  const codeOf = new Map<number, number>();
  for (const [row, { frames }] of painted.entries()) {
    const features = patchFeatures(frames.subarray(0, size * size * 3), { size, patchSize: 4 });
    const hidden = rowsOf(batch, 'hiddenPatches')[row]!;
    assert.equal(hidden.filter((is) => is === 1).length, positions[row]!.length);
    for (const [slot, patch] of positions[row]!.entries()) {
      assert.equal(hidden[patch], 1);
      const shade = Math.round(255 * features[patch * 48]!);
      const code = labels[row]![slot]!;
      assert.equal(codeOf.get(shade) ?? code, code, 'one look is one word');
      codeOf.set(shade, code);
    }
  }
  assert.equal(codeOf.size, 4);
  const [masked, own] = [rowsOf(batch, 'maskedIds'), rowsOf(batch, 'ids')];
  for (const [row, ids] of masked.entries()) {
    const places = rowsOf(batch, 'wordPositions')[row]!;
    const weights = rowsOf(batch, 'wordJointWeights')[row]!;
    for (const [at, id] of ids.entries())
      if (!places.includes(at)) assert.equal(id, own[row]![at], 'only what is asked is changed');
    for (const [slot, at] of places.entries())
      if (weights[slot] === 1) assert.equal(rowsOf(batch, 'wordLabels')[row]![slot], own[row]![at]);
  }
});

test('a question with another picture hides the same words, and a blind system sees grey', async () => {
  const { system, config } = await open();
  const [word, other] = system.heldOutTasks;
  const rows = captionedRows(config);
  const [asked, swapped] = [word!.assemble(rows), other!.assemble(rows)];
  // `a COLOUR SHAPE moves WAY`
  assert.deepEqual(new Set(rowsOf(asked, 'wordPositions').map(([at]) => at)), new Set([2]));
  for (const name of ['maskedIds', 'wordPositions', 'wordLabels', 'wordJointWeights'])
    assert.deepEqual(asked.arrays[name], swapped.arrays[name], name);
  const [own, others] = [rowsOf(asked, 'pixels'), rowsOf(swapped, 'pixels')];
  for (const [row, pixels] of own.entries()) assert.notDeepEqual(pixels, others[row]);
  const blind = await open('model.blind=true');
  for (const batch of [blind.system.assemble(rows), blind.system.heldOutTasks[0]!.assemble(rows)])
    assert.deepEqual(new Set(batch.arrays['pixels']!.data), new Set([0x80808080 | 0]));
});

test('a text without a picture and a picture without words are what they are', async () => {
  const text: Sample = { ...CAPTIONED[0]!, media: [] };
  const picture: Sample = { ...CAPTIONED[1]!, text: '', cues: [] };
  const { system, config } = await open(...ALL.pairs);
  const batch = system.assemble(captionedRows(config, [text, picture]));
  const { counts } = batch;
  assert.deepEqual([counts['contrastive'], counts['itm'], counts['mmm-text']], [0, 0, 0]);
  assert.ok(rowsOf(batch, 'wordAloneWeights')[0]!.includes(1));
  assert.ok(!rowsOf(batch, 'patchAloneWeights')[0]!.includes(1));
  assert.ok(!rowsOf(batch, 'wordAloneWeights')[1]!.includes(1));
  assert.ok(!rowsOf(batch, 'patchAloneWeights')[1]!.includes(0));
  const tasks = new Map(system.heldOutTasks.map((task) => [task.name, task]));
  const [word, patch] = [tasks.get('red or another'), tasks.get('masked-patch')];
  assert.deepEqual([word!.asks!(text), word!.asks!(picture)], [false, false]);
  assert.deepEqual([patch!.asks!(text), patch!.asks!(picture)], [false, true]);
});
