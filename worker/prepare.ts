import { createHash } from 'node:crypto';
import { access, readFile, stat } from 'node:fs/promises';
import { basename, join, relative, resolve } from 'node:path';
import { parse, stringify } from 'yaml';
import { newestCheckpointStep } from '../proto/checkpoint-manifest.ts';
import { writeFileDurably } from '../proto/durable-file.ts';
import { UsageError, VideoloomError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { makeOutputFolder, outputError } from '../proto/output-path.ts';
import { openProgress } from '../proto/progress.ts';
import { RECIPE_NAMES, RECIPES_FOLDER } from '../proto/recipe-names.ts';
import { lockRunWhenFree } from '../proto/run-lock.ts';
import { parseRunPlan, RUN_PLAN_FILE, type RunPlan } from '../proto/run-plan.ts';
import { writeSampleCosts } from '../proto/sample-costs.ts';
import { refuseSecretsIn } from '../proto/security-folder.ts';
import { slurmJob } from '../proto/slurm-job.ts';
import { openDataAccess, type DataAccess } from '../video/loading/data-access.ts';
import { openClipLoader } from '../video/loading/loader.ts';
import { findIndex, makeIndex } from '../video/index/make-index.ts';
import { DataError, subsetOf, writeIndex, type SampleIndex } from '../video/index/sample-index.ts';
import type { Sample } from '../video/index/sample.ts';
import { kindOf } from '../video/sources/media-names.ts';
import { WORDS_ENDINGS } from '../video/sources/words.ts';
import { isUrl, redactUrl } from '../video/storage/paths.ts';
import { generateWorld } from '../video/world/generate.ts';
import { resolveConfig, stagesOf, type Config } from './config.ts';
import { finishedStageDigest } from './finished-stage.ts';
import { checkInitialFolder, initialWords } from './initial-source.ts';
import { writeInitialWeights } from './initial-weights.ts';
import { fetchNewestCheckpoint, fetchRun, storedPlan } from './run-store/fetch-run.ts';
import { lookAtFiles, writeRunFileNames } from './run-store/run-files.ts';
import { openRunStore, type RunStore } from './run-store/run-store.ts';
import { ensurePlugin, findPlugin } from './pjrt/plugin.ts';
import { nearest } from './nearest.ts';
import { clipLoaderOptions, dataAccessOptions } from './run.ts';
import { RUN_FILES } from './run-system.ts';
import { preferenceOf, wantsPreferences } from './systems/preference-part.ts';
import { systemNamed } from './systems/registry.ts';
import type { SystemDefinition } from './systems/system.ts';
import { findTensorflow, notInstalled } from './tensorflow/install.ts';

export interface PrepareOptions {
  /** Name of a built-in recipe or path of a YAML file. */
  readonly recipe: string;
  readonly preset?: string | undefined;
  /** A stage of a recipe that has several; undefined: the first. */
  readonly stage?: string | undefined;
  readonly overrides: readonly string[];
  /** Run folder; undefined: `runs/<recipe>` with preset and data folder in its name. */
  readonly out?: string | undefined;
  /** The folder is gone when the caller is: it is not named. */
  readonly isTemporary?: boolean;
  readonly cacheDir: string;
  readonly say: (line: string) => void;
}

export interface Prepared {
  readonly folder: string;
  /**
   * The recipe's stages to train after this one, in order; none where one was asked for. Each is a run in a folder of its
   * own below the one that was asked for.
   */
  readonly furtherStages: readonly string[];
  /** The folder held this run already. */
  readonly existed: boolean;
  readonly workers: number;
  readonly engine: Config['engine']['name'];
  /** The plugin that the workers are to load; empty for other engines than xla. */
  readonly pluginPath: string;
}

/**
 * Makes a run folder: checked config, engine, data, index, vocabularies fitted on the training split, and the plan
 * last. A folder that holds the same run is taken as it is.
 *
 * @throws UsageError `CONFIG_INVALID`, `RECIPE_NOT_FOUND`, `RUN_DIFFERS`, `RUN_PLAN_INVALID`, `STAGE_UNFINISHED`,
 *   `OUT_NOT_WRITABLE`, `DATA_NOT_FOUND`, `DATA_NOT_A_FOLDER`, `SECRETS_IN_RUN_FOLDER`; VideoloomError `RUN_LOCKED`
 *   where it would change what a run that is led reads; errors of the data, of the engine and of the stages before it.
 */
export async function prepare(options: PrepareOptions): Promise<Prepared> {
  const { say, cacheDir } = options;
  const { recipe, stages, stage, config: wanted } = await readConfig(options);
  let config = wanted;

  // --- Engine. Without a plugin the run goes on, slowly and smaller.
  let pluginPath = '';
  if (config.engine.name === 'xla') {
    try {
      pluginPath = await installPlugin(config, cacheDir);
    } catch (error) {
      if (!(error instanceof VideoloomError) || error.code !== 'PLUGIN_PIP_MISSING') throw error;
      say(
        `${error.message}\nGoing on with the cpu engine (plain JavaScript, slow) and the tiny preset.`,
      );
      const overrides = [...options.overrides, 'engine.name=cpu'];
      config = resolveConfig({ ...recipe, preset: options.preset ?? 'tiny', stage, overrides });
    }
  }
  if (
    config.engine.name === 'tensorflow' &&
    (await findTensorflow(join(cacheDir, 'tensorflow'))) === undefined
  ) {
    throw notInstalled();
  }
  const whole = resolve(options.out ?? defaultFolder(options, config));
  const folder = stage === undefined ? whole : join(whole, stage);
  for (const each of new Set([whole, folder])) await refuseSecretsIn(each);
  const definition = systemNamed(config.model.name);
  const initialFolders = config.init.map(({ from }) =>
    stages.includes(from) ? join(whole, from) : resolve(from),
  );
  const begins = config.init.map(({ from }) => from).filter((from) => stages.includes(from));
  const prepared = {
    folder,
    furtherStages: options.stage === undefined ? stages.slice(1) : [],
    workers: config.cluster.workers,
    engine: config.engine.name,
    pluginPath,
  };

  // --- The same run again, or a new one.
  const planFile = join(folder, RUN_PLAN_FILE);
  const wantedRun = { config, stages: await stageDigests(whole, begins) };
  const { store } = config.checkpoint;
  if (store !== null) {
    // A stage's folder that is resumed by itself does not tell whose stage it is.
    const known = await readPlan(planFile);
    const runId = known?.runId ?? runIdOf(whole, stage);
    await fetchFromStore(openRunStore(store, runId), folder, wantedRun, say);
  }
  const oldPlan = await readPlan(planFile);
  if (oldPlan !== undefined) {
    await refuseOtherRun(folder, wantedRun, oldPlan);
    const texts = [
      [join(folder, RUN_FILES.config), stringify(config)],
      [planFile, JSON.stringify({ ...oldPlan, ...adjustable(config) }, undefined, 2)],
    ] as const;
    await adjustRun(folder, texts, say);
    return { ...prepared, existed: true };
  }
  // Before the data are made: that takes long.
  for (const initial of initialFolders) await checkInitialFolder(initial);
  const numStages = Object.keys(wantedRun.stages).length;
  const { folder: given } = config.data;
  if (given !== null && !isUrl(given)) await refuseNoFolder(given);
  await makeOutputFolder(folder);
  const before = await lookAtFiles(folder);

  // --- Data: the demo world or the user's folder, and an index of its samples.
  const place =
    given === null ? await makeDemoWorld(config) : isUrl(given) ? given : resolve(given);
  const known = isUrl(place) ? undefined : await findIndex(place);
  const data = await openDataAccess({
    ...dataAccessOptions(config, known?.root ?? place, cacheDir),
    decoders: Math.max(config.data.decoders, config.cluster.workers),
  });
  try {
    const index = await indexData(config, data, { definition, known, say });
    const indexFile = join(folder, RUN_FILES.index);
    await writeIndex(index, indexFile);
    for (const { path, code, message } of index.skipped)
      say(`skipped ${redactUrl(path)}: ${code}: ${message}`);

    // --- What the system fits, from the training split alone, and the weights that it begins with.
    const loader = openClipLoader(clipLoaderOptions(config, index, 'train', data));
    const words = await initialWords(config.init, initialFolders);
    const fitted = await definition.fit({ config, index, folder, loader, initialWords: words });
    const system = await definition.open({ config, index, folder });
    const initial = await writeInitialWeights(system, config, { folder, runs: initialFolders });
    const { taken } = initial;
    if (taken.length > 0) say(`begins with ${taken.join(', ')}`);

    // --- What the samples cost, where steps are balanced by it. Batches have one shape, so they all compute alike.
    const costsDigest =
      config.data.balance === 'none'
        ? undefined
        : await writeSampleCosts(folder, {
            compute: new Float32Array(index.train.length).fill(1),
            decode: Float32Array.from(index.train, ({ decodeMegapixels }) => decodeMegapixels),
          });

    // --- The plan makes the folder a run.
    await writeFileDurably(join(folder, RUN_FILES.config), stringify(config));
    const plan: Partial<RunPlan> = {
      runId: runIdOf(whole, stage),
      seed: config.train.seed,
      totalSteps: config.train.steps,
      microbatches: config.train.microbatches,
      microbatchSize: config.train.microbatchSize,
      numTrainSamples: index.train.length,
      datasetDigest: index.digest,
      ...(costsDigest === undefined ? {} : { costsDigest }),
      ...(initial.sha256 === undefined ? {} : { initialSha256: initial.sha256 }),
      ...(numStages === 0 ? {} : { stages: wantedRun.stages }),
      configDigest: digestOf(wantedRun),
      engine: config.engine.name,
      ...adjustable(config),
    };
    await writeRunFileNames(folder, { before, more: [RUN_PLAN_FILE] });
    await writeFileDurably(planFile, JSON.stringify(plan, undefined, 2));
    const { train, heldOut } = index;
    const parts = [`${train.length} clips to train on, ${heldOut.length} held out`];
    if (fitted !== '') parts.push(fitted);
    if (options.isTemporary !== true)
      parts.push(`run folder ${relative(process.cwd(), folder) || folder}`);
    say(parts.join('; '));
    return { ...prepared, existed: false };
  } catch (error) {
    throw outputError(error, folder);
  } finally {
    await data.close();
  }
}

/**
 * Writes what has changed of a run's config and plan, under its lock: processes of a run that is led read them whenever
 * one is started again, and what they read there then has to be what their coordinator was started with.
 * @throws VideoloomError RUN_LOCKED
 */
async function adjustRun(
  folder: string,
  texts: readonly (readonly [path: string, text: string])[],
  say: PrepareOptions['say'],
): Promise<void> {
  const found = await Promise.all(texts.map(([path]) => readIfThere(path)));
  const changed = texts.filter(([, text], k) => text !== found[k]);
  if (changed.length === 0) return;
  const lock = await lockRunWhenFree(folder, { job: slurmJob(process.env) }, say);
  try {
    for (const [path, text] of changed) await writeFileDurably(path, text);
  } finally {
    lock.release();
  }
}

/**
 * Where this disk has nothing of a run, or no checkpoint of it any more, the store is asked for it.
 * @throws UsageError RUN_DIFFERS; StorageError where the store cannot be asked: what it may have is not begun anew
 */
async function fetchFromStore(
  from: RunStore,
  folder: string,
  wanted: WantedRun,
  say: PrepareOptions['say'],
): Promise<void> {
  const { config } = wanted;
  try {
    const isHere = (await readIfThere(join(folder, RUN_PLAN_FILE))) !== undefined;
    if (isHere && (await newestCheckpointStep(folder)) !== undefined) return;
    const plan = await storedPlan(from);
    if (plan === undefined) return;
    refuseOtherStages(from.root, wanted, plan, 'give --out another name');
    if (plan.configDigest !== digestOf({ config, stages: plan.stages ?? {} })) {
      throw new UsageError(
        'RUN_DIFFERS',
        `${from.root} holds a run with another config: give --out another folder, whose name is the name of the run, ` +
          'checkpoint.store another prefix, or the same config to resume it',
      );
    }
    if (isHere) {
      const step = await fetchNewestCheckpoint(from, folder, say);
      if (step !== undefined) say(`took the checkpoint of step ${step} from ${from.root}`);
      return;
    }
    if (config.data.folder === null) await makeDemoWorld(config);
    const step = await fetchRun(from, folder, say);
    say(`took the run from ${from.root}, with the checkpoint of step ${step}`);
  } finally {
    from.writer.close();
  }
}

type Chosen = Pick<PrepareOptions, 'recipe' | 'preset' | 'stage' | 'overrides'>;

/** The config of the stage that was asked for, else of the first where there are several. */
async function readConfig({ recipe: name, preset, stage: asked, overrides }: Chosen) {
  const recipe = await readRecipe(name);
  const stages = stagesOf(recipe.text, preset);
  const stage = asked ?? stages[0];
  return { recipe, stages, stage, config: resolveConfig({ ...recipe, preset, stage, overrides }) };
}

/** What a recipe with its fields comes to; nothing is made. @throws as {@link prepare} for a wrong config */
export async function resolveRecipe(chosen: Chosen) {
  const { recipe, stages, config } = await readConfig(chosen);
  const { workers } = config.cluster;
  const isBuiltIn = recipe.file === `recipes/${chosen.recipe}.yaml`;
  const engine = config.engine.name;
  return { stages, stage: chosen.stage, workers, engine, text: recipe.text, isBuiltIn };
}

/** The text of a recipe. @throws UsageError `RECIPE_NOT_FOUND` */
export async function readRecipe(recipe: string): Promise<{ text: string; file: string }> {
  const builtIn = join(RECIPES_FOLDER, `${recipe}.yaml`);
  const candidates = /[./\\]/.test(recipe) ? [resolve(recipe)] : [builtIn, resolve(recipe)];
  for (const file of candidates) {
    const text = await readIfThere(file);
    if (text !== undefined)
      return { text, file: file === builtIn ? `recipes/${recipe}.yaml` : file };
  }
  const near = nearest(recipe, RECIPE_NAMES);
  throw new UsageError(
    'RECIPE_NOT_FOUND',
    `there is no recipe ${recipe}${near === undefined ? '' : ` (did you mean ${near}?)`}: give a built-in one ` +
      `(${RECIPE_NAMES.join(', ')}) or the path of a YAML file`,
  );
}

/**
 * Refuses what is not there, and one video or picture where a folder of them is to be: read as an index it would be
 * called damaged.
 */
async function refuseNoFolder(given: string): Promise<void> {
  const stats = await stat(given).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') return undefined; // reading it will say more
    throw new UsageError(
      'DATA_NOT_FOUND',
      `--data is ${given}, and ${resolve(given)} is not there: correct the path`,
    );
  });
  const kind = kindOf(given);
  if (kind === undefined || stats?.isFile() !== true) return;
  throw new UsageError(
    'DATA_NOT_A_FOLDER',
    `${given} is ${kind === 'video' ? 'a video' : 'a picture'}, and --data takes a folder of them or an index (.jsonl) ` +
      'that `videoloom data index --out` has written: put it into a folder of its own and give that',
  );
}

