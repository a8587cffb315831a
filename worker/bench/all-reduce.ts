/**
 * All-reduce of float32 vectors between processes of one machine: ours over TCP (tree, ring), over Unix sockets and
 * through shared memory, and by turns in the same run Gloo's over TCP, through PyTorch (`peers/allreduce_gloo.py`).
 * Algorithm bandwidth = bytes of the vector / time of the slowest rank; best and median of the interleaved repetitions,
 * and the processor time of all ranks, which other load on the machine hardly touches. Prints a JSON line a figure and a
 * table in the end; a ratio above 1 means that ours is better.
 *
 *     npm run bench:cluster -- [--world-sizes 2,4] [--sizes 1,4,16,64,100] [--rounds 5]
 *         [--transports tcp,ring,tcp-bf16,unix,shared] [--cache DIR] [--no-peers]
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { homedir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import type { MeshGeneration } from '../parallel/collectives.ts';
import { openCollectives, type CollectivesOptions } from '../parallel/mesh-collectives.ts';
import { microbatchRange } from '../parallel/tree-sum.ts';
import { median, report } from './report.ts';
import { ensurePeer, PEERS, TORCH } from './peer-venv.ts';

const MIB = 1 << 20;
/** Repetitions a turn: enough bytes to be measurable, few enough that the turns alternate. */
const repsOf = (mib: number): number => Math.max(3, Math.min(20, Math.floor(64 / mib)));
const elementsOf = (mib: number): number => (mib * MIB) / 4;

type Setting = Pick<
  CollectivesOptions,
  'allReduce' | 'sharedMemory' | 'localSockets' | 'precision'
>;

const TRANSPORTS = {
  tcp: { sharedMemory: false, localSockets: false },
  ring: { allReduce: 'ring', localSockets: false },
  'tcp-bf16': { sharedMemory: false, localSockets: false, precision: 'bfloat16' },
  unix: { sharedMemory: false },
  shared: { localSockets: false },
} as const satisfies Record<string, Setting>;
type TransportName = keyof typeof TRANSPORTS;

/** What some repetitions took. */
interface Timing {
  /** Of each repetition, of the slowest rank. */
  readonly seconds: number[];
  /** Of all ranks and repetitions together. */
  readonly processorSeconds: number;
}

/** Processes that reduce on demand. */
interface Group {
  readonly name: string;
  reduce(numElements: number, reps: number): Promise<Timing>;
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
      return JSON.parse(await answer()) as Timing;
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

async function openOurs(
  name: TransportName,
  worldSize: number,
  mostElements: number,
): Promise<Group> {
  const children = Array.from({ length: worldSize }, (_, rank) =>
    spawn(
      process.execPath,
      [
        ...['--import', 'tsx', import.meta.filename],
        ...['--worker', String(rank), '--transports', name, '--most', String(mostElements)],
      ],
      { stdio: ['pipe', 'pipe', 'inherit'] },
    ),
  );
  const readers = children.map(linesOf);
  const addresses = await Promise.all(readers.map((read) => read()));
  const generation: MeshGeneration = {
    number: 1,
    members: addresses.map((tensorAddress, rank) => ({
      ...{ rank, workerId: `w${rank}`, tensorAddress },
      ...microbatchRange(rank, worldSize, numMicrobatchesOf(worldSize)),
    })),
  };
  for (const child of children) child.stdin.write(`${JSON.stringify(generation)}\n`);
  return groupOf(name, children, readers[0]!);
}

const numMicrobatchesOf = (worldSize: number): number => 2 ** Math.ceil(Math.log2(worldSize));

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
async function work(rank: number, name: TransportName, mostElements: number): Promise<void> {
  const setting: Setting = TRANSPORTS[name];
  const collectives = await openCollectives({
    ...{ listenAddress: '127.0.0.1:0', runId: 'bench', workerId: `w${rank}`, timeoutMs: 60_000 },
    ...setting,
  });
  const memory = collectives.memoryFor(mostElements, 2);
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
    vector ??= memory.allocate(mostElements);
    const sum = vector.subarray(0, numElements).fill(rank + 1);
    const blocks = [{ start: firstMicrobatch, size: numMicrobatches, sum, memory }];
    const seconds: number[] = [];
    let processorSeconds = 0;
    for (let step = 0; step < reps; step++) {
      await collectives.barrier(step, 'ready');
      const [start, used] = [performance.now(), process.cpuUsage()];
      const result = await collectives.allReduce(step, blocks);
      const elapsed = (performance.now() - start) / 1000;
      const { user, system } = process.cpuUsage(used);
      const all = await collectives.allGather(
        step,
        'seconds',
        Float64Array.of(elapsed, (user + system) / 1e6),
      );
      seconds.push(Math.max(...all.map(([value]) => value!)));
      processorSeconds += all.reduce((total, values) => total + values[1]!, 0);
      check(result, generation.members.length, name);
      if (name === 'ring') sum.fill(rank + 1);
    }
    if (rank === 0) process.stdout.write(`${JSON.stringify({ seconds, processorSeconds })}\n`);
    const used = collectives.transport;
    const wanted = name === 'shared' ? 'shared memory' : name === 'ring' ? 'ring' : 'tree';
    if (used !== wanted) throw new Error(`${used} was used where ${wanted} is measured`);
  }
  await collectives.close();
}

