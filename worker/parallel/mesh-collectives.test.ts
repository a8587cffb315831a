import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { MeshGeneration } from './collectives.ts';
import { gradientOf, treeSum } from './test/gradients.ts';
import { openCollectives, type MeshCollectives } from './mesh-collectives.ts';
import { GradientAccumulator, microbatchRange } from './tree-sum.ts';
import { VectorMemory } from './vector-memory.ts';

const TIMEOUT_MS = 20_000;

/** Opens `worldSize` collectives in this process and runs `body` with them in one generation. */
async function withWorkers(
  worldSize: number,
  body: (
    workers: MeshCollectives[],
    generationOf: (number: number, numMicrobatches: number) => MeshGeneration,
  ) => Promise<void>,
  options: { checksums?: 'always'; timeoutMs?: number } = {},
): Promise<void> {
  const workers = await Promise.all(
    Array.from({ length: worldSize }, (_, rank) =>
      openCollectives({
        ...{ listenAddress: '127.0.0.1:0', runId: 'run', workerId: `w${rank}` },
        ...{ timeoutMs: TIMEOUT_MS, ...options },
      }),
    ),
  );
  const generationOf = (number: number, numMicrobatches: number): MeshGeneration => ({
    number,
    members: workers.map(({ address }, rank) => ({
      ...{ rank, workerId: `w${rank}`, tensorAddress: address },
      ...microbatchRange(rank, worldSize, numMicrobatches),
    })),
  });
  try {
    await body(workers, generationOf);
  } finally {
    await Promise.all(workers.map((worker) => worker.close()));
  }
}

function bitsOf(values: Float32Array): Buffer {
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
}

for (const worldSize of [1, 2, 3, 4, 5, 8]) {
  test(`the sum of 1 to 16 microbatches on ${worldSize} workers has the bits of the scalar tree`, async () => {
    const numElements = 40_007;
    await withWorkers(worldSize, async (workers, generationOf) => {
      for (const [index, numMicrobatches] of [1, 2, 4, 8, 16].entries()) {
        const generation = generationOf(index + 1, numMicrobatches);
        const gradients = Array.from({ length: numMicrobatches }, (_, m) =>
          gradientOf(index, m, numElements),
        );
        const expected = bitsOf(treeSum(gradients));
        const results = await Promise.all(
          workers.map(async (worker, rank) => {
            await worker.configure(generation);
            const accumulator = new GradientAccumulator(numElements, new VectorMemory(1 << 20));
            const range = generation.members[rank]!;
            accumulator.begin(range);
            for (let m = 0; m < range.numMicrobatches; m++) {
              accumulator.push(gradients[range.firstMicrobatch + m]!);
            }
            return worker.allReduce(index, accumulator.blocks(), numElements);
          }),
        );
        for (const result of results) assert.ok(bitsOf(result).equals(expected));
      }
    });
  });
}

test('infinities, NaN, signed zeros and denormals add up as IEEE 754 says, in whatever memory', () => {
  const special = [
    0,
    -0,
    1,
    -1,
    Infinity,
    -Infinity,
    NaN,
    1e-45,
    -1e-45,
    1.17549435e-38,
    3.4028235e38,
    1e-40,
  ];
  const pairs = special.flatMap((a) => special.map((b) => [a, b] as const));
  const left = Float32Array.from(pairs, ([a]) => a);
  const right = Float32Array.from(pairs, ([, b]) => b);
  const expected = Array.from(left, (a, i) => Math.fround(a + right[i]!));
  const memory = new VectorMemory(1 << 16);
  const inside = (values: Float32Array): Float32Array => {
    const vector = memory.allocate(values.length);
    vector.set(values);
    return vector;
  };
  const [target, outside] = [memory.allocate(left.length), new Float32Array(left.length)];
  const results = [
    [target, inside(left), inside(right)],
    [outside, left, right],
    [target, left, inside(right)],
    [target, inside(left), right],
    [outside, inside(left), inside(right)],
  ] as const;
  for (const [sum, a, b] of results) {
    sum.fill(7);
    memory.add(sum, a, b);
    assert.deepEqual([...sum], expected);
  }
});

test('a vector of any length is added whole and nothing after it', () => {
  const memory = new VectorMemory(1 << 20);
  for (const length of [0, 1, 15, 16, 17, 1000, 16_384, 40_000]) {
    const [a, b, room] = [
      memory.allocate(length),
      new Float32Array(length),
      new Float32Array(length + 1),
    ];
    a.fill(1.5);
    b.fill(2.25);
    room.fill(9);
    memory.add(room.subarray(0, length), a, b);
    assert.ok(room.subarray(0, length).every((value) => value === 3.75));
    assert.equal(room[length], 9);
  }
});

