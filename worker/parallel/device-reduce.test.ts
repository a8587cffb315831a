import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { openPjrtClient, type PjrtClient } from '../pjrt/client.ts';
import { cpuPlugin } from '../pjrt/test/client.ts';
import type { MeshGeneration } from './collectives.ts';
import { deviceSumProgram, type OpenDeviceSum } from './device-sum.ts';
import { openCollectives, type MeshCollectives } from './mesh-collectives.ts';
import { bfloat16Of, gradientOf, treeSum } from './test/gradients.ts';
import { jointDevices } from './test/joint-devices.ts';
import { GradientAccumulator, microbatchRange } from './tree-sum.ts';
import type { SumPrecision } from './vector-memory.ts';

const MOST_WORKERS = 4;
const NUM_MICROBATCHES = 8;
const NUM_ELEMENTS = 10_007; // not a multiple of any number of workers
let client: PjrtClient;
before(async () => {
  process.env['NPROC'] = String(2 * MOST_WORKERS); // two threads a device
  client = await openPjrtClient({
    pluginPath: await cpuPlugin(),
    clientOptions: { cpu_device_count: MOST_WORKERS },
  });
});
after(() => {
  client.close();
});

interface Group {
  readonly workers: readonly MeshCollectives[];
  readonly generationOf: (number: number, numMicrobatches?: number) => MeshGeneration;
}

async function withWorkers(
  worldSize: number,
  { openDeviceSum, precision }: { openDeviceSum: OpenDeviceSum; precision?: SumPrecision },
  body: (group: Group) => Promise<void>,
): Promise<void> {
  const workers = await Promise.all(
    Array.from({ length: worldSize }, (_, rank) =>
      openCollectives({
        ...{ listenAddress: '127.0.0.1:0', runId: 'run', workerId: `w${rank}`, openDeviceSum },
        ...{ timeoutMs: 20_000, precision: precision ?? 'float32' },
      }),
    ),
  );
  const generationOf = (number: number, numMicrobatches = NUM_MICROBATCHES): MeshGeneration => ({
    number,
    members: workers.map(({ address }, rank) => ({
      ...{ rank, workerId: `w${rank}`, tensorAddress: address },
      ...microbatchRange(rank, worldSize, numMicrobatches),
    })),
  });
  try {
    await body({ workers, generationOf });
  } finally {
    await Promise.allSettled(workers.map((worker) => worker.close()));
  }
}

/** Every worker pushes its gradients of a step and sums. */
function reduceAll(
  workers: readonly MeshCollectives[],
  { members }: MeshGeneration,
  { step, precision }: { step: number; precision: SumPrecision },
): Promise<Float32Array>[] {
  return workers.map(async (worker, rank) => {
    const memory = memories.get(worker) ?? worker.memoryFor(NUM_ELEMENTS, NUM_MICROBATCHES);
    memories.set(worker, memory);
    const accumulator = new GradientAccumulator(NUM_ELEMENTS, memory, precision);
    const range = members[rank]!;
    accumulator.begin(range);
    for (let m = 0; m < range.numMicrobatches; m++)
      accumulator.push(gradientOf(step, range.firstMicrobatch + m, NUM_ELEMENTS));
    return worker.allReduce(step, accumulator.blocks(), NUM_ELEMENTS);
  });
}
const memories = new WeakMap<MeshCollectives, ReturnType<MeshCollectives['memoryFor']>>();

const bitsOf = (values: Float32Array): Buffer =>
  Buffer.from(values.buffer, values.byteOffset, values.byteLength);

function expectedSum(step: number, precision: SumPrecision, numMicrobatches = NUM_MICROBATCHES) {
  const gradients = Array.from({ length: numMicrobatches }, (_, m) =>
    gradientOf(step, m, NUM_ELEMENTS),
  );
  return bitsOf(treeSum(gradients, precision === 'float32' ? Math.fround : bfloat16Of));
}

