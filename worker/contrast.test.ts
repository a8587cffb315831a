import assert from 'node:assert/strict';
import { platform } from 'node:os';
import { after, before, describe, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openRng } from '../proto/random.ts';
import { userCacheDir } from '../proto/user-cache.mjs';
import { openEngine, type Engine } from './backend/engine.ts';
import { uploadBatch } from './batches.ts';
import { compareGlobalBatch } from './contrast.ts';
import { l2Normalize } from './layers/normalize.ts';
import { infoNceSums } from './losses/contrastive.ts';
import type { MeshGeneration } from './parallel/collectives.ts';
import { openCollectives, type CollectivesOptions } from './parallel/mesh-collectives.ts';
import { GradientAccumulator, microbatchRange } from './parallel/tree-sum.ts';
import { compilePrograms, type Programs } from './programs.ts';
import type { HostBatch } from './systems/system.ts';
import { numElements } from './tree.ts';

const SEED = 11;
const [MICROBATCHES, ROWS, INPUT, WIDTH] = [8, 3, 6, 4];

/** A tower of one layer on each side, and a temperature that the comparison alone uses. */
type Towers = Readonly<Record<'left' | 'right' | 'logScale', tf.Tensor>>;

const TRANSPORTS: Record<string, Partial<CollectivesOptions>> = {
  ...(platform() === 'linux' ? { 'shared memory': {} } : {}),
  tree: { sharedMemory: false, localSockets: false },
};

