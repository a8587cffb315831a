/** Runs that are exported load in transformers by its own classes, and give what the run's system gives. */
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import type { Engine } from '../backend/engine.ts';
import { encodeSafetensors, type TensorData } from '../checkpoint/format.ts';
import { clipImages, clipTexts, type ClipParams } from '../models/clip.ts';
import { siglipImages, siglipTexts, type SiglipParams } from '../models/siglip.ts';
import { vit, vitStates } from '../models/vit.ts';
import { blip2Contrast, type Blip2Params } from '../models/blip2.ts';
import { languageOf, type LanguageConfig } from '../systems/language-part.ts';
import { readTokenizer } from '../systems/text-assets.ts';
import { initVision, visionSizes, type VisionConfig } from '../systems/vision-part.ts';
import { shapesOnly } from '../initializer.ts';
import { runPeer, whyNoPeer } from '../pretrained/parity/peer.ts';
import { largestDifference, readTensors } from '../pretrained/parity/reference-tensors.ts';
import { initLora, withLora, type LoraConfig } from '../tuning/lora.ts';
import { leavesOf, partsOf, withLeaves, type TensorTree } from '../tree.ts';
import { blip2SizesOf } from '../pretrained/blip2.ts';
import { TEST_SAMPLES, testRows } from '../test/open-system.ts';
import {
  CLIP_PIXELS,
  normalizePixels,
  packPixels,
  SIGLIP_PIXELS,
  type PixelStatistics,
} from '../tokens/pixels.ts';
import { makeRunFolder, valuesOf, writeCheckpoint } from '../test/run-folder.ts';
import { clipSizesOf } from '../pretrained/clip.ts';
import { siglipSizesOf } from '../pretrained/siglip.ts';
import { exportRun } from './export-run.ts';

/** Of float32, in outputs of size 1. */
const TOLERANCE = 1e-4;
const missing = await whyNoPeer();

