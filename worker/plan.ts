import { setMaxListeners } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import { openStepOrder } from '../proto/step-order.ts';
import { resolveConfig, stagesOf, type Config } from './config.ts';
import { rowsOf, uploadBatch } from './batches.ts';
import { frozenLeaves } from './frozen-parameters.ts';
import type { Engine, LoweredProgram } from './backend/engine.ts';
import type { Row } from './systems/system.ts';
import { adamWScalars } from './optim/adamw.ts';
import { parameterShardings, rowSharding } from './parallel/sharding.ts';
import { compilePrograms, type ContrastPrograms } from './programs.ts';
import {
  countsOf,
  openShapeSystem,
  planShapes,
  type ParameterCounts,
  type ShapeSystem,
} from './plan-shapes.ts';
import { pluginOf, prepare, readRecipe, type PrepareOptions } from './prepare.ts';
import { referenceLeaves } from './reference-parameters.ts';
import { openRunEngine } from './run-engine.ts';
import { openRun, type Run } from './run.ts';
import { disposeState, initState } from './state.ts';
import { numDevicesOf } from './stablehlo/sharding.ts';
import { disposeTree, leavesOf, type TensorTree } from './tree.ts';

/** What a run will take, of compiled programs and, if they are run, measured on this machine's devices. */
export interface Plan {
  readonly parameters: ParameterCounts;
  /** Those that are not trained. */
  readonly frozen: ParameterCounts;
  readonly devices: number;
  readonly platform: string;
  /** Bytes on each device while a gradient or an update is computed, the larger; undefined off the xla engine. */
  readonly peakBytes: number | undefined;
  /** Of a step, in products of matrices and convolutions; undefined off the xla engine. */
  readonly flops: number | undefined;
  /** What a square product of matrices of the run's precision reaches, FLOP/s. */
  readonly productFlopsPerSecond: number;
  /** Undefined where nothing was run. */
  readonly measured: MeasuredSeconds | undefined;
}

interface MeasuredSeconds {
  /** Of a microbatch. */
  readonly gradientSeconds: number;
  readonly updateSeconds: number;
  /** Of a microbatch's embeddings, and of their comparison over the batch; undefined without a contrast. */
  readonly contrast: { readonly embedSeconds: number; readonly compareSeconds: number } | undefined;
}

/** Rounds that are timed, after one that is not. */
const ROUNDS = 3;
/** Rows and columns of the product that shows what a device reaches; a power of two that fills it for milliseconds. */
const PRODUCT_SIZE = { cpu: 1024, other: 8192 };

