import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { MeshGeneration } from './collectives.ts';
import { openTreeCollectives, type TreeCollectives } from './tree-collectives.ts';
import { GradientAccumulator, microbatchRange } from './tree-sum.ts';
import { VectorMemory } from './vector-memory.ts';

const TIMEOUT_MS = 20_000;

/** Opens `worldSize` collectives in this process and runs `body` with them in one generation. */
async function withWorkers(
  worldSize: number,
  body: (
    workers: TreeCollectives[],
    generationOf: (number: number, numMicrobatches: number) => MeshGeneration,
  ) => Promise<void>,
  options: { checksums?: 'always'; timeoutMs?: number } = {},
): Promise<void> {
  const workers = await Promise.all(
    Array.from({ length: worldSize }, (_, rank) =>
      openTreeCollectives({
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

/** Values over many magnitudes, so that every other order of addition gives other bits. */
function gradientOf(step: number, microbatch: number, numElements: number): Float32Array {
  let state = (step * 7919 + microbatch * 104_729 + 1) >>> 0;
  return Float32Array.from({ length: numElements }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return (state / 2 ** 32 - 0.5) * 2 ** ((state & 31) - 16);
  });
}

/** The definition, in scalars: node(i, size) = fround(node(i, size / 2) + node(i + size / 2, size / 2)). */
function treeSum(gradients: readonly Float32Array[]): Float32Array {
  const node = (element: number, start: number, size: number): number =>
    size === 1
      ? gradients[start]![element]!
      : Math.fround(node(element, start, size / 2) + node(element, start + size / 2, size / 2));
  return Float32Array.from(gradients[0]!, (_, element) => node(element, 0, gradients.length));
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