describe('what is exported loads in transformers', { skip: missing ?? false }, () => {
  let root: string;
  let engine: Engine;
  let runs = 0;

  before(async () => {
    engine = await openCpuEngine();
    root = await temporaryFolder('export');
  });
  after(() => {
    engine.close();
  });

  const exported = async (
    recipe: string,
    { stage, overrides = [] }: { readonly stage?: string; readonly overrides?: readonly string[] },
  ) => {
    const [folder, out] = [join(root, `run-${runs}`), join(root, `out-${runs++}`)];
    await mkdir(folder);
    const given = stage === undefined ? {} : { stage };
    const run = await makeRunFolder(folder, { recipe, ...given, overrides });
    // The second factors of LoRA begin as zero.
    const values = await valuesOf(run.params);
    for (const [name, { data }] of values) {
      const factors = new Float32Array(data.buffer);
      if (/^lora.*\/b$/.test(name)) for (const at of factors.keys()) factors[at] = Math.sin(at) / 8;
    }
    await writeCheckpoint(folder, values);
    const { files } = await exportRun({ folder, out, step: undefined });
    return { ...run, out, files };
  };
  /** Ours beside what the class that config.json names makes of the same inputs. */
  const compare = async (
    folder: string,
    inputs: Readonly<Record<string, tf.Tensor>>,
    outputs: Readonly<Record<string, tf.Tensor>>,
  ) => {
    const data = new Map<string, TensorData>();
    for (const [name, tensor] of Object.entries(inputs)) {
      const values = Float32Array.from(await tensor.data());
      data.set(name, { dtype: 'F32', shape: tensor.shape, data: new Uint8Array(values.buffer) });
    }
    await writeFile(join(folder, 'inputs.safetensors'), encodeSafetensors(data));
    const said = JSON.parse(await runPeer('parity.py', 'run', folder)) as Record<string, unknown>;
    const { missing_keys, unexpected_keys, mismatched_keys } = said;
    assert.deepEqual([missing_keys, unexpected_keys, mismatched_keys], [[], [], []]);
    const theirs = await readTensors(join(folder, 'outputs.safetensors'));
    for (const [name, tensor] of Object.entries(outputs)) {
      const difference = await largestDifference(tensor, theirs.get(name)!);
      assert.ok(difference <= TOLERANCE, `${name} is off by ${difference}`);
    }
    return said;
  };
  const readConfig = async (folder: string): Promise<Record<string, unknown>> =>
    JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')) as Record<string, unknown>;
  const pictures = (size: number, channels = 3): tf.Tensor =>
    tf.randomNormal([2, size, size, channels], 0, 1, 'float32', 1);
  const ONE_FRAME = ['data.windows=1', 'data.framesPerWindow=1'];

  for (const frames of [['model.frames=bag'], ONE_FRAME]) {
    it(`CLIP, ${frames.join(' ')}: CLIPModel`, async () => {
      const { params, out } = await exported('clip', { overrides: frames });
      const folder = join(out, 'transformers');
      const sizes = clipSizesOf(await readConfig(folder));
      const pixels = pictures(32);
      // [CLS] words [SEP], padded.
      const ids = tf.tensor2d([2, 9, 12, 7, 3, 0, 2, 8, 3, 0, 0, 0], [2, 6], 'int32');
      const own = params as ClipParams;
      const said = await compare(
        folder,
        { pixels, ids },
        { images: clipImages(own, pixels, sizes), texts: clipTexts(own, { ids }, sizes) },
      );
      assert.equal(said['class'], 'CLIPModel');
    });
  }

  it('CLIP of several moments in one sequence: its text tower', async () => {
    const { params, out } = await exported('clip', {});
    const folder = join(out, 'transformers');
    const config = await readConfig(folder);
    const text = { ...(params as ClipParams) };
    const sizes = clipSizesOf({
      model_type: 'clip',
      projection_dim: config['projection_dim'],
      text_config: config,
      vision_config: {},
    });
    const ids = tf.tensor2d([2, 9, 12, 7, 3, 0, 2, 8, 3, 0, 0, 0], [2, 6], 'int32');
    await compare(folder, { ids }, { texts: clipTexts(text, { ids }, sizes) });
  });

  it('SigLIP: SiglipModel', async () => {
    const { params, out } = await exported('siglip', { overrides: ONE_FRAME });
    const folder = join(out, 'transformers');
    const sizes = siglipSizesOf(await readConfig(folder));
    const [pixels, own] = [pictures(32), params as SiglipParams];
    const ids = tf.tensor2d(
      [9, 12, 7, 3, 0, 0, 0, 0, 0, 0, 0, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      [2, 12],
      'int32',
    );
    await compare(
      folder,
      { pixels, ids },
      { images: siglipImages(own, pixels, sizes), texts: siglipTexts(own, { ids }, sizes) },
    );
  });

  for (const [kind, name] of [
    ['llama', 'LlamaForCausalLM'],
    ['opt', 'OPTForCausalLM'],
  ] as const) {
    it(`a language model of the kind ${kind}: ${name}`, async () => {
      const { params, config, out } = await exported('blip2', {
        stage: 'language',
        overrides: [`model.language.kind=${kind}`],
      });
      const ids = tf.tensor2d([2, 9, 12, 7, 5, 8, 2, 8, 11, 6, 1, 4], [2, 6], 'int32');
      const present = tf.ones([2, 6]);
      const rows = new Map(leavesOf(params)).get('embedding')!.shape[0];
      const { decoder } = languageOf(config.model['language'] as LanguageConfig, rows);
      const logits = decoder.logits(params, decoder.states(params, { ids, present }));
      const said = await compare(join(out, 'transformers'), { ids, present }, { logits });
      const tokenizer = await readTokenizer(out);
      const { cls, sep, pad } = tokenizer.special;
      const ends = [cls, sep, pad];
      assert.deepEqual(said['generates'], [ends, ends], 'what generate begins and stops with');
      assert.deepEqual(said['ids'], tokenizer.encode('a red circle moves left'));
    });
  }

  const TEXTS = ['a red circle moves left', 'the blue star moves up '.repeat(20), '', 'red'];
  /** What transformers makes of texts and of a picture, beside what the run's own system makes of them. */
  const compareInputs = async (
    { system, config, out }: Awaited<ReturnType<typeof exported>>,
    pixels: PixelStatistics | undefined,
    texts: readonly string[] = TEXTS,
  ): Promise<void> => {
    const folder = join(out, 'transformers');
    const { frameSize } = config.data;
    const bytes = Uint8Array.from(
      { length: frameSize ** 2 * 3 },
      (_, i) => (i * 37 + (i >> 4)) % 256,
    );
    await writeFile(join(folder, 'texts.json'), JSON.stringify(texts));
    if (pixels !== undefined) {
      const data = new Uint8Array(Float32Array.from(bytes).buffer);
      const picture = { dtype: 'F32' as const, shape: [frameSize, frameSize, 3], data };
      const file = encodeSafetensors(new Map([['picture', picture]]));
      await writeFile(join(folder, 'picture.safetensors'), file);
    }
    const said = JSON.parse(await runPeer('parity.py', 'inputs', folder)) as Record<
      'plain' | 'padded' | 'processed',
      number[][]
    >;
    const samples = texts.map((text) => ({ ...TEST_SAMPLES[0]!, text }));
    const { data, shape } = system.assemble(testRows(samples, config)).arrays['ids']!;
    const [, length] = shape as [number, number];
    const ours = samples.map((_, i) => [...data.subarray(i * length, (i + 1) * length)]);
    assert.deepEqual(said.padded, ours);
    // Without padding, the first and the last are the same ids.
    for (const i of [0, texts.length - 1])
      assert.deepEqual(said.plain[i], ours[i]!.slice(0, said.plain[i]!.length));
    if (pixels === undefined) return;
    assert.deepEqual(said.processed, ours);
    const theirs = (await readTensors(join(folder, 'pixels.safetensors'))).get('pixels')!;
    const shown = normalizePixels(tf.tensor1d(packPixels(bytes), 'int32'), theirs.shape, pixels);
    const difference = await largestDifference(shown, theirs);
    assert.ok(difference <= 1e-5, `pixels are off by ${difference}`);
  };

  it('texts and pictures of CLIP become the same inputs, with the tokenizer of a model it began from too', async () => {
    const first = await exported('clip', { overrides: ONE_FRAME });
    await compareInputs(first, CLIP_PIXELS);
    const init = `init=${JSON.stringify([{ from: join(first.out, 'transformers') }])}`;
    const words = first.params as ClipParams;
    const rows = words.text.words.shape[0];
    const second = await exported('clip', {
      overrides: [...ONE_FRAME, init, `model.text.vocabulary=${rows}`],
    });
    await compareInputs(second, CLIP_PIXELS);
  });

  it('texts and pictures of SigLIP, of which texts begin with their words', async () => {
    const run = await exported('siglip', { overrides: [...ONE_FRAME, 'data.fit=cover'] });
    await compareInputs(run, SIGLIP_PIXELS);
  });

  it('texts of a CLIP of several moments, and texts and pictures of BLIP-2', async () => {
    await compareInputs(await exported('clip', {}), undefined);
    const overrides = ['model.vision.kind=vit', 'init=[]', 'train.frozen=[]'];
    const run = await exported('blip2', { stage: 'represent', overrides });
    // Its own texts lose their [SEP] where they are cut.
    await compareInputs(run, CLIP_PIXELS, ['a red circle moves left', 'red']);
  });

  it("BLIP-2's first stage: Blip2ForImageTextRetrieval", async () => {
    const { params, out } = await exported('blip2', {
      stage: 'represent',
      overrides: ['model.vision.kind=vit', 'init=[]', 'train.frozen=[]'],
    });
    const folder = join(out, 'transformers');
    const sizes = blip2SizesOf(await readConfig(folder));
    const pixels = pictures(32);
    const text = {
      ids: tf.tensor2d([2, 9, 12, 3, 0, 2, 8, 3, 0, 0], [2, 5], 'int32'),
      present: tf.tensor2d([1, 1, 1, 1, 0, 1, 1, 1, 0, 0], [2, 5]),
    };
    const own = params as Blip2Params;
    const outputs = blip2Contrast(own, vit(own.vision, pixels, sizes.vision), text, sizes);
    await compare(folder, { pixels, ...text }, outputs);
  });

  for (const [kind, name] of [
    ['clip', 'CLIPVisionModel'],
    ['vit', 'Blip2VisionModel'],
  ] as const) {
    it(`parts that a run does not train, its tower of the kind ${kind} as ${name}, are there too`, async () => {
      const { config, out, files } = await exported('blip2', {
        stage: 'generate',
        overrides: [`model.vision.kind=${kind}`, 'init=[]'],
      });
      assert.deepEqual(files.slice(-2), ['transformers/vision/', 'transformers/language/']);
      const { frameSize } = config.data;
      const vision = config.model['vision'] as VisionConfig;
      const form = initVision(vision, config.data, { init: shapesOnly(), path: 'vision' });
      const weights = await readTensors(join(out, 'frozen.safetensors'));
      assert.ok(weights.has('language/embedding'));
      const leaves = leavesOf(form).map(([path, { shape }]) =>
        tf.reshape(
          tf.stack(partsOf(`vision/${path}`, shape).map((part) => weights.get(part.name)!)),
          shape,
        ),
      );
      const [tower, sizes] = [withLeaves(form, leaves), visionSizes(vision, config.data)];
      const pixels = pictures(frameSize);
      const states = (kind === 'clip' ? vitStates : vit)(tower, pixels, sizes);
      await compare(join(out, 'transformers', 'vision'), { pixels }, { states });
    });
  }

  it("a tower of BLIP-2's kind that sees several frames in one is left out, and the card tells why", async () => {
    const overrides = ['model.vision.kind=vit', 'init=[]', 'data.framesPerWindow=2'];
    const card = (out: string): Promise<string> => readFile(join(out, 'README.md'), 'utf8');
    const later = await exported('blip2', { stage: 'generate', overrides });
    assert.deepEqual(later.files.slice(-1), ['transformers/language/']);
    assert.match(
      await card(later.out),
      /`transformers\/vision`.* 6 channels.*Blip2VisionModel.* 3/,
    );
    const first = await exported('blip2', {
      stage: 'represent',
      overrides: [...overrides, 'train.frozen=[]'],
    });
    assert.ok(!first.files.some((file) => file.startsWith('transformers')));
    assert.match(await card(first.out), /`transformers`.* 6 channels.*Blip2VisionModel.* 3/);
  });

  it('MiniGPT4-Video: its adapter, beside its language model', async () => {
    const { config, out } = await exported('minigpt4-video', {
      stage: 'instruction',
      overrides: ['init=[]', 'data.windows=2'],
    });
    const weights = await readTensors(join(out, 'model.safetensors'));
    for (const [name, tensor] of await readTensors(join(out, 'frozen.safetensors')))
      weights.set(name, tensor);
    const filled = <T extends TensorTree>(form: T, prefix: string): T =>
      withLeaves(
        form,
        leavesOf(form).map(([path, { shape }]) => {
          const parts = partsOf(`${prefix}/${path}`, shape).map(({ name }) => weights.get(name)!);
          return tf.reshape(tf.stack(parts), shape);
        }),
      );
    const rows = weights.get('language/embedding')!.shape[0];
    const language = languageOf(config.model['language'] as LanguageConfig, rows);
    const own = config.model['lora'] as LoraConfig;
    const base = filled(language.init(shapesOnly()), 'language');
    const lora = filled(initLora(shapesOnly(), language.init(shapesOnly()), own), 'lora');
    const params = withLora(base, lora, own);
    const ids = tf.tensor2d([2, 9, 12, 7, 5, 8, 2, 8, 11, 6, 1, 4], [2, 6], 'int32');
    const present = tf.ones([2, 6]);
    const logits = language.decoder.logits(
      params,
      language.decoder.states(params, { ids, present }),
    );
    await compare(join(out, 'transformers', 'lora'), { ids, present }, { logits });
  });
});
