/**
 * All-reduce of float32 vectors between processes of one machine: ours, in the order of the tree, over Unix sockets as
 * the mesh chooses or over TCP with --tcp, and by turns in the same run Gloo's over TCP, through PyTorch
 * (`peers/allreduce_gloo.py`). Algorithm bandwidth = bytes of the vector / time of the slowest rank; median and best of
 * the interleaved repetitions. Prints a JSON line a figure; a ratio above 1 means that ours is faster.
 *
 *     node --import tsx worker/bench/all-reduce.ts [--world-size 2] [--sizes 1,4,16,64] [--rounds 6] [--cache DIR] [--no-peers]
 *         [--tcp]
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { homedir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import type { MeshGeneration } from '../parallel/collectives.ts';
import { reduceBytes } from '../parallel/tree-reduce.ts';
import { openCollectives } from '../parallel/mesh-collectives.ts';
import { microbatchRange } from '../parallel/tree-sum.ts';
import { VectorMemory } from '../parallel/vector-memory.ts';
import { median, report } from './report.ts';
import { ensurePeer, PEERS, TORCH } from './peer-venv.ts';

const MIB = 1 << 20;
/** Repetitions a turn: enough bytes to be measurable, few enough that the turns alternate. */
const repsOf = (mib: number): number => Math.max(3, Math.min(20, Math.floor(64 / mib)));

/** Processes that reduce on demand. */
interface Group {
  readonly name: string;
  /** Seconds of each repetition. */
  reduce(numElements: number, reps: number): Promise<number[]>;
  close(): Promise<void>;
}

/** Gives the lines that a process prints. */
function linesOf(child: ChildProcess): () => Promise<string> {
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  return async () => {
    const next = await lines.next();
    if (next.done === true) throw new Error(`${child.spawnargs.join(' ')} ended`);
    return next.value;
  };
}

/** A group of children that take `reduce ELEMENTS REPS` each, and whose rank 0 answers. */
function groupOf(
  name: string,
  children: readonly ChildProcess[],
  answer: () => Promise<string>,
): Group {
  return {
    name,
    async reduce(numElements, reps) {
      for (const child of children) child.stdin!.write(`reduce ${numElements} ${reps}\n`);
      return JSON.parse(await answer()) as number[];
    },
    async close() {
      await Promise.all(
        children.map((child) => {
          child.stdin!.end();
          return once(child, 'exit');
        }),
      );
    },
  };
}

async function openOurs(worldSize: number): Promise<Group> {
  const children = Array.from({ length: worldSize }, (_, rank) =>
    spawn(
      process.execPath,
      [
        '--import',
        'tsx',
        import.meta.filename,
        '--worker',
        String(rank),
        ...(flags.tcp ? ['--tcp'] : []),
      ],
      {
        stdio: ['pipe', 'pipe', 'inherit'],
      },
    ),
  );
  const readers = children.map(linesOf);
  const addresses = await Promise.all(readers.map((read) => read()));
  const generation: MeshGeneration = {
    number: 1,
    members: addresses.map((tensorAddress, rank) => ({
      ...{ rank, workerId: `w${rank}`, tensorAddress },
      ...microbatchRange(rank, worldSize, 2 ** Math.ceil(Math.log2(worldSize))),
    })),
  };
  for (const child of children) child.stdin.write(`${JSON.stringify(generation)}\n`);
  return groupOf('videoloom tree', children, readers[0]!);
}

async function openGloo(worldSize: number, cacheDir: string): Promise<Group> {
  const python = await ensurePeer(cacheDir, PEERS.eager);
  const script = path.join(import.meta.dirname, 'peers', 'allreduce_gloo.py');
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address() as AddressInfo;
  probe.close();
  const children = Array.from({ length: worldSize }, (_, rank) =>
    spawn(
      python,
      [script, '--rank', String(rank), '--world-size', String(worldSize), '--port', String(port)],
      {
        stdio: ['pipe', 'pipe', 'inherit'],
      },
    ),
  );
  return groupOf(`gloo (${TORCH.replace('==', ' ')})`, children, linesOf(children[0]!));
}

