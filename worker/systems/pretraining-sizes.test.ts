import assert from 'node:assert/strict';
import { test } from 'node:test';
import { shapesOnly } from '../initializer.ts';
import { captionedRows, openCaptioned } from '../test/captioned-system.ts';
import { numElements } from '../tree.ts';

/** Parameters as their authors give them, or the released weights have them, and how far ours may be from it. */
const PUBLISHED = {
  clip: { count: 151_277_313, within: 0 }, // openai/clip-vit-base-patch32
  siglip: { count: 203_155_970, within: 0 }, // google/siglip-base-patch16-224
  // A square grid of patches, and contrastive heads of two layers.
  merlot: { count: 223_000_000, within: 0.02 },
  // OFA-Base, of which it is made, has projections of positions in each attention, and norms behind its parts.
  'video-ofa': { count: 180_000_000, within: 0.04 },
} as const;

for (const [recipe, { count: published, within }] of Object.entries(PUBLISHED)) {
  test(`${recipe}'s paper preset has the published number of parameters within ${100 * within} %`, async () => {
    const { system } = await openCaptioned(recipe, { preset: 'paper' });
    const count = numElements(system.init(shapesOnly()));
    console.log(
      `${recipe}: ${count.toLocaleString('en-US')} of ${published.toLocaleString('en-US')}`,
    );
    assert.ok(Math.abs(count / published - 1) <= within, `${count}`);
  });

  test(`${recipe}'s base preset is valid, and rows become a batch of it`, async () => {
    const { system, config } = await openCaptioned(recipe, {
      preset: 'base',
      overrides: ['data.frameSize=32'],
    });
    const { arrays, counts } = system.assemble(captionedRows(config).slice(0, 2));
    for (const { shape } of Object.values(arrays)) assert.equal(shape[0]! % 2, 0);
    assert.deepEqual(Object.keys(counts), Object.keys(system.objectives));
  });
}
