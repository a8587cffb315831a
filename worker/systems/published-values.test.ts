/** Values of paper presets that papers and released code state, where the demo's or a default would stand otherwise. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { resolveConfig, stagesOf, type Config } from '../config.ts';

async function stages(recipe: string, preset: string): Promise<Record<string, Config>> {
  const text = await readFile(new URL(`../recipes/${recipe}.yaml`, import.meta.url), 'utf8');
  const named = stagesOf(text, preset).map((stage) => {
    const config = resolveConfig({ text, file: recipe, preset, stage, overrides: [] });
    return [stage, config] as const;
  });
  return Object.fromEntries(named);
}

const batchOf = ({ train }: Config): number => train.microbatches * train.microbatchSize;
const modelOf = (config: Config) => config.model as unknown as Record<string, unknown>;

test('BLIP-2: batches of 1,680 and, with OPT, 1,920; texts of 32 tokens; crops of half the picture and more', async () => {
  // Source: arXiv:2301.12597, sec. 3.4; salesforce/LAVIS, blip2_qformer.py (max_txt_len), blip_processors.py (min_scale).
  const { represent, generate } = await stages('blip2', 'paper');
  assert.deepEqual([batchOf(represent!), batchOf(generate!)], [1680, 1920]);
  assert.equal(modelOf(represent!)['textLength'], 32);
  for (const { data } of [represent!, generate!])
    assert.deepEqual(data.augment, { crop: true, cropScale: [0.5, 1], flip: true });
});

test('CLIP: a random square crop is the only augmentation', async () => {
  // Source: Radford et al. 2021, arXiv:2103.00020, sec. 2.3.
  const text = await readFile(new URL('../recipes/clip.yaml', import.meta.url), 'utf8');
  const { data } = resolveConfig({ text, file: 'clip', preset: 'paper', overrides: [] });
  assert.deepEqual([data.augment.crop, data.augment.flip], ['square', false]);
});

test('CM3leon: 1,024 of 8,192 codes a picture, 4,096 places, eight million tokens a batch', async () => {
  // Source: Yu et al. 2023, arXiv:2309.02591, sec. 2.1 to 2.3 and table of sizes.
  const text = await readFile(new URL('../recipes/cm3leon.yaml', import.meta.url), 'utf8');
  const config = resolveConfig({ text, file: 'cm3leon', preset: 'paper', overrides: [] });
  const model = modelOf(config) as Record<string, number>;
  const { patchSize, positions, textTokens, visualBranching, visualDepth } = model;
  const numPatches = (config.data.frameSize / patchSize!) ** 2;
  assert.equal(numPatches, 1024);
  assert.equal(visualBranching! ** visualDepth!, 8192);
  assert.deepEqual([positions, model['textVocabulary']], [4096, 56_320]);
  const tokens = batchOf(config) * (numPatches + textTokens! + 6);
  assert.ok(Math.abs(tokens / 8e6 - 1) < 0.06, `${tokens}`);
  const { learningRate, warmupSteps } = config.optimizer;
  assert.deepEqual([learningRate, warmupSteps], [1.2e-4, 1500]);
  // 2.4 trillion tokens.
  assert.ok(Math.abs((tokens * config.train.steps) / 2.4e12 - 1) < 0.06);
});

test('CoCa: batches of 65,536 pictures of 288 pixels in patches of 18, captions weigh twice', async () => {
  // Source: Yu et al. 2022, arXiv:2205.01917, sec. 3.2 and 4.1.
  const text = await readFile(new URL('../recipes/coca.yaml', import.meta.url), 'utf8');
  const config = resolveConfig({ text, file: 'coca', preset: 'paper', overrides: [] });
  assert.equal(batchOf(config), 65_536);
  assert.equal(config.data.frameSize, 288);
  const model = config.model as unknown as {
    readonly vision: { readonly patchSize: number };
    readonly text: { readonly maxTokens: number; readonly vocabulary: number };
    readonly captionQueries: number;
    readonly weights: object;
  };
  assert.equal(model.vision.patchSize, 18);
  assert.deepEqual([model.text.maxTokens, model.text.vocabulary], [64, 64_000]);
  assert.equal(model.captionQueries, 256);
  assert.deepEqual(model.weights, { contrastive: 1, captioning: 2 });
});

test('FLAVA: 75 of 196 patches in blocks of 16 and more, batches of 8,192, a tenth of the pairs mismatched', async () => {
  // Source: Singh et al. 2022, arXiv:2112.04482, sec. 3 and appendix; BEiT, arXiv:2106.08254, sec. 2.3;
  // facebookresearch/multimodal, examples/flava (itm_probability).
  const text = await readFile(new URL('../recipes/flava.yaml', import.meta.url), 'utf8');
  const config = resolveConfig({ text, file: 'flava', preset: 'paper', overrides: [] });
  const { maskedPatches, leastBlock, mismatchedShare, visualBranching, visualDepth } =
    modelOf(config);
  assert.deepEqual([maskedPatches, leastBlock, mismatchedShare], [75, 16, 0.1]);
  assert.equal((visualBranching as number) ** (visualDepth as number), 8192);
  assert.equal(batchOf(config), 8192);
});

test('Llip: 64 tokens, in the recipe of MetaCLIP, on whose code it is built: batches of 32,768', async () => {
  // Source: Lavoie et al. 2024, arXiv:2405.00740; Xu et al. 2024, arXiv:2309.16671, sec. 4.
  const text = await readFile(new URL('../recipes/llip.yaml', import.meta.url), 'utf8');
  const config = resolveConfig({ text, file: 'llip', preset: 'paper', overrides: [] });
  assert.equal((modelOf(config)['mixture'] as Record<string, number>)['tokens'], 64);
  assert.equal(batchOf(config), 32_768);
});

test('Frozen: Adam at a constant 3e-4, batches of 128 pictures of 224 pixels that are padded to squares, two vectors', async () => {
  // Source: arXiv:2106.13884, sec. 3 and 4.
  const { captioning } = await stages('frozen', 'paper');
  const { data, optimizer, model } = captioning!;
  assert.equal(batchOf(captioning!), 128);
  assert.deepEqual([data.frameSize, data.fit], [224, 'contain']);
  const { learningRate, warmupSteps, finalFraction, beta1, beta2, weightDecay } = optimizer;
  assert.deepEqual([learningRate, warmupSteps, finalFraction], [3e-4, 0, 1]);
  assert.deepEqual([beta1, beta2, weightDecay], [0.9, 0.95, 0]);
  const { prefix, vision } = model as unknown as { prefix: number; vision: { blocks: number[] } };
  assert.deepEqual([prefix, vision.blocks], [2, [3, 4, 6, 3]]);
});

test('MiniGPT-4: 20,000 steps of 256 pictures that no word is said before, then 1,000 of 12', async () => {
  // Source: arXiv:2304.10592, sec. 3.1 and 3.3; Vision-CAIR/MiniGPT-4, train_configs/minigpt4_stage{1,2}_pretrain.yaml.
  const { pretraining, finetuning } = await stages('minigpt4', 'paper');
  assert.deepEqual([batchOf(pretraining!), pretraining!.train.steps], [256, 20_000]);
  assert.deepEqual([batchOf(finetuning!), finetuning!.train.steps], [12, 1000]);
  const rates = ({ optimizer: { learningRate, finalFraction, warmupSteps } }: Config) => [
    ...[learningRate, Number((learningRate * finalFraction).toPrecision(2)), warmupSteps],
  ];
  assert.deepEqual(rates(pretraining!), [1e-4, 8e-5, 5000]);
  assert.deepEqual(rates(finetuning!), [3e-5, 1e-5, 200]);
  assert.equal(modelOf(pretraining!)['describe'], '');
});

test('MiniGPT-v2: pictures of 448 pixels in 256 tokens, 400,000 steps of 96, 50,000 of 64 and 35,000 of 24', async () => {
  // Source: arXiv:2310.09478, sec. 3.1 and 4; Vision-CAIR/MiniGPT-4, train_configs/minigptv2_finetune.yaml (LoRA).
  const { pretraining, multitask, instruction } = await stages('minigpt-v2', 'paper');
  assert.deepEqual([batchOf(pretraining!), pretraining!.train.steps], [96, 400_000]);
  assert.deepEqual([batchOf(multitask!), multitask!.train.steps], [64, 50_000]);
  assert.deepEqual([batchOf(instruction!), instruction!.train.steps], [24, 35_000]);
  for (const stage of [pretraining!, multitask!, instruction!]) {
    const { vision, merge, lora } = modelOf(stage) as Record<string, Record<string, unknown>>;
    assert.equal((stage.data.frameSize / Number(vision!['patchSize'])) ** 2 / Number(merge), 256);
    assert.deepEqual(lora, { rank: 64, alpha: 16, targets: ['query', 'value'] });
  }
});

test('LLaVA-Hound: three times 17,000 preferences in steps of 128, beta 0.1, the language model alone', async () => {
  // Source: RifleZhang/LLaVA-Hound-DPO, llava_hound_dpo/dpo_scripts/train_dpo.sh (8 GPUs).
  const { preference } = await stages('llava-dpo', 'paper');
  assert.equal(batchOf(preference!), 128);
  assert.equal(preference!.train.steps, Math.floor((3 * 17_000) / 128));
  assert.deepEqual(preference!.train.frozen, ['image', 'video', 'projection']);
  const { learningRate, warmupSteps, weightDecay } = preference!.optimizer;
  assert.deepEqual([learningRate, warmupSteps, weightDecay], [5e-7, 40, 0]);
  assert.deepEqual(modelOf(preference!)['preference'], {
    ...{ loss: 'sigmoid', beta: 0.1, labelSmoothing: 0, answerWeight: 0, shuffled: false },
  });
});

/** New tokens that released code asks for. */
const ANSWERS = {
  blip2: 30, // salesforce/LAVIS, blip2_opt.py, generate
  'video-llama': 300, // DAMO-NLP-SG/Video-LLaMA, demo_video.py
  'llava-dpo': 1024, // as its Video-LLaVA
  'video-llava': 1024, // PKU-YuanGroup/Video-LLaVA, run_inference_video_qa.py
  minigpt4: 300, // Vision-CAIR/MiniGPT-4, minigpt4/conversation/conversation.py
  'minigpt-v2': 500, // Vision-CAIR/MiniGPT-4, demo_v2.py
  'minigpt4-video': 512, // Vision-CAIR/MiniGPT4-video, minigpt4_video_inference.py
} as const;

for (const [recipe, published] of Object.entries(ANSWERS)) {
  test(`${recipe}: answers are as long as its released code lets them be`, async () => {
    const tokens = (all: Record<string, Config>): unknown[] =>
      Object.values(all).flatMap((config) => modelOf(config)['maxAnswerTokens'] ?? []);
    const [paper, base] = [
      tokens(await stages(recipe, 'paper')),
      tokens(await stages(recipe, 'base')),
    ];
    assert.deepEqual(new Set(paper), new Set([published]));
    assert.ok(
      base.every((length) => (length as number) >= 256),
      base.join(),
    );
  });
}

test('a crop whose least share is more than its most is refused', async () => {
  const text = await readFile(new URL('../recipes/clip.yaml', import.meta.url), 'utf8');
  assert.throws(
    () => resolveConfig({ text, file: 'clip', overrides: ['data.augment.cropScale=[0.9, 0.5]'] }),
    /cropScale.*the least share is first/,
  );
});