function defaultFolder({ recipe, preset }: PrepareOptions, { data }: Config): string {
  const parts = [
    basename(recipe, '.yaml'),
    preset,
    data.folder === null ? undefined : basename(data.folder.replace(/\/+$/, '')),
  ];
  return join('runs', parts.filter((part) => part !== undefined).join('-'));
}

/** Stages of the same name are those of many recipes: what tells them apart is the folder around them. */
function runIdOf(whole: string, stage: string | undefined): string {
  const plain = (name: string): string => name.replace(/[^A-Za-z0-9._-]/g, '-');
  const ending = stage === undefined ? '' : `-${plain(stage)}`.slice(0, 60);
  const name = plain(basename(whole)).replace(/^[^A-Za-z0-9]/, 'r');
  return name.slice(0, 100 - ending.length) + ending;
}

/** What the stages have left that a run begins from, by name; one that is not on this machine is left out. */
async function stageDigests(
  whole: string,
  names: readonly string[],
): Promise<Record<string, string>> {
  const digests: Record<string, string> = {};
  for (const name of new Set(names)) {
    const folder = join(whole, name);
    if (await exists(join(folder, RUN_PLAN_FILE)))
      digests[name] = await finishedStageDigest(folder);
  }
  return digests;
}

/** The plan as it stands in the file: what it leaves out stays out. @throws UsageError RUN_PLAN_INVALID */
async function readPlan(file: string): Promise<RunPlan | undefined> {
  const text = await readIfThere(file);
  if (text === undefined) return undefined;
  parseRunPlan(text, file);
  return JSON.parse(text) as RunPlan;
}

