/**
 * What a checkpoint costs a training loop: ours beside torch.save, torch.distributed.checkpoint's save and its async_save
 * (on a thread and in a process), by turns in one run. A state is parameters and two moments; a step is a product of
 * matrices and AdamW. Stall: how long the call that takes the checkpoint holds the loop; a synchronous save holds it until
 * the end. Lost: that and what the steps took longer until it was written, ours with what it takes to lay out memory for
 * a second state. Total: until it is on disk. Then the writing alone, with fsync, beside safetensors' and torch.save's;
 * ours with SHA-256, theirs without. Median of the rounds; a JSON line a figure; a ratio above 1 means that ours is better.
 *
 *     node --import tsx worker/bench/checkpoint.ts [--megaparams 100] [--size 2048] [--rounds 5] [--dir DIR] [--cache DIR]
 *         [--no-peers]
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import * as tf from '@tensorflow/tfjs-core';
import { withTrainingMemory } from '../../proto/memory-environment.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { openEngine } from '../backend/engine.ts';
import { openFileWriter } from '../checkpoint/file-writer.ts';
import { saveCheckpointPart, shareOf } from '../checkpoint/save.ts';
import { prepareSnapshots, takeSnapshot } from '../checkpoint/snapshot.ts';
import { adamW, adamWScalars, initAdamW, type AdamWState } from '../optim/adamw.ts';
import { stateSizes, type TrainingState } from '../state.ts';
import { ensurePeer, PEERS, TORCH } from './peer-venv.ts';
import { median, report } from './report.ts';

const NUM_TENSORS = 100;
const SAFETENSORS = 'safetensors==0.6.2';

/** Seconds of one checkpoint, and bytes that this process had more than before while it was written. */
interface Cost {
  readonly stall: number;
  readonly lost: number;
  readonly total: number;
  readonly extraBytes: number;
}

/** A process that takes checkpoints on demand. */
interface Program {
  readonly name: string;
  ask(line: string): Promise<Cost>;
  close(): Promise<void>;
}

