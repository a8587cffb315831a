/** Run folders as `prepare` and a first checkpoint leave them, without any training. */
import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { stringify } from 'yaml';
import { checkpointFolderName, CHECKPOINTS_FOLDER } from '../../proto/checkpoint-manifest.ts';
import { openRng } from '../../proto/random.ts';
import { RUN_PLAN_FILE } from '../../proto/run-plan.ts';
import { digestOf, writeIndex, type SampleIndex } from '../../video/index/sample-index.ts';
import type { MediaFile, Sample } from '../../video/index/sample.ts';
import type { ClipLoader } from '../../video/loading/loader.ts';
import { patchFeatureWidth } from '../../video/visual-words/patch-features.ts';
import { FEATURE_WIDTH, fitVisualVocabulary } from '../../video/visual-words/visual-vocabulary.ts';
import { writeVisualVocabulary } from '../assets.ts';
import { encodeSafetensors, type TensorData } from '../checkpoint/format.ts';
import { resolveConfig, stagesOf, type Config } from '../config.ts';
import { initialWords } from '../initial-source.ts';
import { withInitialWeights, writeInitialWeights } from '../initial-weights.ts';
import { openInitializer } from '../initializer.ts';
import { initAdamW } from '../optim/adamw.ts';
import { RUN_FILES } from '../run-system.ts';
import { readState } from '../state.ts';
import { systemNamed } from '../systems/registry.ts';
import type { VideoLanguageSystem } from '../systems/system.ts';
import { fitTokenizer } from '../systems/text-assets.ts';
import { leavesOf, partsOf, type TensorTree } from '../tree.ts';
import { TEST_SAMPLES } from './open-system.ts';

const DIGEST = 'ab'.repeat(32);

/** What is trained, as a checkpoint of a first step; `initialSha256` of the weights that the run begins with. */
export async function writeCheckpoint(
  folder: string,
  weights: ReadonlyMap<string, TensorData>,
  initialSha256?: string,
): Promise<void> {
  const dir = join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(1));
  await mkdir(dir, { recursive: true });
  const plan = {
    ...{ runId: 'run', seed: 1, totalSteps: 1, microbatches: 2, microbatchSize: 2 },
    ...{ numTrainSamples: 1, datasetDigest: DIGEST, configDigest: DIGEST, checkpointEverySteps: 1 },
    initialSha256,
  };
  await writeFile(join(folder, RUN_PLAN_FILE), JSON.stringify(plan));
  const bytes = encodeSafetensors(weights);
  const name = 'model-00001-of-00001.safetensors';
  await writeFile(join(dir, name), bytes);
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  const files = [{ name, sizeBytes: bytes.length, sha256 }];
  const manifest = {
    ...{ formatVersion: 1, runId: 'run', step: 1, generation: 1, dataPosition: 0, seed: 1 },
    ...{ configDigest: DIGEST, datasetDigest: DIGEST, files, time: '2026-01-01T00:00:00Z' },
  };
  await writeFile(join(dir, 'manifest.json'), JSON.stringify(manifest));
}

/** The parameters by name, one a layer. */
export async function valuesOf(params: TensorTree): Promise<Map<string, TensorData>> {
  const values = new Map<string, TensorData>();
  for (const [path, tensor] of leavesOf(params)) {
    const parts = partsOf(path, tensor.shape);
    const whole = (await tensor.data()) as Float32Array;
    const size = whole.length / parts.length;
    for (const [k, { name, shape }] of parts.entries()) {
      const data = new Uint8Array(whole.slice(k * size, (k + 1) * size).buffer);
      values.set(name, { dtype: 'F32', shape, data });
    }
  }
  return values;
}

/** Visual words of drawn features. */
async function writeWords(
  folder: string,
  model: Config['model'],
  featureWidth: number,
): Promise<void> {
  const rng = openRng(1, 'features');
  const features = Float32Array.from({ length: 200 * featureWidth }, () => rng.uniform());
  const { visualBranching: branching, visualDepth: depth } = model as unknown as Record<
    'visualBranching' | 'visualDepth',
    number
  >;
  const options = { branching, depth, seed: 1, pcaDims: 3, featureWidth };
  const words = fitVisualVocabulary(features, options);
  await writeVisualVocabulary(join(folder, 'visual-vocabulary.safetensors'), words);
}

/**
 * A run of a recipe on `samples` of four films, {@link TEST_SAMPLES} unless given: config, index, tokenizer, initial weights and a checkpoint of what they
 * are. Stages before it are beside it. @param folder is there, and empty but for what `config.init` names
 */
export async function makeRunFolder(
  folder: string,
  {
    recipe,
    stage,
    overrides,
    samples = TEST_SAMPLES,
  }: {
    readonly recipe: string;
    readonly stage?: string;
    readonly overrides: readonly string[];
    readonly samples?: readonly Sample[];
  },
): Promise<{ readonly system: VideoLanguageSystem; readonly config: Config; params: TensorTree }> {
  const text = await readFile(new URL(`../recipes/${recipe}.yaml`, import.meta.url), 'utf8');
  const config = resolveConfig({ text, file: recipe, stage, overrides });
  await writeFile(join(folder, RUN_FILES.config), stringify(config));
  const files = [0, 1, 2, 3].map((file): MediaFile => ({
    ...{ path: `${file}.mp4`, kind: 'video', sizeBytes: 1, sha256: DIGEST, durationSeconds: 2 },
    ...{ framesPerSecond: 10, width: 32, height: 32, codec: 'h264', hasAudio: false },
    keyFrameSeconds: [0],
  }));
  const content = { files, train: samples, heldOut: samples };
  const about = { root: folder, skipped: [], numCaptionWarnings: 0 };
  const index: SampleIndex = { ...content, ...about, digest: digestOf(content) };
  await writeIndex(index, join(folder, RUN_FILES.index));
  const stages = stagesOf(text);
  const runs = config.init.map(({ from }) =>
    stages.includes(from) ? join(dirname(folder), from) : from,
  );
  const context = { config, folder, index, loader: undefined as unknown as ClipLoader };
  const words = await initialWords(config.init, runs);
  await fitTokenizer({ ...context, initialWords: words }, 200);
  if (config.model.name === 'videobert') await writeWords(folder, config.model, FEATURE_WIDTH);
  if (config.model.name === 'cm3leon') await writeWords(folder, config.model, patchFeatureWidth(1));
  const opened = await systemNamed(config.model.name).open(context);
  const { sha256 } = await writeInitialWeights(opened, config, { folder, runs });
  const system = await withInitialWeights(opened, config, { folder, sha256 });
  const params = system.init(openInitializer(9));
  const state = { step: 1, params, optimizer: initAdamW(params) };
  await writeCheckpoint(folder, await readState(state), sha256);
  return { system, config, params };
}