/** The plugin that the config's engine loads, which is installed if it is not there; empty for other engines than xla. */
export async function pluginOf(config: Config, cacheDir: string): Promise<string> {
  return config.engine.name === 'xla' ? installPlugin(config, cacheDir) : '';
}

async function installPlugin({ engine }: Config, cacheDir: string): Promise<string> {
  const wanted = {
    name: 'cpu',
    cacheDir: join(cacheDir, 'pjrt'),
    ...(engine.pluginPath === null ? {} : { pluginPath: engine.pluginPath }),
  };
  const installed = await findPlugin(wanted);
  if (installed !== undefined) return installed;
  const progress = openProgress('PJRT CPU plugin', 1);
  const path = await ensurePlugin({
    ...wanted,
    onProgress: ({ phase, package: wheel, version }) => {
      progress.update(0, `${phase} ${wheel} ${version}`);
    },
  });
  progress.done(path);
  return path;
}

async function makeDemoWorld({ data, cluster }: Config): Promise<string> {
  const { demoTrainClips: trainClips, demoHeldOutClips: heldOutClips, demoSeed: seed } = data;
  const name = data.demoWorld === 'stories' ? 'world' : data.demoWorld;
  const dir = resolve('data', `demo-${name}-${seed}-${trainClips}-${heldOutClips}`);
  const progress = openProgress('demo world (H.264)', trainClips + heldOutClips);
  let made = 0;
  await generateWorld({
    dir,
    kind: data.demoWorld,
    seed,
    trainClips,
    heldOutClips,
    numProcesses: cluster.workers,
    onProgress: (done) => {
      made = done;
      progress.update(done);
    },
  });
  if (made > 0) progress.done(relative(process.cwd(), dir));
  return dir;
}