/** One of our processes: tells its address, takes the generation, then reduces as the lines on stdin say. */
async function work(rank: number): Promise<void> {
  const collectives = await openCollectives({
    ...{ listenAddress: '127.0.0.1:0', runId: 'bench', workerId: `w${rank}`, timeoutMs: 60_000 },
    localSockets: !flags.tcp,
  });
  process.stdout.write(`${collectives.address}\n`);
  let generation: MeshGeneration | undefined;
  for await (const line of createInterface({ input: process.stdin })) {
    if (generation === undefined) {
      generation = JSON.parse(line) as MeshGeneration;
      await collectives.configure(generation);
      continue;
    }
    const [, numElements, reps] = line.split(' ').map(Number) as [number, number, number];
    const { firstMicrobatch, numMicrobatches } = generation.members[rank]!;
    // As an accumulator leaves it.
    const memory = new VectorMemory(4 * numElements + 64 + reduceBytes(numElements));
    const sum = memory.allocate(numElements).fill(rank);
    const blocks = [{ start: firstMicrobatch, size: numMicrobatches, sum, memory }];
    const seconds: number[] = [];
    for (let step = 0; step < reps; step++) {
      await collectives.barrier(step, 'ready');
      const start = performance.now();
      await collectives.allReduce(step, blocks);
      const elapsed = Float64Array.of((performance.now() - start) / 1000);
      const all = await collectives.allGather(step, 'seconds', elapsed);
      seconds.push(Math.max(...all.map(([value]) => value!)));
    }
    if (rank === 0) process.stdout.write(`${JSON.stringify(seconds)}\n`);
  }
  await collectives.close();
}

async function compare(groups: readonly Group[], mib: number, rounds: number): Promise<void> {
  const timings = groups.map((): number[] => []);
  for (const group of groups) await group.reduce((mib * MIB) / 4, 10 * repsOf(mib)); // V8 optimizes after some hundred calls
  for (let round = 0; round < rounds; round++) {
    for (const [index, group] of groups.entries()) {
      timings[index]!.push(...(await group.reduce((mib * MIB) / 4, repsOf(mib))));
    }
  }
  const summaries = { median, best: (seconds: readonly number[]) => Math.min(...seconds) };
  for (const [metric, summary] of Object.entries(summaries)) {
    const [ours, ...peers] = groups.map((group, index) => ({
      name: group.name,
      value: (mib * MIB) / summary(timings[index]!) / 1e9,
    }));
    const transport = flags.tcp ? 'TCP' : 'Unix sockets';
    report(
      {
        name: `all-reduce ${worldSize} processes ${mib} MiB over ${transport}`,
        metric: `algorithm bandwidth, ${metric}`,
        value: ours!.value,
        unit: 'GB/s',
      },
      peers,
    );
  }
}

const { values: flags } = parseArgs({
  options: {
    'world-size': { type: 'string', default: '2' },
    sizes: { type: 'string', default: '1,4,16,64' },
    rounds: { type: 'string', default: '6' },
    cache: { type: 'string', default: path.join(homedir(), '.cache', 'videoloom', 'bench') },
    'no-peers': { type: 'boolean', default: false },
    tcp: { type: 'boolean', default: false },
    worker: { type: 'string' },
  },
});
const worldSize = Number(flags['world-size']);
if (flags.worker !== undefined) {
  await work(Number(flags.worker));
} else {
  const groups = [await openOurs(worldSize)];
  if (!flags['no-peers']) groups.push(await openGloo(worldSize, flags.cache));
  for (const mib of flags.sizes.split(',').map(Number))
    await compare(groups, mib, Number(flags.rounds));
  await Promise.all(groups.map((group) => group.close()));
}
