/**
 * One training step (forward, backward, AdamW) of a 5.8 M parameter early-fusion video-language model on our engine
 * and, by turns in the same run, in PyTorch (`peers/videobert_torch.py`). Prints a JSON line a figure; a ratio above
 * 1 means that ours is faster. All cores for both; medians of the interleaved repetitions.
 *
 *     node --import tsx worker/bench/engine.ts [--rounds 6] [--steps 3] [--cache DIR] [--no-peers] [--mlir FILE]
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { availableParallelism, homedir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';

import * as tf from '@tensorflow/tfjs-core';

import { openRng } from '../../proto/random.ts';
import type { Rng } from '../../proto/random.ts';
import { openEngine } from '../backend/engine.ts';
import { hasTrainingMemory, withTrainingMemory } from '../../proto/memory-environment.ts';
import type { Engine } from '../backend/engine.ts';
import { openInitializer } from '../initializer.ts';
import { dense, gatherPositions, initBlock, initDense, initLayerNorm } from '../models/layers.ts';
import { layerNorm, transformerBlock } from '../models/layers.ts';
import type { BlockParams, DenseParams, LayerNormParams } from '../models/layers.ts';
import { adamW, adamWScalars } from '../optim/adamw.ts';
import type { AdamWState } from '../optim/adamw.ts';
import { leavesOf, mapTree, withLeaves } from '../tree.ts';
import { ensureTorch, TORCH } from './torch-venv.ts';

const BATCH = 8;
const TEXT = 128;
const VISUAL = 392;
const FEATURE = 768;
const WIDTH = 256;
const NUM_LAYERS = 4;
const NUM_HEADS = 4;
const VOCABULARY = 4096;
const MASKED_TEXT = 20;
const MASKED_VISUAL = 60;
/** Carries the caller's own GLIBC_TUNABLES to the peers. */
const PEER_TUNABLES = 'BENCH_PEER_GLIBC_TUNABLES';
const ADAMW = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01 };

type Params = {
  readonly text: tf.Tensor; // [V, D]
  readonly position: tf.Tensor; // [L, D]
  readonly visualMask: tf.Tensor; // [D]
  readonly projection: DenseParams;
  readonly blocks: readonly BlockParams[];
  readonly norm: LayerNormParams;
  readonly languageHead: DenseParams;
  readonly regressionHead: DenseParams;
};

type Batch = {
  readonly text: tf.Tensor; // [B, 128] int32
  readonly features: tf.Tensor; // [B, 392, 768]
  readonly textPositions: tf.Tensor; // [B, 20] int32
  readonly textLabels: tf.Tensor; // [B, 20] int32
  readonly visualPositions: tf.Tensor; // [B, 60] int32
};

type State = { readonly params: Params; readonly optimizer: AdamWState<Params> };

function initParams(): Params {
  const init = openInitializer(0);
  return {
    text: init.normal('text', [VOCABULARY, WIDTH], 1),
    position: init.normal('position', [TEXT + VISUAL, WIDTH], 0.02),
    visualMask: init.normal('visualMask', [WIDTH], 0.02),
    projection: initDense(init, 'projection', FEATURE, WIDTH),
    blocks: Array.from({ length: NUM_LAYERS }, (_, i) => initBlock(init, `blocks/${i}`, WIDTH, 4)),
    norm: initLayerNorm(init, 'norm', WIDTH),
    languageHead: initDense(init, 'languageHead', WIDTH, VOCABULARY),
    regressionHead: initDense(init, 'regressionHead', WIDTH, FEATURE),
  };
}

function makeBatch(engine: Engine): Batch {
  const rng = openRng(0, 'bench');
  const ids = (...shape: number[]) => {
    const size = shape.reduce((a, b) => a * b, 1);
    return engine.upload(
      Int32Array.from({ length: size }, () => rng.integer(VOCABULARY)),
      shape,
    );
  };
  const positions = (below: number, count: number) => {
    const rows = Array.from({ length: BATCH }, () => sample(rng, below, count));
    return engine.upload(Int32Array.from(rows.flat()), [BATCH, count]);
  };
  const numFeatures = BATCH * VISUAL * FEATURE;
  const features = Float32Array.from({ length: numFeatures }, () => rng.normal());
  return {
    text: ids(BATCH, TEXT),
    features: engine.upload(features, [BATCH, VISUAL, FEATURE]),
    textPositions: positions(TEXT, MASKED_TEXT),
    textLabels: ids(BATCH, MASKED_TEXT),
    visualPositions: positions(VISUAL, MASKED_VISUAL),
  };
}