/** The index of what the model can take. */
async function indexData(
  config: Config,
  access: DataAccess,
  {
    definition,
    known,
    say,
  }: {
    readonly definition: SystemDefinition;
    readonly known: SampleIndex | undefined;
    readonly say: PrepareOptions['say'];
  },
): Promise<SampleIndex> {
  const { data, model } = config;
  const { root } = access.store;
  const progress = openProgress('index', 1);
  const whole =
    known ??
    (await makeIndex({
      ...access,
      source: data.source ?? undefined,
      clipSeconds: data.clipSeconds,
      heldOutFraction: data.heldOutFraction,
      onProgress: ({ numDone, numFiles }) => {
        progress.update(numDone / numFiles, `${numDone} of ${numFiles} files`);
      },
    }));
  const wantsTwo = wantsPreferences(model);
  const sampleKind = `${definition.sampleKind}${wantsTwo ? ' and two answers, one preferred' : ''}`;
  const takes = (sample: Sample): boolean =>
    definition.takes(sample, whole.files) && (!wantsTwo || preferenceOf(sample) !== undefined);
  const train = whole.train.filter(takes);
  const index = subsetOf(whole, {
    train: definition.arrange?.(config, train) ?? train,
    heldOut: whole.heldOut.filter(takes),
  });
  const numClips = index.train.length + index.heldOut.length;
  const numOthers = whole.train.length + whole.heldOut.length - numClips;
  if (numClips === 0) {
    throw new DataError(
      'DATA_UNFIT',
      `none of the ${numOthers} samples of ${root} is ${sampleKind}, which is what ${model.name} trains on` +
        (whole.train.concat(whole.heldOut).some(({ text }) => text.trim() !== '')
          ? ''
          : `; none has words: in a folder of videos they are looked for in ${WORDS_ENDINGS.join(' ')} of the same name ` +
            'beside them'),
    );
  }
  progress.done(
    `${numClips} clips of ${isUrl(root) ? root : relative(process.cwd(), root) || root}`,
  );
  if (numOthers > 0) say(`${numOthers} samples left out: not ${sampleKind}`);
  const wordless = [...index.train, ...index.heldOut].filter(({ text }) => text.trim() === '');
  if (wordless.length > numClips / 2) {
    say(
      `warning: ${wordless.length} of ${numClips} clips have no words, and from those ${model.name} learns none; in a ` +
        `folder of videos it looks for ${WORDS_ENDINGS.join(' ')} of the same name beside them`,
    );
  }
  return index;
}

