import assert from 'node:assert/strict';
import { readdirSync, readlinkSync } from 'node:fs';
import { platform } from 'node:os';
import { test } from 'node:test';
import type { MeshGeneration } from './collectives.ts';
import {
  openCollectives,
  type CollectivesOptions,
  type MeshCollectives,
  type ReduceTransport,
} from './mesh-collectives.ts';
import { bfloat16Of, gradientOf, ringSum, treeSum } from './test/gradients.ts';
import { blocksOf, GradientAccumulator, microbatchRange } from './tree-sum.ts';
import type { SumPrecision, VectorMemory } from './vector-memory.ts';

const TIMEOUT_MS = 20_000;
/** Several chunks for each worker with few, a part of one with many. */
const numElementsOf = (worldSize: number): number => (worldSize <= 3 ? 40_007 : 2003);
const MOST_MICROBATCHES = 8;

interface Worker {
  readonly collectives: MeshCollectives;
  readonly numElements: number;
  readonly memory: VectorMemory;
  readonly accumulator: GradientAccumulator;
}

type Transport = Pick<CollectivesOptions, 'allReduce' | 'sharedMemory' | 'precision'> & {
  readonly name: ReduceTransport;
};

const canShare = platform() === 'linux';
const TRANSPORTS: readonly Transport[] = (['float32', 'bfloat16'] as const).flatMap((precision) => [
  ...(canShare ? [{ name: 'shared memory', precision } as const] : []),
  { name: 'tree', precision, sharedMemory: false },
  { name: 'ring', precision, allReduce: 'ring' },
]);

async function withWorkers(
  worldSize: number,
  { precision = 'float32', allReduce = 'tree', sharedMemory = true }: Transport,
  body: (
    workers: Worker[],
    generationOf: (number: number, numMicrobatches: number) => MeshGeneration,
  ) => Promise<void>,
): Promise<void> {
  const numElements = numElementsOf(worldSize);
  const workers = await Promise.all(
    Array.from({ length: worldSize }, async (_, rank): Promise<Worker> => {
      const collectives = await openCollectives({
        ...{ listenAddress: '127.0.0.1:0', runId: 'run', workerId: `w${rank}` },
        ...{ timeoutMs: TIMEOUT_MS, checksums: 'always', precision, allReduce, sharedMemory },
      });
      const memory = collectives.memoryFor(numElements, MOST_MICROBATCHES);
      const accumulator = new GradientAccumulator(numElements, memory, precision);
      return { numElements, collectives, memory, accumulator };
    }),
  );
  const generationOf = (number: number, numMicrobatches: number): MeshGeneration => ({
    number,
    members: workers.map(({ collectives: { address } }, rank) => ({
      ...{ rank, workerId: `w${rank}`, tensorAddress: address },
      ...microbatchRange(rank, worldSize, numMicrobatches),
    })),
  });
  try {
    await body(workers, generationOf);
  } finally {
    await Promise.all(workers.map(({ collectives }) => collectives.close()));
  }
}

/** Each worker's gradients of a step, summed. */
async function reduce(
  workers: readonly Worker[],
  generation: MeshGeneration,
  step: number,
  gradients: readonly Float32Array[],
): Promise<Buffer[]> {
  return Promise.all(
    workers.map(async ({ collectives, accumulator, numElements }, rank) => {
      const range = generation.members[rank]!;
      accumulator.begin(range);
      for (let m = 0; m < range.numMicrobatches; m++) {
        accumulator.push(gradients[range.firstMicrobatch + m]!);
      }
      const sum = await collectives.allReduce(step, accumulator.blocks(), numElements);
      return Buffer.from(bytesOf(sum).slice());
    }),
  );
}