test('the sum goes on through steps and generations, with checksums, on workers without a microbatch too', async () => {
  await withWorkers(
    4,
    async (workers, generationOf) => {
      for (const [number, numMicrobatches, numElements] of [
        [1, 4, 1000],
        [4, 2, 333],
        [5, 8, 70_001],
      ] as const) {
        const generation = generationOf(number, numMicrobatches);
        await Promise.all(workers.map((worker) => worker.configure(generation)));
        for (let step = 1; step <= 3; step++) {
          const gradients = Array.from({ length: numMicrobatches }, (_, m) =>
            gradientOf(step, m, numElements),
          );
          const results = await Promise.all(
            workers.map((worker, rank) => {
              const accumulator = new GradientAccumulator(numElements, new VectorMemory(0));
              const range = generation.members[rank]!;
              accumulator.begin(range);
              for (let m = 0; m < range.numMicrobatches; m++)
                accumulator.push(gradients[range.firstMicrobatch + m]!);
              return worker.allReduce(step, accumulator.blocks(), numElements);
            }),
          );
          for (const result of results)
            assert.ok(bitsOf(result).equals(bitsOf(treeSum(gradients))));
        }
      }
    },
    { checksums: 'always' },
  );
});

test('operations that are started together run one after the other', async () => {
  await withWorkers(3, async (workers, generationOf) => {
    const generation = generationOf(1, 3);
    await Promise.all(workers.map((worker) => worker.configure(generation)));
    const results = await Promise.all(
      workers.map((worker, rank) =>
        Promise.all([
          worker.allGather(1, 'counts', Float64Array.of(rank, 0.1)),
          worker.barrier(1, 'ready'),
          worker.allGather(
            1,
            'names',
            Float64Array.from({ length: rank }, () => rank),
          ),
        ]),
      ),
    );
    for (const [counts, , names] of results) {
      assert.deepEqual(counts, [
        Float64Array.of(0, 0.1),
        Float64Array.of(1, 0.1),
        Float64Array.of(2, 0.1),
      ]);
      assert.deepEqual(names, [new Float64Array(0), Float64Array.of(1), Float64Array.of(2, 2)]);
    }
  });
});

test('a worker that comes late to a barrier is named', async () => {
  await withWorkers(
    3,
    async (workers, generationOf) => {
      const generation = generationOf(1, 3);
      await Promise.all(workers.map((worker) => worker.configure(generation)));
      const waits = [0, 1].map((rank) => workers[rank]!.barrier(5, 'step'));
      const namesTheLate = (error: Error & { code?: string; rank?: number }): boolean => {
        assert.equal(error.code, 'PEER_TIMEOUT');
        assert.equal(error.rank, 2);
        assert.match(error.message, /"step" of step 5 .* waiting for rank 2 \(worker w2 at/);
        return true;
      };
      // Both at once: one that fails while the other is awaited has nobody who listens.
      await Promise.all(waits.map((wait) => assert.rejects(wait, namesTheLate)));
    },
    { timeoutMs: 2000 },
  );
});

test('a process that was itself busy for longer than the limit does not blame its peers', async () => {
  await withWorkers(
    2,
    async (workers, generationOf) => {
      await Promise.all(workers.map((worker) => worker.configure(generationOf(1, 2))));
      const waits = workers.map((worker) => worker.barrier(1, 'step'));
      const end = performance.now() + 2000;
      while (performance.now() < end);
      await Promise.all(waits);
    },
    { timeoutMs: 1000 },
  );
});

test('another generation ends what is pending, and the next works at once', async () => {
  await withWorkers(2, async (workers, generationOf) => {
    const [first, second] = workers as [MeshCollectives, MeshCollectives];
    await Promise.all(workers.map((worker) => worker.configure(generationOf(1, 2))));
    const pending = first.allReduce(1, [{ start: 0, size: 1, sum: new Float32Array(1000) }]);
    const queued = first.barrier(1, 'after');
    pending.catch(() => undefined);
    queued.catch(() => undefined);
    const configured = first.configure(generationOf(2, 2)); // the other one is told later
    await assert.rejects(pending, { code: 'GENERATION_CHANGED' });
    await assert.rejects(queued, { code: 'GENERATION_CHANGED' });
    await Promise.all([configured, second.configure(generationOf(2, 2))]);
    await Promise.all(workers.map((worker) => worker.barrier(1, 'again')));
    first.abort('told to');
    await assert.rejects(first.barrier(2, 'x'), { code: 'GENERATION_CHANGED', message: 'told to' });
    await assert.rejects(second.barrier(2, 'x'), { code: 'PEER_LOST', rank: 0 });
  });
});

test('workers that run different operations are told so', async () => {
  await withWorkers(2, async (workers, generationOf) => {
    await Promise.all(workers.map((worker) => worker.configure(generationOf(1, 2))));
    const [left, right] = [workers[0]!.barrier(1, 'evaluate'), workers[1]!.barrier(1, 'train')];
    left.catch(() => undefined);
    right.catch(() => undefined);
    await assert.rejects(left, { code: 'COLLECTIVE_MISMATCH', rank: 1 });
    await assert.rejects(right, { code: 'COLLECTIVE_MISMATCH', rank: 0 });
  });
});

test('models of different size are not added', async () => {
  await withWorkers(2, async (workers, generationOf) => {
    await Promise.all(workers.map((worker) => worker.configure(generationOf(1, 2))));
    const results = [999, 1001].map((length, rank) =>
      workers[rank]!.allReduce(1, [{ start: rank, size: 1, sum: new Float32Array(length) }]),
    );
    for (const result of results) result.catch(() => undefined);
    for (const result of results) await assert.rejects(result, { code: 'COLLECTIVE_MISMATCH' });
  });
});