for (const worldSize of [2, 3, 4]) {
  for (const precision of ['float32', 'bfloat16'] as const) {
    test(`${worldSize} devices sum to the bits of the scalar tree in ${precision}, step by step`, async () => {
      const { open, numOpen } = jointDevices(client);
      await withWorkers(worldSize, { openDeviceSum: open, precision }, async (group) => {
        const { workers } = group;
        for (const number of [1, 2]) {
          const generation = group.generationOf(number);
          await Promise.all(workers.map((worker) => worker.configure(generation)));
          for (const step of [1, 2]) {
            const sums = await Promise.all(reduceAll(workers, generation, { step, precision }));
            for (const sum of sums) assert.ok(bitsOf(sum).equals(expectedSum(step, precision)));
          }
          assert.equal(numOpen(), worldSize, 'those of the generation before are closed');
        }
        assert.equal(workers[0]!.transport, 'devices');
      });
      assert.equal(numOpen(), 0);
    });
  }
}

test('more workers than microbatches: who has none brings zeros that nobody adds', async () => {
  const { open } = jointDevices(client);
  await withWorkers(4, { openDeviceSum: open }, async ({ workers, generationOf }) => {
    const generation = generationOf(1, 2);
    await Promise.all(workers.map((worker) => worker.configure(generation)));
    const sums = await Promise.all(
      reduceAll(workers, generation, { step: 5, precision: 'float32' }),
    );
    for (const sum of sums) assert.ok(bitsOf(sum).equals(expectedSum(5, 'float32', 2)));
  });
});

test('what travels is slices: each device has its share of every block, and no device all of them', async () => {
  const worldSize = 4;
  const members = Array.from({ length: worldSize }, (_, rank) => ({
    ...{ rank, workerId: `w${rank}`, tensorAddress: '' },
    ...microbatchRange(rank, worldSize, NUM_MICROBATCHES),
  }));
  const numElements = 1 << 20;
  const program = deviceSumProgram({
    ...{ generation: { number: 1, members }, numElements, precision: 'float32' },
  });
  const executable = await client.compile(program, { deviceIndices: [0, 1, 2, 3] });
  const { tempBytes } = executable.memory();
  executable.close();
  // One slice of each of the four blocks, sent and received, and sums of them: below half of the four whole vectors.
  assert.ok(tempBytes < 2 * 4 * numElements * 4 * 0.5, `${tempBytes} bytes`);
});

test('a worker that goes in the middle of a sum is named, and the others go on without it', async () => {
  const { open } = jointDevices(client);
  await withWorkers(3, { openDeviceSum: open }, async ({ workers, generationOf }) => {
    const generation = generationOf(1);
    await Promise.all(workers.map((worker) => worker.configure(generation)));
    const remaining = workers.slice(0, 2);
    const lost = Promise.all(
      reduceAll(remaining, generation, { step: 1, precision: 'float32' }).map((sum) =>
        assert.rejects(sum, { code: 'PEER_LOST', rank: 2 }),
      ),
    );
    await workers[2]!.close();
    await lost;
    // Its device never came: those of the others would wait for ever.
    const members = generation.members
      .slice(0, 2)
      .map((member) => ({ ...member, ...microbatchRange(member.rank, 2, NUM_MICROBATCHES) }));
    const next = { number: 2, members };
    await Promise.all(remaining.map((worker) => worker.configure(next)));
    const sums = await Promise.all(reduceAll(remaining, next, { step: 1, precision: 'float32' }));
    for (const sum of sums) assert.ok(bitsOf(sum).equals(expectedSum(1, 'float32')));
  });
});

test('devices that fail say why, once nobody is seen to be gone', async () => {
  const broken: OpenDeviceSum = ({ numElements }) => ({
    result: new Float32Array(numElements),
    run: () => Promise.reject(new Error('out of memory')),
    close: () => Promise.resolve(),
  });
  await withWorkers(2, { openDeviceSum: broken }, async ({ workers, generationOf }) => {
    const generation = generationOf(1);
    await Promise.all(workers.map((worker) => worker.configure(generation)));
    await Promise.all(
      reduceAll(workers, generation, { step: 1, precision: 'float32' }).map((sum) =>
        assert.rejects(sum, {
          code: 'ALL_REDUCE_FAILED',
          retryable: true,
          message: /could not sum the gradient of step 1: out of memory/,
        }),
      ),
    );
  });
});