/** What may differ when a run goes on: where and how fast it computes, never what. */
function adjustable({ checkpoint, cluster, data }: Config): Partial<RunPlan> {
  return {
    checkpointEverySteps: checkpoint.everySteps,
    keepCheckpoints: checkpoint.keep,
    keepCheckpointHours: checkpoint.keepHours ?? undefined,
    minWorkers: cluster.workers,
    detectWithinMs: Math.round(cluster.detectWithin * 1000),
    decodeTimeoutMs: Math.round(data.decodeTimeoutSeconds * 1000),
    prefetchSteps: data.prefetchSteps + 1,
    events: cluster.events === null ? undefined : [cluster.events].flat(),
  };
}

/** What a run is to compute: its config, and what the stages have left that it begins from. */
interface WantedRun {
  readonly config: Config;
  readonly stages: Readonly<Record<string, string>>;
}

/** The fields that the result depends on. */
function essence(config: Config): object {
  const { model, data, train, init, optimizer, evaluate, engine, parallel, cluster } = config;
  const aside = new Set([
    ...['decoders', 'decodeTimeoutSeconds', 'cacheMebibytes', 'prefetchSteps'],
    ...['allowPrivateHosts', 'mediaCacheGibibytes', 'frameDiskGibibytes', 'prefetchMebibytes'],
  ]);
  const what = Object.fromEntries(Object.entries(data).filter(([key]) => !aside.has(key)));
  const { name, threads, devices, precision } = engine;
  // Wherever it lies on the machine that goes on with the run.
  const plugin = name === 'xla' ? basename(engine.pluginPath ?? 'cpu') : null;
  const { gradientPrecision } = cluster;
  // To the same bits.
  const allReduce = cluster.allReduce === 'nccl' ? 'tree' : cluster.allReduce;
  const how = { name, plugin, threads, devices, precision };
  const sums = { allReduce, gradientPrecision };
  return { model, data: what, train, init, optimizer, evaluate, engine: how, parallel, sums };
}