/** Compiles a run's programs and runs each a few times on the run's first microbatch. Nothing of the run changes. */
export async function planRun(run: Run, engine: Engine): Promise<Plan> {
  const { config, system } = run;
  const state = initState(system, config.train.seed);
  const programs = compilePrograms(engine, system, config.optimizer, {
    parameters: parameterShardings(engine.mesh, config.parallel, leavesOf(state.params)),
    rows: rowSharding(engine.mesh),
  });
  const frozen = uploadBatch(engine, { arrays: system.frozen, counts: {}, numTokens: 0 });
  const inputs = uploadBatch(engine, system.assemble(await firstRows(run)));
  const numObjectives = Object.keys(system.objectives).length;
  const scales = engine.upload(new Float32Array(numObjectives).fill(1e-3), [numObjectives]);

  const { microbatches } = config.train;
  const contrast =
    programs.contrast &&
    (await planContrast(programs.contrast, [state.params, frozen, inputs], {
      ...{ engine, scales, microbatches },
    }));
  // As large as the embeddings are their gradients; the exchange is not counted.
  const cotangents = Object.fromEntries(
    Object.entries(contrast?.embedded ?? {}).filter(([name]) => !name.endsWith('Ids')),
  );
  const gradientInputs = [state.params, frozen, inputs, scales, cotangents] as const;
  const gradientProgram = await programs.gradient.lower(...gradientInputs);
  const computeGradient = () => programs.gradient(...gradientInputs);
  const gradientSeconds = await timed(async () => {
    disposeTree(await computeGradient());
  });
  const { gradient, sums } = await computeGradient();
  const flat = await programs.readGradient(gradient);
  disposeTree([gradient, sums]);

  let { params, optimizer } = state;
  const updateInputs = () => {
    const scalars = adamWScalars(config.optimizer, { step: 1, learningRate: 0, gradientScale: 1 });
    return [
      programs.uploadGradient(flat, params),
      engine.upload(scalars, [scalars.length]),
    ] as const;
  };
  const lowered = updateInputs();
  const updateProgram = await programs.update.lower(params, optimizer, ...lowered);
  disposeTree(lowered);
  const updateSeconds = await timed(async () => {
    const next = await programs.update(params, optimizer, ...updateInputs());
    ({ params, state: optimizer } = next);
  });

  const plan: Plan = {
    parameters: countsOf(leavesOf(params)),
    frozen: countsOf([...frozenLeaves(system), ...referenceLeaves(system)]),
    devices: numDevicesOf(engine.mesh),
    platform: engine.platform,
    peakBytes: gradientProgram && updateProgram && peakOf(gradientProgram, updateProgram),
    flops: gradientProgram && microbatches * gradientProgram.flops + (contrast?.flops ?? 0),
    productFlopsPerSecond: await measureProduct(engine),
    measured: { gradientSeconds, updateSeconds, contrast: contrast?.seconds },
  };
  disposeState({ step: 0, params, optimizer });
  disposeTree([frozen, inputs, scales, contrast?.embedded ?? {}]);
  return plan;
}

/** What a contrast computes in a step: each microbatch is embedded before its gradient, and all are compared once. */
async function planContrast(
  { embed, compare }: ContrastPrograms<TensorTree>,
  inputs: readonly [params: TensorTree, frozen: TensorTree, batch: TensorTree],
  {
    engine,
    scales,
    microbatches,
  }: { readonly engine: Engine; readonly scales: tf.Tensor; readonly microbatches: number },
): Promise<{
  /** Of the microbatch. */
  readonly embedded: Record<string, tf.Tensor>;
  /** Of a step. */
  readonly flops: number;
  readonly seconds: NonNullable<MeasuredSeconds['contrast']>;
}> {
  const [params, frozen] = inputs;
  const embedded = await embed(...inputs);
  // The same rows stand for those of every microbatch.
  const all: Record<string, tf.Tensor> = {};
  for (const [name, tensor] of Object.entries(embedded)) {
    const [rows, ...rest] = tensor.shape as [number, ...number[]];
    const values = await tensor.data();
    const whole = new Float32Array(microbatches * values.length);
    for (let k = 0; k < microbatches; k++) whole.set(values, k * values.length);
    all[name] = engine.upload(whole, [microbatches * rows, ...rest]);
  }
  const embedProgram = await embed.lower(...inputs);
  const compareProgram = await compare.lower(params, frozen, all, scales);
  const embedSeconds = await timed(async () => {
    disposeTree(await embed(...inputs));
  });
  const compareSeconds = await timed(async () => {
    disposeTree(await compare(params, frozen, all, scales));
  });
  disposeTree(all);
  return {
    embedded,
    flops: microbatches * (embedProgram?.flops ?? 0) + (compareProgram?.flops ?? 0),
    seconds: { embedSeconds, compareSeconds },
  };
}

/** Parameters, moments and gradients beyond this are not laid out to be measured, bytes. */
const MOST_MEASURED_BYTES = 2 ** 31;

/**
 * Plans a run, or each of a recipe's stages, and gives the plan as people read it. A run that is small and begins with
 * drawn weights is prepared in a folder that is thrown away, and measured. Of all else, several stages too, the shapes
 * alone are planned: nothing is decoded, and no parameter has values.
 */
