import assert from 'node:assert/strict';
import { dirname } from 'node:path';
import { before, test } from 'node:test';
import { openEngine, type LoweredProgram } from '../backend/engine.ts';
import type { MeshAxes } from '../backend/devices.ts';
import { uploadBatch } from '../batches.ts';
import { openInitializer } from '../initializer.ts';
import { sequenceLength } from '../systems/videobert-batch.ts';
import {
  initVideoBert,
  videoBertLogits,
  videoBertSums,
  type VideoBertBatch,
  type VideoBertParams,
} from '../models/videobert.ts';
import { adamWScalars, initAdamW } from '../optim/adamw.ts';
import { parameterShardings, rowSharding, type ShardingRule } from '../parallel/sharding.ts';
import { pluginCacheDir } from '../pjrt/plugin.ts';
import { cpuPlugin } from '../pjrt/test/client.ts';
import { compilePrograms, type Programs } from '../programs.ts';
import { leavesOf, numElements, type TensorTree } from '../tree.ts';
import { testAssembly, testBatch } from './assembly.ts';

/** VideoBERT trained on meshes of CPU devices beside the same steps on one. */
const ASSEMBLY = testAssembly({ textVocabulary: 24 });
const SIZES = {
  width: 32,
  numLayers: 2,
  numHeads: 2,
  mlpRatio: 2,
  textVocabulary: 24,
  visualVocabulary: 8,
  centroidWidth: 8,
  length: sequenceLength(ASSEMBLY),
};
const OBJECTIVES = { 'masked-token': 1, 'masked-frame': 1, alignment: 1 };
const OPTIMIZER = { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weightDecay: 0.05 };
const STEPS = 4;
/** Megatron's: the first product of a pair makes its part of the width, the second adds the parts up. */
const TENSOR_RULES: ShardingRule[] = [
  { path: 'blocks/*/mlpIn', axes: [null, 'tensor'] },
  { path: 'blocks/*/mlpOut', axes: ['tensor', null] },
  { path: 'blocks/*/attention/qkv', axes: [null, 'tensor'] },
  { path: 'blocks/*/attention/output', axes: ['tensor', null] },
];

/** What training gives: loss sums by step, the first gradient by path, and what the compiler says of memory. */
interface Trained {
  readonly losses: readonly number[][];
  readonly gradient: ReadonlyMap<string, Float32Array>;
  readonly memory: Record<'gradient' | 'update', LoweredProgram['memory']>;
}

let alone: Trained;
before(async () => {
  alone = await trainOn({ data: 1 }, []);
});

async function trainOn(mesh: MeshAxes, rules: readonly ShardingRule[]): Promise<Trained> {
  const devices = Object.values(mesh).reduce<number>((n, size) => n * Number(size), 1);
  const engine = await openEngine({
    engine: 'xla',
    pluginPath: await cpuPlugin(),
    cacheDir: dirname(pluginCacheDir(process.env)),
    devices,
    mesh,
    threads: 8,
  });
  try {
    let params = initVideoBert(SIZES, openInitializer(9));
    let optimizer = initAdamW(params);
    const parallel = {
      mesh: { data: null, fsdp: 1, tensor: 1 },
      fsdpMinElements: 64,
      rules,
    };
    const programs: Programs<VideoBertParams> = compilePrograms(
      engine,
      {
        name: 'videobert',
        objectives: OBJECTIVES,
        decays: (path) => path.endsWith('kernel'),
        sums: (own, frozen, batch) => {
          const { centroids } = frozen as { centroids: VideoBertBatch['ids'] };
          const asked = batch as unknown as VideoBertBatch;
          return videoBertSums(videoBertLogits(own, centroids, asked, SIZES), asked);
        },
      },
      OPTIMIZER,
      {
        parameters: parameterShardings(engine.mesh, parallel, leavesOf(params)),
        rows: rowSharding(engine.mesh),
      },
    );
    const centroids = Float32Array.from({ length: 64 }, (_, i) => Math.sin(i));
    const frozen: TensorTree = { centroids: engine.upload(centroids, [8, 8]) };
    const losses: number[][] = [];
    let first: Float32Array | undefined;
    let memory: Trained['memory'] | undefined;
    for (let step = 1; step <= STEPS; step++) {
      const batch = testBatch(ASSEMBLY, { rows: 8, step });
      const inputs = uploadBatch(engine, batch);
      const scales = Object.keys(OBJECTIVES).map((name) => 1 / (batch.counts[name] ?? 1));
      const scaling = engine.upload(Float32Array.from(scales), [3]);
      const { gradient, sums } = await programs.gradient(params, frozen, inputs, scaling, {});
      const flat = await programs.readGradient(gradient);
      losses.push([...(await sums.data())].filter((_, i) => i % 2 === 0));
      const scalars = adamWScalars(OPTIMIZER, { step, learningRate: 1e-3, gradientScale: 1 });
      // By way of the host, as between workers.
      const back = programs.uploadGradient(flat, params);
      if (first === undefined) {
        first = flat;
        const given = [params, optimizer, back, engine.upload(scalars, [4])] as const;
        memory = {
          gradient: (await programs.gradient.lower(params, frozen, inputs, scaling, {}))!.memory,
          update: (await programs.update.lower(...given))!.memory,
        };
      }
      ({ params, state: optimizer } = await programs.update(
        params,
        optimizer,
        back,
        engine.upload(scalars, [4]),
      ));
    }
    let offset = 0;
    const byPath = leavesOf(params).map(([path, { size }]): [string, Float32Array] => {
      offset += size;
      return [path, first!.subarray(offset - size, offset)];
    });
    assert.equal(offset, numElements(params));
    return { losses, gradient: new Map(byPath), memory: memory! };
  } finally {
    engine.close();
  }
}

/** Equal within float32 rounding of sums that are added up in another order. */
function assertSame(trained: Trained): void {
  for (const [path, expected] of alone.gradient) {
    const scale = Math.max(...expected.map(Math.abs), 1e-3);
    const worst = Math.max(
      ...trained.gradient.get(path)!.map((value, i) => Math.abs(value - expected[i]!)),
    );
    assert.ok(worst <= 1e-5 * scale, `${path}: off by ${worst} of ${scale}`);
  }
  for (const [step, expected] of alone.losses.entries()) {
    for (const [k, value] of trained.losses[step]!.entries()) {
      assert.ok(
        Math.abs(value - expected[k]!) <= 1e-4 * expected[k]!,
        `step ${step}, loss ${k}: ${value}, alone ${expected[k]!}`,
      );
    }
  }
}

test('two and four devices that share the rows of a microbatch train as one does', async () => {
  for (const data of [2, 4]) assertSame(await trainOn({ data }, []));
});

test('four devices that share the state too train as one does, each with a quarter of it', async () => {
  const trained = await trainOn({ fsdp: 4 }, []);
  assertSame(trained);
  const { gradient, update } = trained.memory;
  assert.ok(update.argumentBytes <= alone.memory.update.argumentBytes / 3);
  assert.ok(update.outputBytes <= alone.memory.update.outputBytes / 3);
  assert.ok(gradient.argumentBytes <= alone.memory.gradient.argumentBytes / 3);
});

test('devices that compute with parts of the parameters, by rules on paths, train as one does', async () => {
  const trained = await trainOn({ data: 2, tensor: 2 }, TENSOR_RULES);
  assertSame(trained);
  const { update } = trained.memory;
  assert.ok(update.argumentBytes <= 0.7 * alone.memory.update.argumentBytes);
  assertSame(await trainOn({ fsdp: 2, tensor: 2 }, TENSOR_RULES));
});