let vector: Float32Array | undefined;

/** Rank r brings r + 1 everywhere. */
function check(result: Float32Array, worldSize: number, name: string): void {
  const wanted = (worldSize * (worldSize + 1)) / 2;
  const stride = 4093; // a prime: all places within pages and chunks in time
  for (let i = result.length - 1; i >= 0; i -= stride) {
    if (result[i] !== wanted) throw new Error(`${name}: ${result[i]} at ${i}, not ${wanted}`);
  }
}

const SUMMARIES = { best: (seconds: readonly number[]) => Math.min(...seconds), median };

async function compare(
  groups: readonly Group[],
  { worldSize, mib, rounds }: { worldSize: number; mib: number; rounds: number },
): Promise<void> {
  const seconds = groups.map((): number[] => []);
  const processor = groups.map(() => 0);
  // V8 optimizes after some hundred calls, and pages are touched for the first time.
  for (const group of groups) await group.reduce(elementsOf(mib), mib < 16 ? 100 : repsOf(mib));
  for (let round = 0; round < rounds; round++) {
    for (const [index, group] of groups.entries()) {
      const timing = await group.reduce(elementsOf(mib), repsOf(mib));
      seconds[index]!.push(...timing.seconds);
      processor[index]! += timing.processorSeconds;
    }
  }
  const bytes = mib * MIB;
  const peerIndex = groups.findIndex(({ name }) => name.startsWith('gloo'));
  const besides = (values: readonly number[]) =>
    peerIndex < 0 ? [] : [{ name: groups[peerIndex]!.name, value: values[peerIndex]! }];
  const bandwidths = Object.entries(SUMMARIES).map(
    ([metric, of]) => [metric, seconds.map((all) => bytes / of(all) / 1e9)] as const,
  );
  const costs = processor.map((total, i) => (1000 * total) / seconds[i]!.length);
  for (const [index, group] of groups.entries()) {
    if (index === peerIndex) continue;
    const name = `all-reduce ${worldSize} processes ${mib} MiB, ${group.name}`;
    const cells = [String(worldSize), String(mib), group.name];
    for (const [metric, values] of bandwidths) {
      const value = values[index]!;
      report(
        { name, metric: `algorithm bandwidth, ${metric}`, value, unit: 'GB/s' },
        besides(values),
      );
      cells.push(value.toFixed(2), ...besides(values).map((peer) => ratio(value, peer.value)));
    }
    const value = costs[index]!;
    report(
      { name, metric: 'processor time, all ranks', value, unit: 'ms', better: 'lower' },
      besides(costs),
    );
    cells.push(value.toFixed(2), ...besides(costs).map((peer) => ratio(peer.value, value)));
    table.push(cells);
  }
}

const ratio = (a: number, b: number): string => `${(a / b).toFixed(2)}x`;

const { values: flags } = parseArgs({
  options: {
    'world-sizes': { type: 'string', default: '2,4' },
    sizes: { type: 'string', default: '1,4,16,64,100' },
    rounds: { type: 'string', default: '5' },
    transports: { type: 'string', default: 'tcp,ring,shared' },
    cache: { type: 'string', default: path.join(homedir(), '.cache', 'videoloom', 'bench') },
    'no-peers': { type: 'boolean', default: false },
    worker: { type: 'string' },
    most: { type: 'string', default: '0' },
  },
});
const names = flags.transports.split(',') as TransportName[];
const table: string[][] = [];
if (flags.worker !== undefined) {
  await work(Number(flags.worker), names[0]!, Number(flags.most));
} else {
  const sizes = flags.sizes.split(',').map(Number);
  const most = elementsOf(Math.max(...sizes));
  for (const worldSize of flags['world-sizes'].split(',').map(Number)) {
    const groups = await Promise.all(names.map((name) => openOurs(name, worldSize, most)));
    if (!flags['no-peers']) groups.push(await openGloo(worldSize, flags.cache));
    for (const mib of sizes)
      await compare(groups, { worldSize, mib, rounds: Number(flags.rounds) });
    await Promise.all(groups.map((group) => group.close()));
  }
  const beside = flags['no-peers'] ? [] : ['of Gloo'];
  const head = [
    ...['processes', 'MiB', 'transport', 'best GB/s', ...beside],
    ...['median GB/s', ...beside, 'processor ms', ...beside],
  ];
  for (const cells of [head, head.map(() => '---'), ...table]) {
    process.stderr.write(`| ${cells.join(' | ')} |\n`);
  }
}
