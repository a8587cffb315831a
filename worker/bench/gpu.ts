/**
 * What a GPU gives: products of matrices in bf16 and f32, and one training step (forward, backward, AdamW) of the three
 * models of engine.ts beside PyTorch eager, torch.compile and JAX on the same GPU, by turns in one run. Prints a JSON
 * line a figure; a ratio above 1 means that ours is faster. MFU is the share of the GPU's rated bf16 FLOP/s that the
 * products of the model came to. Without a GPU it says so and ends well.
 *
 *     node --import tsx worker/bench/gpu.ts [--plugin cuda13|cuda12] [--models videobert,clip,qformer] [--rounds 6]
 *       [--steps 10] [--peers eager,compile,jax] [--cache DIR]
 */
import { homedir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';

import * as tf from '@tensorflow/tfjs-core';

import { openEngine } from '../backend/engine.ts';
import type { Engine } from '../backend/engine.ts';
import type { Precision } from '../backend/jit.ts';
import { diagnosePlugin } from '../pjrt/doctor.ts';
import { findDriver } from '../pjrt/driver.ts';
import { findPlugin, pluginCacheDir } from '../pjrt/plugin.ts';
import { GPU_PEERS } from './peer-venv.ts';
import { report } from './report.ts';
import { measure, MODELS } from './step-bench.ts';
import type { ModelName } from './step-bench.ts';

/** TFLOP/s in bf16 with float32 sums, dense. Source: NVIDIA's data sheets, halved where they count sparsity. */
const RATED_TFLOPS: readonly (readonly [kind: RegExp, tflops: number])[] = [
  [/H100 PCIe/, 756],
  [/H100|H200|GH200/, 989],
  [/B200|GB200/, 2250],
  [/A100/, 312],
  [/L40S/, 362],
  [/L4\b/, 121],
  [/A10\b/, 125],
  [/RTX 4090/, 165],
];
/** Our share of the GPU's memory: the peers live beside us. */
const MEMORY_FRACTION = 0.4;
const PEER_ENV = { XLA_PYTHON_CLIENT_PREALLOCATE: 'false' };

const { values: flags } = parseArgs({
  options: {
    plugin: { type: 'string' },
    models: { type: 'string', default: Object.keys(MODELS).join() },
    rounds: { type: 'string', default: '6' },
    steps: { type: 'string', default: '10' },
    peers: { type: 'string', default: Object.keys(GPU_PEERS).join() },
    cache: { type: 'string', default: path.join(homedir(), '.cache', 'videoloom', 'bench') },
  },
});

/** Best TFLOP/s of `size` x `size` products, a chain of them in each program so that its start does not count. */
async function productTflops(engine: Engine, size: number): Promise<number> {
  const numProducts = 16;
  const matrix = engine.upload(new Float32Array(size * size).fill(1 / size), [size, size]);
  const chain = engine.compile(
    (a: tf.Tensor) => {
      let product = a as tf.Tensor2D;
      for (let i = 0; i < numProducts; i++) product = tf.matMul(product, a);
      return product;
    },
    { name: 'products' },
  );
  let best = Infinity;
  for (let i = 0; i < 10; i++) {
    const start = performance.now();
    const result = await chain(matrix);
    best = Math.min(best, (performance.now() - start) / 1000);
    result.dispose();
  }
  chain.close();
  matrix.dispose();
  return (2 * size ** 3 * numProducts) / best / 1e12;
}

async function main(pluginPath: string, kind: string): Promise<void> {
  const rated = RATED_TFLOPS.find(([pattern]) => pattern.test(kind))?.[1];
  const peers = flags.peers
    .split(',')
    .filter((name) => name !== '')
    .map((name) => GPU_PEERS[name as keyof typeof GPU_PEERS]);
  for (const precision of ['bfloat16', 'float32'] satisfies Precision[]) {
    const engine = await openEngine({
      engine: 'xla',
      pluginPath,
      cacheDir: flags.cache,
      precision,
      memoryFraction: MEMORY_FRACTION,
    });
    try {
      for (const size of [2048, 4096, 8192]) {
        const value = await productTflops(engine, size);
        const metric = `product of ${size} x ${size} ${precision}`;
        report({ name: `gpu/${kind}`, metric, value, unit: 'TFLOP/s' });
      }
      // The peers' steps are compared in the precision that people train in.
      if (precision !== 'bfloat16') continue;
      for (const model of flags.models.split(',') as ModelName[]) {
        const { bestSeconds, flops } = await measure(engine, model, {
          precision,
          peers,
          rounds: Number(flags.rounds),
          steps: Number(flags.steps),
          cacheDir: flags.cache,
          peerEnv: PEER_ENV,
        });
        if (rated === undefined) continue;
        const mfu = flops / bestSeconds / (rated * 1e12);
        report({ name: `step/${model}`, metric: `MFU ${precision}`, value: mfu, unit: 'ratio' });
      }
    } finally {
      engine.close();
    }
  }
}

/** The plugin to measure, and its GPU; a sentence where there is none. */
async function findGpu(): Promise<{ pluginPath: string; kind: string } | string> {
  if ((await findDriver('nvidia')) === undefined)
    return 'there is no NVIDIA driver on this machine';
  const cacheDir = pluginCacheDir(process.env);
  const named = process.env['PJRT_PLUGIN_PATH'];
  for (const name of flags.plugin === undefined ? ['cuda13', 'cuda12'] : [flags.plugin]) {
    const pluginPath = await findPlugin({ name, cacheDir, pluginPath: named });
    if (pluginPath === undefined) continue;
    const { problem, devices } = await diagnosePlugin({ name, cacheDir, pluginPath: named });
    if (problem !== undefined) throw new Error(problem);
    return { pluginPath, kind: devices![0]!.kind };
  }
  return 'no plugin for its GPU is installed: run `videoloom engine install cuda13 --with-libraries`';
}

const found = await findGpu();
if (typeof found === 'string') process.stdout.write(`bench:gpu was skipped: ${found}\n`);
else await main(found.pluginPath, found.kind);
