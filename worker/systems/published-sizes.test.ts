/** The originals' sizes: what their authors publish of them, within 1 %. No weights are made. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { frozenPaths } from '../frozen-parameters.ts';
import { formOf } from '../initial-weights.ts';
import { openTestSystem } from '../test/open-system.ts';
import { leavesOf } from '../tree.ts';

/** Parameters by the first parts of their paths, and of what is trained. */
async function sizesOf(recipe: string, stage: string, vocabulary: number) {
  const opened = await openTestSystem(recipe, stage, [], { preset: 'paper', vocabulary });
  const leaves = leavesOf(formOf(opened.system));
  const frozen = frozenPaths(
    opened.config.train.frozen,
    leaves.map(([path]) => path),
  );
  const sum = (isWanted: (path: string) => boolean): number =>
    leaves.reduce((total, [path, { size }]) => total + (isWanted(path) ? size : 0), 0);
  return {
    trained: sum((path) => !frozen.has(path)),
    below: (...names: string[]) =>
      sum((path) => names.some((name) => path === name || path.startsWith(`${name}/`))),
  };
}

function isNear(actual: number, published: number): void {
  const off = Math.abs(actual / published - 1);
  assert.ok(off < 0.01, `${actual} is ${(100 * off).toFixed(2)} % off ${published}`);
}

test('BLIP-2: a Q-Former of 188 million, of which 107 million are trained with OPT-2.7B', async () => {
  // Source: Li et al. 2023, arXiv:2301.12597, sec. 3.1 and table 2; BERT's vocabulary and one token more.
  const first = await sizesOf('blip2', 'represent', 30_523);
  isNear(
    first.below(
      'queries',
      'text',
      'qFormer',
      'visionProjection',
      'textProjection',
      'matchHead',
      'wordHead',
    ),
    188e6,
  );
  const second = await sizesOf('blip2', 'generate', 50_272);
  isNear(second.trained, 107e6);
  isNear(second.below('language'), 2_651_596_800); // facebook/opt-2.7b
  isNear(second.below('vision'), 985_894_528); // LAVIS, eva_vit_g without its last block
});

test('Video-LLaMA: LLaMA-7B and ViT-g frozen, two branches trained', async () => {
  const sizes = await sizesOf('video-llama', 'instruction', 32_000);
  isNear(sizes.below('language'), 6_738_415_616); // lmsys/vicuna-7b
  isNear(sizes.below('vision'), 985_894_528);
});

test('Video-LLaVA: CLIP-L towers but for their last blocks, and Vicuna-7B', async () => {
  const sizes = await sizesOf('video-llava', 'instruction', 32_000);
  isNear(sizes.below('language'), 6_738_415_616);
  // openai/clip-vit-large-patch14's 303,179,776 without its last block of 12,596,224 and its last norm.
  isNear(sizes.below('image'), 303_179_776 - 12_596_224);
  isNear(sizes.below('projection'), 1024 * 4096 + 4096 + 4096 * 4096 + 4096);
});

test('Frozen: NF-ResNet-50 and a linear layer to two vectors are all that is trained', async () => {
  const sizes = await sizesOf('frozen', 'captioning', 32_000);
  isNear(sizes.below('language'), 6_738_415_616); // meta-llama/Llama-2-7b
  // torchvision's ResNet-50 of 25,557,032 without its classifier; of each norm two numbers a channel, which here a gain
  // and a bias are; and a gain of each block.
  assert.equal(sizes.below('vision'), 25_557_032 - (2048 * 1000 + 1000) + 16);
  assert.equal(sizes.below('prefix'), 2 * 4096 * (2048 + 1));
  assert.equal(sizes.trained, sizes.below('vision', 'prefix'));
});

test('MiniGPT-4: one linear layer of 768 to 4,096 is all that is trained', async () => {
  for (const stage of ['pretraining', 'finetuning']) {
    const sizes = await sizesOf('minigpt4', stage, 32_000);
    isNear(sizes.below('language'), 6_738_415_616); // lmsys/vicuna-7b
    isNear(sizes.below('vision'), 985_894_528);
    assert.equal(sizes.trained, 768 * 4096 + 4096);
  }
});

test('MiniGPT-v2: a linear layer of 5,632 to 4,096, LoRA of rank 64, and positions for 1,024 patches', async () => {
  const sizes = await sizesOf('minigpt-v2', 'instruction', 32_000);
  isNear(sizes.below('language'), 6_738_415_616); // meta-llama/Llama-2-7b
  isNear(sizes.below('vision') - sizes.below('vision/position') + 257 * 1408, 985_894_528);
  assert.equal(sizes.below('vision/position'), (1024 + 1) * 1408);
  assert.equal(sizes.below('projection'), 5632 * 4096 + 4096);
  assert.equal(sizes.below('lora'), 32 * 2 * 64 * (4096 + 4096));
  assert.equal(sizes.trained, sizes.below('projection', 'lora', 'vision/position'));
});

test('MiniGPT4-Video: a linear layer of 5,632 to 4,096 and LoRA of rank 64 on queries and values', async () => {
  const sizes = await sizesOf('minigpt4-video', 'instruction', 32_000);
  isNear(sizes.below('language'), 6_738_415_616); // meta-llama/Llama-2-7b
  assert.equal(sizes.below('projection'), 5632 * 4096 + 4096);
  assert.equal(sizes.below('lora'), 32 * 2 * 64 * (4096 + 4096));
  assert.equal(sizes.trained, sizes.below('projection') + sizes.below('lora'));
});