function digestOf({ config, stages }: WantedRun): string {
  const begins = Object.keys(stages).length === 0 ? {} : { stages };
  return createHash('sha256')
    .update(JSON.stringify({ ...essence(config), ...begins }))
    .digest('hex');
}

/** @throws UsageError RUN_DIFFERS */
function refuseOtherStages(
  where: string,
  { stages }: WantedRun,
  plan: RunPlan,
  remedy: string,
): void {
  // One that is not here, or that a plan of an older version does not tell of, cannot be compared.
  const other = Object.entries(plan.stages ?? {}).find(
    ([name, digest]) => (stages[name] ?? digest) !== digest,
  );
  if (other === undefined) return;
  throw new UsageError(
    'RUN_DIFFERS',
    `the run in ${where} began from other weights of the stage ${other[0]} than there are now: ${remedy}`,
  );
}

async function refuseOtherRun(folder: string, wanted: WantedRun, plan: RunPlan): Promise<void> {
  const { config } = wanted;
  refuseOtherStages(
    folder,
    wanted,
    plan,
    `remove ${folder} to train it from these, or give --out another folder`,
  );
  if (plan.configDigest === digestOf({ config, stages: plan.stages ?? {} })) return;
  const oldText = (await readIfThere(join(folder, RUN_FILES.config))) ?? '{}';
  const different = differences(essence(parse(oldText) as Config), essence(config));
  throw new UsageError(
    'RUN_DIFFERS',
    `${folder} holds a run with another config (${different.slice(0, 5).join('; ')}): ` +
      'give --out another folder, or the same config to resume it',
  );
}

/** `train.steps: 400, now 500` for each leaf that differs. */
function differences(before: unknown, after: unknown, path = ''): string[] {
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === 'object' && value !== null;
  if (isObject(before) && isObject(after)) {
    const keys = [...new Set([...Object.keys(before), ...Object.keys(after)])];
    return keys.flatMap((key) =>
      differences(before[key], after[key], path === '' ? key : `${path}.${key}`),
    );
  }
  return before === after
    ? []
    : [`${path}: ${JSON.stringify(before)}, now ${JSON.stringify(after)}`];
}

async function readIfThere(file: string): Promise<string | undefined> {
  try {
    await access(file);
  } catch {
    return undefined;
  }
  return readFile(file, 'utf8');
}