/** `count` different integers below `below`. */
function sample(rng: Rng, below: number, count: number): number[] {
  const all = Array.from({ length: below }, (_, i) => i);
  for (let i = 0; i < count; i++) {
    const j = i + rng.integer(below - i);
    [all[i], all[j]] = [all[j]!, all[i]!];
  }
  return all.slice(0, count);
}

function loss(params: Params, batch: Batch): tf.Scalar {
  const embedded = tf.gather(params.text, tf.reshape(batch.text, [-1]));
  const text = tf.reshape(embedded, [BATCH, TEXT, WIDTH]);
  const isMasked = tf.sum(tf.oneHot(batch.visualPositions, VISUAL), 1); // [B, 392]
  const visual = tf.where(
    tf.cast(tf.expandDims(isMasked, -1), 'bool'),
    params.visualMask,
    dense(params.projection, batch.features),
  );
  let x: tf.Tensor = tf.add(tf.concat([text, visual], 1), params.position);
  for (const block of params.blocks) x = transformerBlock(block, x, { numHeads: NUM_HEADS });
  x = layerNorm(params.norm, x);

  const [textStates, visualStates] = tf.split(x, [TEXT, VISUAL], 1) as [tf.Tensor, tf.Tensor];
  const logits = dense(params.languageHead, gatherPositions(textStates, batch.textPositions));
  const labels = tf.oneHot(batch.textLabels, VOCABULARY);
  const crossEntropy = tf.neg(tf.mean(tf.sum(tf.mul(tf.logSoftmax(logits), labels), -1)));
  const predicted = dense(
    params.regressionHead,
    gatherPositions(visualStates, batch.visualPositions),
  );
  const wanted = gatherPositions(batch.features, batch.visualPositions);
  return tf.add(crossEntropy, tf.mean(tf.squaredDifference(predicted, wanted)));
}

function trainStep(
  state: State,
  batch: Batch,
  scalars: tf.Tensor,
): { state: State; loss: tf.Tensor } {
  const leaves = leavesOf(state.params).map(([, tensor]) => tensor);
  const { value, grads } = tf.valueAndGrads((...given: tf.Tensor[]) =>
    loss(withLeaves(state.params, given), batch),
  )(leaves);
  const gradient = tf.concat(grads.map((grad) => tf.reshape(grad, [-1])));
  const updated = adamW(ADAMW, {
    params: state.params,
    state: state.optimizer,
    gradient,
    scalars,
    decays: () => true,
  });
  return { state: { params: updated.params, optimizer: updated.state }, loss: value };
}

/** What steps took: wall-clock seconds of each, and the CPU seconds of all cores together, averaged. */
interface Timing {
  readonly seconds: readonly number[];
  readonly cpuSeconds: number;
}

interface Runner {
  readonly name: string;
  steps(count: number): Promise<Timing>;
  close(): void;
}

async function openOurs(cacheDir: string, mlirFile: string | undefined): Promise<Runner> {
  const engine = await openEngine({ engine: 'xla', cacheDir });
  const step = engine.compile(trainStep, { name: 'videobert', donate: [0] });
  const batch = makeBatch(engine);
  const params = initParams();
  const zeros = () => mapTree(params, ({ shape }) => tf.zeros(shape));
  let state: State = { params, optimizer: { first: zeros(), second: zeros() } };
  let count = 0;
  const scalarsAt = (n: number) =>
    engine.upload(adamWScalars(ADAMW, { step: n, learningRate: 1e-4, gradientScale: 1 }), [4]);

  const scalars = scalarsAt(1);
  const start = performance.now();
  const lowered = await step.lower(state, batch, scalars);
  const compileSeconds = (performance.now() - start) / 1000;
  scalars.dispose();
  if (mlirFile !== undefined) await writeFile(mlirFile, lowered?.mlir ?? '');
  emit({ name: 'trace-and-compile/videobert', metric: 'time', value: compileSeconds, unit: 's' });
  emit({
    name: 'step/videobert',
    metric: 'work',
    value: (lowered?.flops ?? 0) / 1e9,
    unit: 'GFLOP',
  });
  emit({
    name: 'step/videobert',
    metric: 'temporary memory',
    value: (lowered?.memory.tempBytes ?? 0) / 2 ** 20,
    unit: 'MiB',
  });
  return {
    name: 'videoloom',
    async steps(n) {
      const seconds: number[] = [];
      const before = process.cpuUsage();
      for (let i = 0; i < n; i++) {
        count++;
        const stepScalars = scalarsAt(count);
        const begin = performance.now();
        const result = await step(state, batch, stepScalars);
        seconds.push((performance.now() - begin) / 1000);
        state = result.state;
        tf.dispose([result.loss, stepScalars]);
      }
      const { user, system } = process.cpuUsage(before);
      return { seconds, cpuSeconds: (user + system) / 1e6 / n };
    },
    close() {
      engine.close();
    },
  };
}

