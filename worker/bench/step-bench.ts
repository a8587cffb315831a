/** What the benches of a training step share: our runner, the peers', and the figures. */
import { spawn } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';

import * as tf from '@tensorflow/tfjs-core';

import { compiled } from '../../proto/compiled.mjs';
import type { XlaBackend } from '../backend/backend.ts';
import type { Engine, LoweredProgram } from '../backend/engine.ts';
import type { Precision } from '../backend/jit.ts';
import { adamW, adamWScalars } from '../optim/adamw.ts';
import type { AdamWState } from '../optim/adamw.ts';
import { numElements } from '../stablehlo/types.ts';
import { leavesOf, mapTree, withLeaves } from '../tree.ts';
import type { TensorTree } from '../tree.ts';
import { earlyFusion, qFormer, twoTower } from './models.ts';
import type { BenchModel } from './models.ts';
import { openProducts } from './limit.ts';
import { ensurePeer } from './peer-venv.ts';
import type { Peer } from './peer-venv.ts';
import { median, report } from './report.ts';

export interface MeasureOptions {
  readonly precision: Precision;
  readonly peers: readonly Peer[];
  readonly rounds: number;
  /** Of each round. */
  readonly steps: number;
  readonly cacheDir: string;
  /** What differs in the peers' environment. */
  readonly peerEnv?: NodeJS.ProcessEnv;
  /** Where to write the program. */
  readonly mlir?: string | undefined;
}

/** Of each product alone. */
const PRODUCT_RUNS = 15;

export const ADAMW = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01 };
/** By name. */
export const MODELS = { videobert: earlyFusion, clip: twoTower, qformer: qFormer };
export type ModelName = keyof typeof MODELS;

type State = { readonly params: TensorTree; readonly optimizer: AdamWState<TensorTree> };

/** One training step: forward, backward, AdamW. */
export function trainStepOf({ loss }: BenchModel) {
  return (
    state: State,
    batch: TensorTree,
    scalars: tf.Tensor,
  ): { state: State; loss: tf.Tensor } => {
    const leaves = leavesOf(state.params).map(([, tensor]) => tensor);
    const { value, grads } = tf.valueAndGrads((...given: tf.Tensor[]) =>
      loss(withLeaves(state.params, given), batch),
    )(leaves);
    const updated = adamW(ADAMW, {
      params: state.params,
      state: state.optimizer,
      gradient: withLeaves(state.params, grads),
      scalars,
      decays: () => true,
    });
    return { state: { params: updated.params, optimizer: updated.state }, loss: value };
  };
}

/** What steps took: wall-clock seconds of each, and the CPU seconds of all cores together, averaged. */
interface Timing {
  readonly seconds: readonly number[];
  readonly cpuSeconds: number;
  /** The most memory that the process has had so far. */
  readonly peakBytes: number;
}

export interface Runner {
  readonly name: string;
  steps(count: number): Promise<Timing>;
  close(): void;
}

async function openOurs(engine: Engine, name: ModelName, mlir: string | undefined) {
  const model = MODELS[name](engine);
  const step = engine.compile(trainStepOf(model), { name, donate: [0] });
  const zeros = () => mapTree(model.params, ({ shape }) => tf.zeros(shape));
  let state: State = {
    params: model.params,
    optimizer: { first: zeros(), second: zeros() },
  };
  let count = 0;
  const scalarsAt = (n: number) =>
    engine.upload(adamWScalars(ADAMW, { step: n, learningRate: 1e-4, gradientScale: 1 }), [4]);

  const scalars = scalarsAt(1);
  const start = performance.now();
  const lowering = step.lower(state, model.batch, scalars); // traces before it returns
  const traceSeconds = (performance.now() - start) / 1000;
  const lowered = (await lowering)!;
  const compileSeconds = (performance.now() - start) / 1000;
  scalars.dispose();
  if (mlir !== undefined) await writeFile(mlir, lowered.mlir);
  const of = `step/${name}`;
  report({ name: of, metric: 'trace', value: traceSeconds, unit: 's' });
  report({ name: of, metric: 'trace and compile', value: compileSeconds, unit: 's' });
  const temporary = lowered.memory.tempBytes / 2 ** 20;
  report({ name: of, metric: 'temporary memory', value: temporary, unit: 'MiB' });
  // The limit is that of a step which computes nothing twice.
  const isRecomputed = lowered.mlir.includes('optimization_barrier');
  const recomputed = isRecomputed ? (model.recomputedFlops ?? 0) : 0;
  const flops = lowered.flops - recomputed;
  report({ name: of, metric: 'work', value: flops / 1e9, unit: 'GFLOP' });
  report({ name: of, metric: 'work done again', value: recomputed / 1e9, unit: 'GFLOP' });
  const runner: Runner = {
    name: 'videoloom',
    async steps(n) {
      const seconds: number[] = [];
      const before = process.cpuUsage();
      for (let i = 0; i < n; i++) {
        count++;
        const stepScalars = scalarsAt(count);
        const begin = performance.now();
        const result = await step(state, model.batch, stepScalars);
        seconds.push((performance.now() - begin) / 1000);
        state = result.state;
        tf.dispose([result.loss, stepScalars]);
      }
      const { user, system } = process.cpuUsage(before);
      const peakBytes = process.resourceUsage().maxRSS * 1024;
      return { seconds, cpuSeconds: (user + system) / 1e6 / n, peakBytes };
    },
    close() {
      tf.dispose(leavesOf(state as unknown as TensorTree).map(([, tensor]) => tensor));
    },
  };
  return { runner, lowered, flops };
}