export async function planCommand(options: PrepareOptions): Promise<string> {
  const recipe = await readRecipe(options.recipe);
  const stages =
    options.stage === undefined ? stagesOf(recipe.text, options.preset) : [options.stage];
  if (stages.length === 0) return planOne(options, await resolveFor(options), true);
  const texts: string[] = [];
  for (const stage of stages) {
    const own = { ...options, stage };
    const isAlone = stages.length === 1;
    texts.push(`${stage}\n${await planOne(own, await resolveFor(own), isAlone)}`);
  }
  return texts.join('\n');
}

async function resolveFor(options: PrepareOptions): Promise<Config> {
  const { preset, stage, overrides } = options;
  return resolveConfig({ ...(await readRecipe(options.recipe)), preset, stage, overrides });
}

async function planOne(
  options: PrepareOptions,
  config: Config,
  mayMeasure: boolean,
): Promise<string> {
  const shapes = await openShapeSystem(config);
  const total = [shapes.trained, shapes.frozen].reduce((sum, counts) => sum + totalOf(counts), 0);
  const isSmall = 16 * total <= MOST_MEASURED_BYTES;
  const isMeasured = mayMeasure && isSmall && config.init.length === 0;
  if (!isMeasured) {
    const pluginPath = await pluginOf(config, options.cacheDir);
    const engine = await openRunEngine(
      { config },
      {
        engine: config.engine.name,
        pluginPath,
        cacheDir: options.cacheDir,
      },
    );
    try {
      return planText(await planOfShapes(config, shapes, engine), config);
    } finally {
      engine.close();
    }
  }
  const folder = await mkdtemp(join(tmpdir(), 'videoloom-plan-'));
  try {
    const prepared = await prepare({ ...options, out: folder, isTemporary: true });
    const run = await openRun(prepared.folder);
    const engine = await openRunEngine(run, { ...prepared, cacheDir: options.cacheDir });
    try {
      return planText(await planRun(run, engine), run.config);
    } finally {
      engine.close();
      await run.close();
    }
  } finally {
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  }
}

async function planOfShapes(config: Config, shapes: ShapeSystem, engine: Engine): Promise<Plan> {
  const { trained, frozen, flops, peakBytes } = planShapes(config, shapes, engine);
  return {
    ...{ parameters: trained, frozen, peakBytes },
    devices: numDevicesOf(engine.mesh),
    platform: engine.platform,
    flops,
    productFlopsPerSecond: await measureProduct(engine),
    measured: undefined,
  };
}

function totalOf(counts: ParameterCounts): number {
  return [...counts.values()].reduce((a, b) => a + b, 0);
}

