/**
 * What TLS costs the all-reduce: two processes of this machine over loopback TCP, in plain text and over mutual TLS 1.3
 * by turns in one run. Algorithm bandwidth = bytes of the vector / time of the slower rank. Prints a JSON line a size;
 * the ratio is that of TLS to plain text.
 *
 *     node --import tsx deploy/test/bench-tls.ts [--sizes 1,4,16,64] [--rounds 6]
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { parseArgs } from 'node:util';
import { makeTlsFolder } from './tls-folder.ts';
import { openSecurity } from '../../proto/security-folder.ts';
import { LOOPBACK_ONLY } from '../../proto/security.ts';
import type { MeshGeneration } from '../../worker/parallel/collectives.ts';
import { openCollectives } from '../../worker/parallel/mesh-collectives.ts';
import { microbatchRange } from '../../worker/parallel/tree-sum.ts';
import { median, report } from '../../worker/bench/report.ts';

const MIB = 1 << 20;
const WORLD_SIZE = 2;

interface Turn {
  readonly numElements: number;
  readonly reps: number;
}

const { values: flags } = parseArgs({
  options: {
    sizes: { type: 'string', default: '1,4,16,64' },
    rounds: { type: 'string', default: '6' },
    rank: { type: 'string' },
    tls: { type: 'string', default: '' },
  },
});

/** One process: tells its address, takes the generation, then reduces as it is told. */
async function work(rank: number): Promise<void> {
  const workerId = `worker-${rank}`;
  const security =
    flags.tls === ''
      ? LOOPBACK_ONLY
      : await openSecurity({ as: { role: 'worker', workerId }, tls: flags.tls, env: {} });
  const collectives = await openCollectives({
    ...{ listenAddress: '127.0.0.1:0', runId: 'bench', workerId, timeoutMs: 60_000, security },
    ...{ localSockets: false, sharedMemory: false },
  });
  process.send!(collectives.address);
  const [generation] = (await once(process, 'message')) as [MeshGeneration];
  const { firstMicrobatch, numMicrobatches } = generation.members[rank]!;
  await collectives.configure(generation);
  process.on('disconnect', () => process.exit());
  process.on('message', ({ numElements, reps }: Turn) => {
    const run = async (): Promise<void> => {
      const sum = new Float32Array(numElements).fill(rank);
      const blocks = [{ start: firstMicrobatch, size: numMicrobatches, sum }];
      const seconds: number[] = [];
      for (let step = 0; step < reps; step++) {
        await collectives.barrier(step, 'ready');
        const start = performance.now();
        await collectives.allReduce(step, blocks, numElements);
        const elapsed = Float64Array.of((performance.now() - start) / 1000);
        const all = await collectives.allGather(step, 'seconds', elapsed);
        seconds.push(Math.max(...all.map(([value]) => value!)));
      }
      process.send!(seconds);
    };
    void run();
  });
}

async function openGroup(tls: string): Promise<{ children: ChildProcess[] }> {
  const children = Array.from({ length: WORLD_SIZE }, (_, rank) =>
    fork(import.meta.filename, ['--rank', String(rank), '--tls', tls], {
      execArgv: ['--import', 'tsx'],
    }),
  );
  for (const child of children) {
    child.on('exit', (code) => {
      if (code !== 0) process.exit(1); // it has said why
    });
  }
  const told = await Promise.all(children.map((child) => once(child, 'message')));
  const generation: MeshGeneration = {
    number: 1,
    members: told.map(([tensorAddress], rank) => ({
      ...{ rank, workerId: `worker-${rank}`, tensorAddress: tensorAddress as string },
      ...microbatchRange(rank, WORLD_SIZE, WORLD_SIZE),
    })),
  };
  for (const child of children) child.send(generation);
  return { children };
}

async function reduce(children: readonly ChildProcess[], turn: Turn): Promise<number[]> {
  const [[seconds]] = (await Promise.all(
    children.map((child) => {
      const told = once(child, 'message');
      child.send(turn);
      return told;
    }),
  )) as [[number[]]];
  return seconds;
}

if (flags.rank !== undefined) {
  await work(Number(flags.rank));
} else {
  const folder = await makeTlsFolder(WORLD_SIZE);
  const groups = [await openGroup(folder.folder), await openGroup('')];
  for (const mib of flags.sizes.split(',').map(Number)) {
    const reps = Math.max(3, Math.min(20, Math.floor(64 / mib)));
    const timings: number[][] = [[], []];
    const numElements = (mib * MIB) / 4;
    for (const { children } of groups) await reduce(children, { numElements, reps });
    for (let round = 0; round < Number(flags.rounds); round++) {
      for (const [i, { children }] of groups.entries())
        timings[i]!.push(...(await reduce(children, { numElements, reps })));
    }
    for (const [metric, of] of Object.entries({
      median,
      best: (all: number[]) => Math.min(...all),
    })) {
      const [secure, plain] = timings.map((seconds) => (mib * MIB) / of(seconds) / 1e9);
      report(
        {
          name: `all-reduce 2 processes ${mib} MiB over TLS 1.3`,
          metric: `algorithm bandwidth, ${metric}`,
          ...{ value: secure!, unit: 'GB/s' },
        },
        [{ name: 'plain TCP', value: plain! }],
      );
    }
  }
  for (const { children } of groups) for (const child of children) child.disconnect();
}