/**
 * Seconds that the step's products of matrices take, each alone: what it would take if all else were nothing. The best of
 * some runs of each.
 */
async function productSeconds({ products }: LoweredProgram): Promise<number> {
  const { client } = tf.backend() as tf.KernelBackend & Pick<XlaBackend, 'client'>;
  let sum = 0;
  for (const { mlir, operands, count } of products()) {
    const program = await client.compile(mlir);
    const inputs = operands.map(({ shape, elementType }) => {
      const length = numElements(shape);
      const values =
        elementType === 'bf16'
          ? new Uint16Array(length).fill(0x3f00) // 0.5
          : new Float32Array(length).fill(0.5);
      return client.bufferFromHost(values, shape, elementType as 'bf16' | 'f32');
    });
    let best = Infinity;
    for (let i = 0; i < PRODUCT_RUNS; i++) {
      const begin = performance.now();
      const [result] = await program.execute(inputs);
      best = Math.min(best, performance.now() - begin);
      result!.close();
    }
    sum += (count * best) / 1000;
    for (const input of inputs) input.close();
    program.close();
  }
  return sum;
}

/** A Python process that runs steps on command. */
async function openPeer(
  peer: Peer,
  model: ModelName,
  { cacheDir, precision, peerEnv }: MeasureOptions,
): Promise<Runner> {
  const { label, packages, script, args } = peer;
  const python = await ensurePeer(cacheDir, peer);
  const file = path.join(import.meta.dirname, 'peers', script);
  const shared = ['--threads', String(availableParallelism()), '--precision', precision];
  const name = `${packages[0].replace('==', ' ')} ${label}`;
  return openRunner(name, [python, file, model, ...shared, ...args], {
    ...process.env,
    ...peerEnv,
  });
}

/** In a process of its own where it would take memory that counts as ours; a GPU has no memory for another process. */
function openLimit(engine: Engine, { precision, cacheDir }: MeasureOptions): Runner {
  if (engine.platform !== 'cpu') return openProducts(engine);
  const program = compiled(new URL('limit-process.ts', import.meta.url));
  return openRunner('limit', [process.execPath, program, precision, cacheDir], process.env);
}

/** A process that runs as many steps as each line of its standard input says, and answers with what they took. */
function openRunner(
  name: string,
  [program, ...args]: readonly [string, ...string[]],
  env: NodeJS.ProcessEnv,
): Runner {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'], env });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    name,
    async steps(count) {
      child.stdin.write(`step ${count}\n`);
      const next = (await lines.next()) as IteratorResult<string, undefined>;
      if (next.done === true) throw new Error(`${name} ended early`);
      const reply = JSON.parse(next.value) as {
        seconds: number[];
        cpu_seconds: number;
        peak_bytes: number;
      };
      const { seconds, cpu_seconds: cpuSeconds, peak_bytes: peakBytes } = reply;
      return { seconds, cpuSeconds, peakBytes };
    },
    close() {
      child.stdin.end();
    },
  };
}

/** Measures one model by turns and prints its figures. */
export async function measure(
  engine: Engine,
  model: ModelName,
  options: MeasureOptions,
): Promise<{ readonly bestSeconds: number; readonly flops: number }> {
  const { precision, rounds, steps, mlir } = options;
  const { runner: ours, lowered, flops } = await openOurs(engine, model, mlir);
  const limit = openLimit(engine, options);
  const peers: Runner[] = [];
  for (const peer of options.peers) peers.push(await openPeer(peer, model, options));
  const runners = [ours, limit, ...peers];
  const timings = new Map(runners.map((runner) => [runner, [] as Timing[]]));
  for (const runner of runners) await runner.steps(2);
  for (let round = 0; round < rounds; round++) {
    for (const runner of runners) timings.get(runner)!.push(await runner.steps(steps));
  }
  const wallOf = (runner: Runner): number[] => timings.get(runner)!.flatMap((t) => t.seconds);
  const cpuOf = (runner: Runner): number[] => timings.get(runner)!.map((t) => t.cpuSeconds);
  const peakOf = (runner: Runner): number => timings.get(runner)!.at(-1)!.peakBytes;
  const summaries: Record<string, [unit: string, (runner: Runner) => number]> = {
    'best time': ['ms', (runner) => Math.min(...wallOf(runner)) * 1000],
    'median time': ['ms', (runner) => median(wallOf(runner)) * 1000],
    'CPU time': ['ms', (runner) => median(cpuOf(runner)) * 1000],
    'peak memory of the process': ['MiB', (runner) => peakOf(runner) / 2 ** 20],
  };
  for (const [metric, [unit, summary]] of Object.entries(summaries)) {
    report(
      {
        name: `step/${model}`,
        metric: `${metric} ${precision}`,
        value: summary(ours),
        unit,
        better: 'lower',
      },
      peers.map((peer) => ({ name: peer.name, value: summary(peer) })),
    );
  }
  const least = Math.min(...wallOf(limit)) * flops * 1000;
  report({ name: `step/${model}`, metric: 'limit of a large product', value: least, unit: 'ms' });
  const bestMs = Math.min(...wallOf(ours)) * 1000;
  const share = (limitMs: number): number => limitMs / bestMs;
  const of = `step/${model}`;
  report({ name: of, metric: 'share of the limit', value: share(least), unit: 'ratio' });
  // Last, since it takes memory of its own.
  const products = (await productSeconds(lowered)) * 1000;
  report({ name: of, metric: 'its own products, alone', value: products, unit: 'ms' });
  report({ name: of, metric: 'share of its products', value: share(products), unit: 'ratio' });
  for (const runner of runners) runner.close();
  return { bestSeconds: Math.min(...wallOf(ours)), flops };
}
