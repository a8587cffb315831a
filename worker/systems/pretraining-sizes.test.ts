import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readFile } from 'node:fs/promises';
import { resolveConfig } from '../config.ts';
import { shapesOnly } from '../initializer.ts';
import { captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { openShapeSystem } from '../plan-shapes.ts';
import {
  MERLOT_DIFFERENCES,
  MERLOT_REFERENCE,
  OFA_DIFFERENCES,
  OFA_REFERENCE,
  sumOf,
} from '../test/reference-sizes.ts';
import { leavesOf } from '../tree.ts';

/** Parameters that the released weights have. */
const RELEASED = {
  clip: 151_277_313, // openai/clip-vit-base-patch32
  siglip: 203_155_970, // google/siglip-base-patch16-224
} as const;

async function countsOf(recipe: string, overrides: readonly string[] = []) {
  const { system } = await openCaptioned(recipe, { preset: 'paper', overrides });
  const leaves = leavesOf(system.init(shapesOnly()));
  const sum = (isWanted: (path: string) => boolean): number =>
    leaves.reduce((total, [path, { size }]) => total + (isWanted(path) ? size : 0), 0);
  return { total: sum(() => true), sum };
}

for (const [recipe, released] of Object.entries(RELEASED)) {
  test(`${recipe}'s paper preset has the parameters of the released weights`, async () => {
    assert.equal((await countsOf(recipe)).total, released);
  });
}

test("Llip's paper preset is CLIP-B/16 with 64 tokens in place of one, and what mixes them", async () => {
  const clip = 149_620_737; // openai/clip-vit-base-patch16
  const [vision, width, embedding] = [768, 512, 512];
  const tokens = (64 - 1) * 2 * vision; // each with a place of its own
  const mixing = width * width + vision * 2 * width + width * embedding;
  const bias = 1;
  const { total } = await countsOf('llip');
  assert.equal(total, clip - vision * embedding + tokens + mixing + bias);
});

test("MERLOT's paper preset is its released code's model but for what is listed", async () => {
  const { total, sum } = await countsOf('merlot');
  assert.equal(sumOf(MERLOT_REFERENCE), 235_534_634);
  assert.equal(total + sumOf(MERLOT_DIFFERENCES), sumOf(MERLOT_REFERENCE));
  // The 223 million that are published are that without the heads of contrast and order, which fine-tuning drops.
  const tuned = sum((path) => !/^(frameHead|textHead|pairHead)\//.test(path));
  assert.ok(Math.abs(tuned / 223e6 - 1) < 0.01, `${tuned}`);
});

test("VideoOFA's paper preset is OFA-Base's released code's model but for what is listed", async () => {
  const { total } = await countsOf('video-ofa');
  assert.equal(sumOf(OFA_REFERENCE), 182_238_536);
  assert.equal(total + sumOf(OFA_DIFFERENCES), sumOf(OFA_REFERENCE));
  // Its authors publish 180 million. Source: OFA-Sys/OFA, checkpoints.md.
  assert.ok(Math.abs(total / 180e6 - 1) < 0.01, `${total}`);
});

test("CoCa's paper preset is CoCa-Base: a tower of 86 and a decoder of 297 million parameters", async () => {
  // Source: Yu et al. 2022, arXiv:2205.01917, table 1. The poolers and the projections are in neither.
  const { sum } = await countsOf('coca');
  const [vision, text] = ['vision/', 'text/'].map((part) => sum((path) => path.startsWith(part)));
  const decoder = sum((path) => path.startsWith('decoder/'));
  assert.ok(Math.abs(vision! / 86e6 - 1) < 0.01, `${vision}`);
  assert.ok(Math.abs((text! + decoder) / 297e6 - 1) < 0.01, `${text! + decoder}`);
});

/**
 * Source: Devlin et al. 2019, arXiv:1810.04805: BERT-large with its head for hidden words is what is not visual.
 */
test("VideoBERT's paper preset is BERT-large with 20,736 visual words", async () => {
  const [width, visualWords, centroid, length] = [1024, 20_736, 48, 64 + 16 + 3];
  const dense = (numIn: number, numOut: number): number => numIn * numOut + numOut;
  const head = dense(width, width) + 2 * width;
  const blocks =
    24 * (4 * dense(width, width) + dense(width, 4096) + dense(4096, width) + 4 * width);
  const bert = (30_522 + length + 2) * width + 2 * width + blocks + head + 30_522;
  const visual = width + dense(centroid, width) + head + visualWords + dense(width, 1);
  assert.equal(await paperSize('videobert'), bert + visual);
  // bert-large-uncased has 512 positions, and with its head 335,174,458 parameters.
  assert.equal(bert + (512 - length) * width, 335_174_458);
});

/** Parameters of a recipe's paper preset. */
async function paperSize(recipe: string, overrides: readonly string[] = []): Promise<number> {
  const text = await readFile(new URL(`../recipes/${recipe}.yaml`, import.meta.url), 'utf8');
  const config = resolveConfig({ text, file: recipe, preset: 'paper', overrides });
  const { trained } = await openShapeSystem({
    ...config,
    train: { ...config.train, microbatchSize: 1 },
  });
  return sumOf(Object.fromEntries(trained));
}

/**
 * transformers 5.23, FlavaForPreTraining with 77 places for words and without codebook, has 303,524,983; three poolers of
 * 590,592 are read by none of its losses.
 */
test("FLAVA's paper preset has the parameters that the original is trained by", async () => {
  assert.equal(await paperSize('flava'), 303_524_983 - 3 * 590_592);
});

/** transformers 5.23, VisualBertForPreTraining with 128 places for words and regions of 48 numbers. */
test("VisualBERT's paper preset has the parameters of BERT-base with regions", async () => {
  assert.equal(await paperSize('visual-bert'), 109_948_988);
});

/**
 * Source: Yu et al. 2023, arXiv:2309.02591, sec. 2.3 (words and codes) and table of sizes. Named by round numbers, which the
 * blocks and both tables are within 7 % of.
 */
const CM3LEON = [
  { published: 350e6, width: 1024, layers: 24, heads: 16 },
  { published: 760e6, width: 1536, layers: 24, heads: 16 },
  { published: 7e9, width: 4096, layers: 32, heads: 32 },
] as const;

for (const { published, width, layers, heads } of CM3LEON) {
  test(`CM3leon's sizes with ${layers} layers of ${width} are its paper's ${published / 1e6} million`, async () => {
    const mlpWidth = 4 * width;
    const size = await paperSize('cm3leon', [
      `model.decoder={width: ${width}, layers: ${layers}, heads: ${heads}, mlpWidth: ${mlpWidth}}`,
    ]);
    // Four products of attention and two of the MLP without biases, norms without parameters, 8,192 codes and <infill>.
    assert.equal(size, layers * 12 * width ** 2 + (56_320 + 8192 + 1 + 4096) * width);
    assert.ok(Math.abs(size / published - 1) < 0.07, `${size}`);
  });
}

/** Pictures of the base preset, where smaller ones have too few patches for it. */
const SMALLEST: Readonly<Record<string, number>> = { flava: 112 };

for (const recipe of [
  ...['clip', 'siglip', 'llip', 'cm3leon', 'coca', 'merlot', 'video-ofa', 'flava', 'visual-bert'],
]) {
  test(`${recipe}'s base preset is valid, and rows become a batch of it`, async () => {
    const { system, config } = await openCaptioned(recipe, {
      preset: 'base',
      overrides: [`data.frameSize=${SMALLEST[recipe] ?? 32}`],
    });
    const { arrays, counts } = system.assemble(captionedRows(config).slice(0, 2));
    for (const { shape } of Object.values(arrays)) assert.equal(shape[0]! % 2, 0);
    assert.deepEqual(Object.keys(counts), Object.keys(system.objectives));
  });
}