/** The plan as people read it. */
export function planText(plan: Plan, config: Config): string {
  const { parameters, frozen, flops, peakBytes, measured, productFlopsPerSecond: limit } = plan;
  const total = totalOf(parameters);
  const { steps, microbatches, microbatchSize } = config.train;
  const { workers } = config.cluster;
  const number = (value: number): string => value.toLocaleString('en-US');
  const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  const seconds = (value: number): string => `${value.toPrecision(3)} s`;
  const line = (name: string, text: string): string => `${name.padEnd(18)} ${text}`;
  const counted = (name: string, counts: ParameterCounts): string => {
    const modules = [...counts].map(([module, size]) => `${module} ${number(size)}`).join(', ');
    return line(name, `${number(totalOf(counts))} (${mebibytes(4 * totalOf(counts))}): ${modules}`);
  };
  const lines = [
    counted('parameters', parameters),
    ...(frozen.size === 0 ? [] : [counted('frozen', frozen)]),
    line('optimiser state', mebibytes(8 * total)),
    line('devices', `${plan.devices} ${plan.platform} a worker, ${config.engine.precision}`),
  ];
  if (peakBytes !== undefined) {
    const text =
      measured === undefined ? `about ${mebibytes(peakBytes)}` : `${mebibytes(peakBytes)} at most`;
    lines.push(line('memory a device', text));
  }
  lines.push(line('step', `${microbatches} microbatches of ${microbatchSize} clips`));
  const { embedSeconds, compareSeconds } = measured?.contrast ?? {};
  // Every worker compares the whole batch.
  const stepOn = (count: number): number | undefined =>
    measured &&
    Math.ceil(microbatches / count) * (measured.gradientSeconds + (embedSeconds ?? 0)) +
      (compareSeconds ?? 0) +
      measured.updateSeconds;
  const alone = stepOn(1);
  if (measured !== undefined && alone !== undefined) {
    const contrast =
      embedSeconds === undefined || compareSeconds === undefined
        ? ''
        : `embeddings ${seconds(embedSeconds)} a microbatch, their comparison ${seconds(compareSeconds)}, `;
    lines.push(
      line(
        'expected',
        `${seconds(alone)} on one worker, ${seconds(stepOn(workers)!)} on ${workers} with a machine each ` +
          `(${contrast}gradient ${seconds(measured.gradientSeconds)} a microbatch, ` +
          `update ${seconds(measured.updateSeconds)}; ` +
          'decoding and all-reduce not counted)',
      ),
    );
  }
  if (flops !== undefined) {
    const used =
      alone === undefined ? '' : `: ${((100 * flops) / limit / alone).toFixed(0)} % of it is used`;
    lines.push(
      line('work', `${(flops / 1e9).toPrecision(3)} GFLOP in products of matrices`),
      line(
        'limit',
        `${seconds(flops / limit)} a step at the ${(limit / 1e9).toPrecision(3)} GFLOP/s of a large product here${used}`,
      ),
    );
  }
  lines.push(
    line(
      'run',
      alone === undefined
        ? `${number(steps)} steps; planned by shapes, nothing of it was run`
        : `${number(steps)} steps: ${duration(steps * alone)} on one worker`,
    ),
  );
  return `${lines.join('\n')}\n`;
}

function duration(seconds: number): string {
  // Rounded before it is split: no minute has 60 seconds.
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours > 0 ? `${hours} h ${minutes} min` : `${minutes} min ${whole % 60} s`;
}

async function firstRows({ folder, plan, index, trainLoader }: Run): Promise<Row[]> {
  const order = await openStepOrder(folder, plan);
  const places = order.placesOf(1, 0);
  order.close();
  const signal = AbortSignal.timeout(600_000);
  // Every clip listens to it.
  setMaxListeners(0, signal);
  const clips = await trainLoader.load(
    places.map(({ sample, epoch }) => ({ sample, epoch, substitutes: [] })),
    signal,
  );
  return rowsOf(index.train, places, clips);
}

/** Fastest of some rounds, in seconds, after one that may have to compile. */
async function timed(round: () => Promise<void>): Promise<number> {
  await round();
  let fastest = Infinity;
  for (let i = 0; i < ROUNDS; i++) {
    const startMs = performance.now();
    await round();
    fastest = Math.min(fastest, performance.now() - startMs);
  }
  return fastest / 1000;
}

/** Bytes on a device: what a program takes and makes, and what else lies there meanwhile. */
function peakOf(gradient: LoweredProgram, update: LoweredProgram): number {
  const own = ({ memory }: LoweredProgram): number =>
    memory.argumentBytes + memory.outputBytes + memory.tempBytes - memory.aliasBytes;
  // An update takes parameters, two moments and the gradient: half of it waits while a gradient is computed.
  return Math.max(own(gradient) + update.memory.argumentBytes / 2, own(update));
}

async function measureProduct(engine: Engine): Promise<number> {
  const size =
    engine.platform === 'cuda' || engine.platform === 'rocm'
      ? PRODUCT_SIZE.other
      : PRODUCT_SIZE.cpu;
  const matrix = engine.upload(new Float32Array(size * size).fill(0.5), [size, size]);
  const product = engine.compile((a: tf.Tensor) => tf.matMul(a as tf.Tensor2D, a as tf.Tensor2D), {
    name: 'product',
  });
  const seconds = await timed(async () => {
    (await product(matrix)).dispose();
  });
  matrix.dispose();
  return (2 * size ** 3) / seconds;
}