function bytesOf({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** The definition of what a transport gives, in scalars. */
function expected(
  { name, precision }: Transport,
  { members }: MeshGeneration,
  gradients: readonly Float32Array[],
): Float32Array {
  const round = roundingOf(precision!);
  if (name !== 'ring' || members.length === 1) return treeSum(gradients, round);
  return ringSum(
    members.map((member) =>
      blocksOf(member).map(({ start, size }) =>
        treeSum(gradients.slice(start, start + size), round),
      ),
    ),
    round,
  );
}

const roundingOf = (precision: SumPrecision) =>
  precision === 'float32' ? Math.fround : (value: number) => bfloat16Of(Math.fround(value));

for (const transport of TRANSPORTS) {
  const { name, precision } = transport;
  test(`${name} in ${precision} gives the bits of its definition on 1 to 8 workers, over steps and generations`, async () => {
    for (const worldSize of [1, 2, 3, 4, 5, 8]) {
      await withWorkers(worldSize, transport, async (workers, generationOf) => {
        for (const [index, numMicrobatches] of [1, 2, 8].entries()) {
          const generation = generationOf(index + 1, numMicrobatches);
          await Promise.all(workers.map(({ collectives }) => collectives.configure(generation)));
          for (const step of [1, 2]) {
            const gradients = Array.from({ length: numMicrobatches }, (_, m) =>
              gradientOf(step, m, numElementsOf(worldSize)),
            );
            const wanted = Buffer.from(bytesOf(expected(transport, generation, gradients)));
            for (const [rank, sum] of (
              await reduce(workers, generation, step, gradients)
            ).entries()) {
              const where = `${worldSize} workers, ${numMicrobatches} microbatches, rank ${rank}`;
              assert.ok(sum.equals(wanted), where);
              const used = workers[rank]!.collectives.transport;
              assert.equal(used, worldSize === 1 ? 'alone' : name, where);
            }
          }
        }
      });
    }
  });
}

test(
  'what a worker of an older generation writes reaches nobody',
  { skip: !canShare },
  async () => {
    const numElements = numElementsOf(2);
    await withWorkers(2, { name: 'shared memory' }, async (workers, generationOf) => {
      const gradients = [gradientOf(1, 0, numElements), gradientOf(1, 1, numElements)];
      const first = generationOf(1, 2);
      await Promise.all(workers.map(({ collectives }) => collectives.configure(first)));
      await reduce(workers, first, 1, gradients);
      // The window of a worker that was stopped in the middle of a sum and does not know that it was left behind.
      const { descriptor } = workers[0]!.memory.shared!;
      const stale = workers[1]!.memory.mapWindow(descriptor, {
        ...{ offset: 0, numElements, writable: true },
      })!;
      const kept = stale.slice();

      const second = generationOf(2, 2);
      await workers[0]!.collectives.configure({
        ...{ number: 2, members: [{ ...second.members[0]!, numMicrobatches: 2 }] },
      });
      stale.fill(666);
      const { accumulator, collectives } = workers[0]!;
      accumulator.begin({ firstMicrobatch: 0, numMicrobatches: 2 });
      for (const gradient of gradients) accumulator.push(gradient);
      stale.fill(666);
      const sum = await collectives.allReduce(1, accumulator.blocks());
      assert.ok(Buffer.from(bytesOf(sum)).equals(bytesOf(treeSum(gradients))));
      assert.notDeepEqual([...kept.subarray(0, 8)], [...stale.subarray(0, 8)], 'it did write');
    });
  },
);

test(
  'shared memory has no name, and is gone when the workers have closed',
  { skip: !canShare },
  async () => {
    const open = (): number =>
      readdirSync('/proc/self/fd').filter((fd) => {
        try {
          return readlinkSync(`/proc/self/fd/${fd}`).includes('videoloom-gradients');
        } catch {
          return false;
        }
      }).length;
    // Others use that folder too.
    const named = (): string[] =>
      readdirSync('/dev/shm').filter((name) => name.includes('videoloom'));
    const files = named();
    await withWorkers(3, { name: 'shared memory' }, async (workers, generationOf) => {
      for (const number of [1, 2, 3]) {
        const generation = generationOf(number, 4);
        await Promise.all(workers.map(({ collectives }) => collectives.configure(generation)));
        const gradients = Array.from({ length: 4 }, (_, m) => gradientOf(1, m, numElementsOf(3)));
        await reduce(workers, generation, 1, gradients);
        assert.ok(open() <= 3 * 3, `${open()} are open`); // each its own, and two of the others
      }
      assert.deepEqual(named(), files);
    });
    assert.equal(open(), 0);
  },
);

test(
  'one worker that may not share is enough for all to use sockets',
  { skip: !canShare },
  async () => {
    const collectives = await Promise.all(
      [true, false].map((sharedMemory, rank) =>
        openCollectives({
          ...{ listenAddress: '127.0.0.1:0', runId: 'run', workerId: `w${rank}` },
          ...{ timeoutMs: TIMEOUT_MS, sharedMemory },
        }),
      ),
    );
    const generation: MeshGeneration = {
      number: 1,
      members: collectives.map(({ address }, rank) => ({
        ...{ rank, workerId: `w${rank}`, tensorAddress: address },
        ...microbatchRange(rank, 2, 2),
      })),
    };
    await Promise.all(collectives.map((it) => it.configure(generation)));
    const results = await Promise.all(
      collectives.map((it, rank) =>
        it.allReduce(1, [{ start: rank, size: 1, sum: Float32Array.of(rank + 1, 2) }]),
      ),
    );
    assert.deepEqual(results, [Float32Array.of(3, 4), Float32Array.of(3, 4)]);
    assert.deepEqual(
      collectives.map(({ transport }) => transport),
      ['tree', 'tree'],
    );
    await Promise.all(collectives.map((it) => it.close()));
  },
);

test('parts of one vector are gathered where they belong, larger than a frame and empty ones too', async () => {
  await withWorkers(3, { name: 'tree' }, async (workers, generationOf) => {
    await Promise.all(workers.map(({ collectives }) => collectives.configure(generationOf(1, 4))));
    const parts = [
      { start: 0, end: 700_001 },
      { start: 700_001, end: 700_001 },
      { start: 700_001, end: 700_011 },
    ];
    const whole = gradientOf(3, 1, 700_011);
    const vectors = await Promise.all(
      workers.map(async ({ collectives }, rank) => {
        const vector = new Float32Array(whole.length);
        const { start, end } = parts[rank]!;
        vector.set(whole.subarray(start, end), start);
        await collectives.allGatherInto(1, 'rows', vector, parts);
        return vector;
      }),
    );
    for (const vector of vectors) assert.ok(Buffer.from(bytesOf(vector)).equals(bytesOf(whole)));
    const gathers = workers.map(({ collectives }, rank) =>
      collectives.allGatherInto(2, 'rows', new Float32Array(9), [
        { start: 0, end: 4 + rank },
        { start: 4 + rank, end: 9 },
        { start: 9, end: 9 },
      ]),
    );
    for (const gather of gathers) gather.catch(() => undefined);
    await assert.rejects(gathers[0]!, { code: 'COLLECTIVE_MISMATCH' });
  });
});