function openProgram(name: string, command: string, args: readonly string[]): Program {
  const child = spawn(command, args, {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: withTrainingMemory(process.env),
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    name,
    async ask(line) {
      child.stdin.write(`${line}\n`);
      const answer = await lines.next();
      if (answer.done === true) throw new Error(`${command} ${args.join(' ')} ended`);
      return JSON.parse(answer.value) as Cost;
    },
    async close() {
      child.stdin.end();
      if (child.exitCode === null) await once(child, 'exit');
    },
  };
}

type Params = Readonly<Record<string, tf.Tensor>>;

/** Our process: takes a checkpoint amid steps (`save - DIR`), or writes one alone (`write DIR`). */
async function work(numElements: number, size: number): Promise<void> {
  const engine = await openEngine({ engine: 'xla', cacheDir: userCacheDir(process.env) });
  const config = {
    ...{ learningRate: 1e-3, warmupSteps: 0, finalFraction: 1, beta1: 0.9, beta2: 0.999 },
    ...{ epsilon: 1e-8, weightDecay: 0.01, clipNorm: 1 },
  };
  const noise = (length: number): Float32Array =>
    Float32Array.from({ length }, (_, i) => Math.sin(i * 12.9898) * 1e-2);
  const one = noise(numElements);
  const params: Params = Object.fromEntries(
    Array.from({ length: NUM_TENSORS }, (_, i) => [`p${i}`, engine.upload(one, [numElements])]),
  );
  let state: TrainingState<Params> = { step: 0, params, optimizer: initAdamW(params) };
  const gradient = noise(NUM_TENSORS * numElements);
  const matrix = engine.upload(noise(size * size), [size, size]);
  const product = engine.compile(
    (a: tf.Tensor) => tf.sum(tf.matMul(a as tf.Tensor2D, a as tf.Tensor2D)),
    {
      name: 'product',
    },
  );
  const update = engine.compile(
    (params: Params, state: AdamWState<Params>, gradient: tf.Tensor, scalars: tf.Tensor) =>
      adamW(config, { params, state, gradient, scalars, decays: () => true }),
    { name: 'update', donate: [0, 1, 2, 3] },
  );
  const given = (step: number) => {
    const scalars = adamWScalars(config, { step, learningRate: 1e-3, gradientScale: 1 });
    return [
      state.params,
      state.optimizer,
      engine.upload(gradient, [gradient.length]),
      engine.upload(scalars, [scalars.length]),
    ] as const;
  };
  const step = async (): Promise<number> => {
    const startMs = performance.now();
    (await product(matrix)).dispose();
    const next = await update(...given(state.step + 1));
    state = { step: state.step + 1, params: next.params, optimizer: next.state };
    return (performance.now() - startMs) / 1000;
  };
  const files = openFileWriter();
  const sizes = stateSizes(state);
  const first = given(1);
  await prepareSnapshots([state.params['p0']!], () => update.lower(...first));
  first[2].dispose();
  first[3].dispose();
  const save = async (dir: string) => {
    const snapshot = await takeSnapshot(engine, state, shareOf(sizes, 0, 1));
    const part = { dir, rank: 0, worldSize: 1, tensors: snapshot.tensors, sizes };
    return saveCheckpointPart(part, files).finally(() => {
      snapshot.release();
    });
  };
  await step();
  for await (const line of createInterface({ input: process.stdin })) {
    const [verb, , dir] = line.split(' ') as [string, string, string];
    await rm(dir, { recursive: true, force: true });
    const base: number[] = [];
    for (let i = 0; verb === 'save' && i < 7; i++) base.push(await step());
    const rss = process.memoryUsage.rss();
    const startMs = performance.now();
    const seconds = (): number => (performance.now() - startMs) / 1000;
    let isDone = false;
    const saved = save(dir).then(() => {
      isDone = true;
    });
    // As training does: the snapshot is waited for, the writing is not.
    await Promise.resolve();
    const stall = seconds();
    let lost = stall;
    let extraBytes = 0;
    const isWritten = (): boolean => isDone;
    while (verb === 'save' && !isWritten()) {
      lost += Math.max(0, (await step()) - median(base));
      extraBytes = Math.max(extraBytes, process.memoryUsage.rss() - rss);
    }
    await saved;
    process.stdout.write(`${JSON.stringify({ stall, lost, total: seconds(), extraBytes })}\n`);
  }
  await files.close();
  engine.close();
}

async function compare(dir: string): Promise<void> {
  const megaparams = Number(flags.megaparams);
  const numElements = (megaparams * 1e6) / NUM_TENSORS;
  const gigabytes = (12 * megaparams) / 1e3;
  const tensors = ['--tensors', String(NUM_TENSORS), '--elements', String(numElements)];
  const ours = openProgram('videoloom', process.execPath, [
    ...['--import', 'tsx', import.meta.filename, '--worker', String(numElements)],
    ...['--size', flags.size],
  ]);
  const programs: [program: Program, kind: string, label: string][] = [[ours, '-', ours.name]];
  let plain: Program | undefined;
  if (!flags['no-peers']) {
    const script = (name: string): string => path.join(import.meta.dirname, 'peers', name);
    const python = await ensurePeer(flags.cache, PEERS.eager);
    const probe = createServer().listen(0, '127.0.0.1');
    await once(probe, 'listening');
    const { port } = probe.address() as AddressInfo;
    probe.close();
    const torch = openProgram(TORCH, python, [
      ...[script('checkpoint_torch.py'), ...tensors, '--size', flags.size, '--port', String(port)],
    ]);
    const version = TORCH.replace('==', ' ');
    programs.push(
      [torch, 'thread', `async_save, thread (${version})`],
      [torch, 'process', `async_save, process (${version})`],
      [torch, 'dcp', `DCP save (${version})`],
      [torch, 'torch', `torch.save and fsync (${version})`],
    );
    const bare = await ensurePeer(flags.cache, {
      ...{ label: 'safetensors', packages: [SAFETENSORS, 'numpy'], args: [] },
      script: 'checkpoint_safetensors.py',
    });
    plain = openProgram(SAFETENSORS, bare, [script('checkpoint_safetensors.py'), ...tensors]);
  }
  const costs = programs.map((): Cost[] => []);
  const writes: [number[], number[]] = [[], []];
  for (let round = -1; round < Number(flags.rounds); round++) {
    for (const [index, [program, kind]] of programs.entries()) {
      const cost = await program.ask(`save ${kind} ${path.join(dir, `c${index}`)}`);
      // The first one of each warms its memory up.
      if (round >= 0) costs[index]!.push(cost);
    }
    const written = await ours.ask(`write - ${path.join(dir, 'c0')}`);
    const theirs = await plain?.ask(`write ${path.join(dir, 'plain.safetensors')}`);
    if (round < 0) continue;
    writes[0].push(written.total);
    if (theirs !== undefined) writes[1].push(theirs.total);
  }
  for (const metric of ['stall', 'lost', 'total'] as const) {
    const [own, ...peers] = programs.map(([, , name], index) => ({
      name,
      value: median(costs[index]!.map((cost) => cost[metric] * 1000)),
    }));
    const name = `checkpoint of ${gigabytes} GB amid training`;
    report({ name, metric, value: own!.value, unit: 'ms', better: 'lower' }, peers);
  }
  const extra = median(costs[0]!.map(({ extraBytes }) => extraBytes / 1e9));
  const amid = `checkpoint of ${gigabytes} GB amid training`;
  report({ name: amid, metric: 'memory beside the state', value: extra, unit: 'GB' });
  const speed = (seconds: readonly number[]): number => gigabytes / median(seconds);
  const ofKind = (kind: string): readonly number[] =>
    costs[programs.findIndex((program) => program[1] === kind)]!.map(({ total }) => total);
  report(
    {
      name: `checkpoint of ${gigabytes} GB written alone, with SHA-256 and fsync`,
      ...{ metric: 'speed', value: speed(writes[0]), unit: 'GB/s' },
    },
    plain === undefined
      ? []
      : [
          { name: `${SAFETENSORS.replace('==', ' ')} with fsync`, value: speed(writes[1]) },
          { name: 'torch.save with fsync', value: speed(ofKind('torch')) },
          { name: 'DCP save, which has an fsync', value: speed(ofKind('dcp')) },
        ],
  );
  await Promise.all(
    [...new Set(programs.map(([program]) => program)), ...(plain ? [plain] : [])].map((p) =>
      p.close(),
    ),
  );
}

const { values: flags } = parseArgs({
  options: {
    megaparams: { type: 'string', default: '100' },
    size: { type: 'string', default: '2048' },
    rounds: { type: 'string', default: '5' },
    dir: { type: 'string', default: tmpdir() },
    cache: { type: 'string', default: path.join(userCacheDir(process.env), 'bench') },
    'no-peers': { type: 'boolean', default: false },
    worker: { type: 'string' },
  },
});
if (flags.worker !== undefined) {
  await work(Number(flags.worker), Number(flags.size));
} else {
  const dir = await mkdtemp(path.join(flags.dir, 'videoloom-checkpoint-bench-'));
  try {
    await compare(dir);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}