/** A PyTorch process that runs steps on command. */
async function openTorch(cacheDir: string, mode: 'eager' | 'compile'): Promise<Runner> {
  const python = await ensureTorch(cacheDir);
  const script = path.join(import.meta.dirname, 'peers', 'videobert_torch.py');
  const threads = String(availableParallelism());
  const flags = mode === 'compile' ? ['--compile'] : [];
  const child = spawn(python, [script, '--threads', threads, ...flags], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, GLIBC_TUNABLES: process.env[PEER_TUNABLES] ?? '' },
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    name: `${TORCH.replace('==', ' ')} ${mode}`,
    async steps(count) {
      child.stdin.write(`step ${count}\n`);
      const next = (await lines.next()) as IteratorResult<string, undefined>;
      if (next.done === true) throw new Error(`PyTorch (${mode}) ended early`);
      const reply = JSON.parse(next.value) as { seconds: number[]; cpu_seconds: number };
      return { seconds: reply.seconds, cpuSeconds: reply.cpu_seconds };
    },
    close() {
      child.stdin.end();
    },
  };
}

function emit(figure: Record<string, string | number>): void {
  process.stdout.write(`${JSON.stringify(figure)}\n`);
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

const { values: flags } = parseArgs({
  options: {
    rounds: { type: 'string', default: '6' },
    steps: { type: 'string', default: '3' },
    cache: { type: 'string', default: path.join(homedir(), '.cache', 'videoloom', 'bench') },
    'no-peers': { type: 'boolean', default: false },
    mlir: { type: 'string' },
  },
});

/** Measures by turns and prints the figures. */
async function measure(): Promise<void> {
  const [rounds, stepsPerRound] = [Number(flags.rounds), Number(flags.steps)];
  const runners = [await openOurs(flags.cache, flags.mlir)];
  if (!flags['no-peers']) {
    runners.push(await openTorch(flags.cache, 'eager'), await openTorch(flags.cache, 'compile'));
  }
  const timings = new Map(runners.map((runner) => [runner, [] as Timing[]]));
  for (const runner of runners) await runner.steps(2);
  for (let round = 0; round < rounds; round++) {
    for (const runner of runners) timings.get(runner)!.push(await runner.steps(stepsPerRound));
  }
  const [ours, ...peers] = runners.map((runner) => {
    const all = timings.get(runner)!;
    const wall = all.flatMap(({ seconds }) => seconds);
    return {
      name: runner.name,
      figures: {
        'median time': median(wall) * 1000,
        'best time': Math.min(...wall) * 1000,
        'CPU time': median(all.map(({ cpuSeconds }) => cpuSeconds)) * 1000,
      },
    };
  });
  for (const [metric, value] of Object.entries(ours!.figures)) {
    const figure = { name: 'step/videobert', metric, value, unit: 'ms' };
    if (peers.length === 0) emit(figure);
    for (const peer of peers) {
      const peerValue = peer.figures[metric as keyof typeof peer.figures];
      emit({ ...figure, peer: peer.name, peer_value: peerValue, ratio: peerValue / value });
    }
  }
  for (const runner of runners) runner.close();
}

if (hasTrainingMemory(process.env)) await measure();
else {
  // The settings count from the start of a process; PyTorch's get the environment as it was.
  const env = {
    ...withTrainingMemory(process.env),
    [PEER_TUNABLES]: process.env['GLIBC_TUNABLES'],
  };
  const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
    stdio: 'inherit',
    env,
  });
  const [exitCode] = (await once(child, 'exit')) as [number | null];
  process.exitCode = exitCode ?? 1;
}