describe('losses over the global batch', () => {
  let engine: Engine;
  let programs: Programs<Towers>;
  let params: Towers;
  const rng = openRng(SEED, 'towers');
  const normals = (length: number): Float32Array =>
    Float32Array.from({ length }, () => rng.normal());
  const batches = Array.from({ length: MICROBATCHES }, (): HostBatch => ({
    arrays: {
      left: { data: normals(ROWS * INPUT), shape: [ROWS, INPUT] },
      right: { data: normals(ROWS * INPUT), shape: [ROWS, INPUT] },
      rowIds: { data: Float32Array.from({ length: ROWS }, () => rng.integer(20)), shape: [ROWS] },
    },
    counts: { contrastive: ROWS },
    numTokens: 0,
  }));
  const kernels = { left: normals(INPUT * WIDTH), right: normals(INPUT * WIDTH) };

  before(async () => {
    console.log(`seed ${SEED}`);
    engine = await openEngine({ engine: 'xla', cacheDir: userCacheDir(process.env) });
    params = {
      left: engine.upload(kernels.left, [INPUT, WIDTH]),
      right: engine.upload(kernels.right, [INPUT, WIDTH]),
      logScale: engine.upload(Float32Array.of(1), []),
    };
    const tower = (inputs: tf.Tensor, kernel: tf.Tensor): tf.Tensor =>
      l2Normalize(tf.matMul(inputs, kernel));
    programs = compilePrograms<Towers>(
      engine,
      {
        name: 'towers',
        objectives: { contrastive: 1 },
        decays: () => false,
        sums: () => ({}),
        contrast: {
          objectives: ['contrastive'],
          parameters: ['logScale'],
          embed({ left, right }, _frozen, batch) {
            const { left: a, right: b, rowIds } = batch as Record<string, tf.Tensor>;
            return { left: tower(a!, left), right: tower(b!, right), rowIds: rowIds! };
          },
          sums({ logScale }, { left, right, rowIds }) {
            const pairs = { left: left!, right: right!, groupIds: rowIds! };
            return { contrastive: infoNceSums(pairs, tf.exp(logScale)) };
          },
        },
      },
      { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0 },
    );
  });
  after(() => {
    engine.close();
  });

  /** Gradient and sums of the global batch on each of `worldSize` workers. */
  async function stepOn(
    worldSize: number,
    microbatches: readonly HostBatch[],
    options: Partial<CollectivesOptions>,
  ): Promise<{ gradient: Float32Array; sums: number[] }[]> {
    const size = numElements(params);
    const workers = await Promise.all(
      Array.from({ length: worldSize }, async (_, rank) => {
        const collectives = await openCollectives({
          ...{ listenAddress: '127.0.0.1:0', runId: 'run', workerId: `w${rank}` },
          ...{ timeoutMs: 30_000, ...options },
        });
        return { collectives, memory: collectives.memoryFor(size, MICROBATCHES) };
      }),
    );
    const generation: MeshGeneration = {
      number: 1,
      members: workers.map(({ collectives: { address } }, rank) => ({
        ...{ rank, workerId: `w${rank}`, tensorAddress: address },
        ...microbatchRange(rank, worldSize, microbatches.length),
      })),
    };
    const scales = Float32Array.of(1 / (microbatches.length * batches[0]!.counts['contrastive']!));
    try {
      return await Promise.all(
        workers.map(async ({ collectives, memory }, rank) => {
          await collectives.configure(generation);
          const range = generation.members[rank]!;
          const own = microbatches
            .map((batch, index) => ({ index, batch }))
            .slice(range.firstMicrobatch, range.firstMicrobatch + range.numMicrobatches);
          const contrast = await compareGlobalBatch(
            programs.contrast!,
            { params, frozen: {}, microbatches: own },
            { engine, collectives, members: generation.members, step: 1, objectives: [0], scales },
          );
          const accumulator = new GradientAccumulator(size, memory, options.precision);
          accumulator.begin(range);
          const ownSums = new Float64Array(2 * microbatches.length);
          for (const { index, batch } of own) {
            const scaling = engine.upload(scales, [1]);
            const result = await programs.gradient(
              params,
              {},
              uploadBatch(engine, batch),
              scaling,
              contrast.cotangentsOf(index),
            );
            const gradient = (await programs.readGradient(result.gradient)).slice();
            const sums = (await result.sums.data()).slice();
            if (index === 0) contrast.addTo(gradient, sums);
            accumulator.push(gradient);
            ownSums.set(sums, 2 * index);
          }
          const gradient = await collectives.allReduce(1, accumulator.blocks(), size);
          const all = await collectives.allGather(1, 'sums', ownSums);
          const total = [0, 1].map((which) =>
            all.flatMap((sums) => [...sums]).reduce((a, b, i) => (i % 2 === which ? a + b : a), 0),
          );
          return { gradient: gradient.slice(), sums: total };
        }),
      );
    } finally {
      await Promise.all(workers.map(({ collectives }) => collectives.close()));
    }
  }

  for (const precision of ['float32', 'bfloat16'] as const) {
    test(`have one gradient in ${precision}, bit by bit, on 1, 2, 3 and 4 workers by each transport`, async () => {
      const [alone] = await stepOn(1, batches, { precision });
      assert.ok(alone!.gradient.some((value) => value !== 0));
      for (const [name, options] of Object.entries(TRANSPORTS)) {
        for (const worldSize of [2, 3, 4]) {
          for (const result of await stepOn(worldSize, batches, { precision, ...options })) {
            assert.deepEqual(result, alone, `${name}, ${worldSize} workers`);
          }
        }
      }
    });
  }

  test('have the gradient of the whole batch at once', async () => {
    const whole = (name: 'left' | 'right'): tf.Tensor2D =>
      tf.concat(batches.map(({ arrays }) => tf.tensor2d(arrays[name]!.data, [ROWS, INPUT])));
    const ids = tf.concat(batches.map(({ arrays }) => tf.tensor1d(arrays['rowIds']!.data)));
    const loss = (left: tf.Tensor, right: tf.Tensor, logScale: tf.Tensor): tf.Scalar => {
      const tower = (name: 'left' | 'right', kernel: tf.Tensor): tf.Tensor =>
        l2Normalize(tf.matMul(whole(name), kernel));
      const pairs = { left: tower('left', left), right: tower('right', right), groupIds: ids };
      const { lossSum } = infoNceSums(pairs, tf.exp(logScale));
      return tf.div(lossSum, MICROBATCHES * ROWS);
    };
    const gradients = tf.grads(loss)([...[params.left, params.right, params.logScale]]);
    const wanted = await Promise.all(gradients.map((tensor) => tensor.data()));
    const [{ gradient } = { gradient: undefined }] = await stepOn(1, batches, {});
    let at = 0;
    for (const [path, values] of [
      ['left', wanted[0]!],
      ['right', wanted[1]!],
      ['logScale', wanted[2]!],
    ] as const) {
      const offset = offsetOf(path);
      for (const [i, value] of values.entries()) {
        const off = Math.abs(gradient![offset + i]! - value);
        assert.ok(off < 1e-5, `${path}[${i}] is off by ${off}`); // float32
        at++;
      }
    }
    assert.equal(at, gradient!.length);
  });

  function offsetOf(path: keyof Towers): number {
    let offset = 0;
    for (const [name, { size }] of Object.entries(params) as [keyof Towers, tf.Tensor][]) {
      if (name === path) return offset;
      offset += size;
    }
    throw new Error(path);
  }
});
