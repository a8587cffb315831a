/**
 * One training step (forward, backward, AdamW) of three video-language models on our engine and, by turns in the same
 * run, in PyTorch eager, torch.compile and JAX (`peers/`), beside the limit that a large product of matrices sets here.
 * Prints a JSON line a figure; a ratio above 1 means that ours is faster. All cores for everybody.
 *
 *     node --import tsx worker/bench/engine.ts [--models videobert,clip,qformer] [--rounds 6] [--steps 3]
 *       [--precision float32|bfloat16] [--peers eager,compile,jax] [--cache DIR] [--mlir FILE]
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { homedir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';

import { compiled } from '../../proto/compiled.mjs';
import { hasTrainingMemory, withTrainingMemory } from '../../proto/memory-environment.ts';
import { openEngine } from '../backend/engine.ts';
import type { Precision } from '../backend/jit.ts';
import { PEERS } from './peer-venv.ts';
import { measure, MODELS } from './step-bench.ts';
import type { ModelName } from './step-bench.ts';

/** Carries the caller's own GLIBC_TUNABLES to the peers. */
const PEER_TUNABLES = 'BENCH_PEER_GLIBC_TUNABLES';

const { values: flags } = parseArgs({
  options: {
    models: { type: 'string', default: Object.keys(MODELS).join() },
    rounds: { type: 'string', default: '6' },
    steps: { type: 'string', default: '3' },
    precision: { type: 'string', default: 'float32' },
    peers: { type: 'string', default: Object.keys(PEERS).join() },
    cache: { type: 'string', default: path.join(homedir(), '.cache', 'videoloom', 'bench') },
    mlir: { type: 'string' },
  },
});

const models = flags.models.split(',') as ModelName[];
if (hasTrainingMemory(process.env) && models.length === 1) {
  const precision = flags.precision as Precision;
  const engine = await openEngine({ engine: 'xla', cacheDir: flags.cache, precision });
  const options = {
    precision,
    peers: flags.peers
      .split(',')
      .filter((name) => name !== '')
      .map((name) => PEERS[name as keyof typeof PEERS]),
    rounds: Number(flags.rounds),
    steps: Number(flags.steps),
    cacheDir: flags.cache,
    peerEnv: { GLIBC_TUNABLES: process.env[PEER_TUNABLES] ?? '' },
    mlir: flags.mlir,
  };
  await measure(engine, models[0]!, options);
  engine.close();
} else {
  // A process for each model, so that memory is told apart too, of the compiled program that users run. The settings count
  // from the start of a process; the peers get the environment as it was.
  const env = {
    ...withTrainingMemory(process.env),
    [PEER_TUNABLES]: process.env['GLIBC_TUNABLES'],
  };
  const program = compiled(new URL('engine.ts', import.meta.url));
  for (const model of models) {
    const args = [program, ...process.argv.slice(2), '--models', model];
    const child = spawn(process.execPath, args, { stdio: 'inherit', env });
    const [exitCode] = (await once(child, 'exit')) as [number | null];
    if (exitCode !== 0) process.exitCode = exitCode ?? 1;
  }
}
