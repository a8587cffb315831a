import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { openEngine, type Engine } from '../backend/engine.ts';
import { adamW, adamWScalars, initAdamW } from '../optim/adamw.ts';
import { readState, stateSizes, type TrainingState } from '../state.ts';
import { openFileWriter, type FileWriter } from './file-writer.ts';
import { decodeSafetensors, type TensorData } from './format.ts';
import { saveCheckpointPart, shareOf } from './save.ts';
import { prepareSnapshots, takeSnapshot } from './snapshot.ts';

const OPTIMIZER = {
  ...{ learningRate: 0.01, warmupSteps: 0, finalFraction: 1, beta1: 0.9, beta2: 0.98 },
  ...{ epsilon: 1e-8, weightDecay: 0.05, clipNorm: 1 },
};
type Params = { readonly kernel: tf.Tensor; readonly bias: tf.Tensor };

let engine: Engine;
let writer: FileWriter;
const dir = await temporaryFolder('snapshot');
before(async () => {
  engine = await openEngine({ engine: 'xla', cacheDir: userCacheDir(process.env) });
  writer = openFileWriter();
});
after(async () => {
  await writer.close();
  engine.close();
});

function openTraining() {
  const values = (length: number, scale: number): Float32Array =>
    Float32Array.from({ length }, (_, i) => Math.sin(i * 12.9898) * scale);
  const params: Params = {
    kernel: engine.upload(values(700_000, 1), [1000, 700]),
    bias: engine.upload(values(700, 1), [700]),
  };
  const update = engine.compile(
    (
      params: Params,
      state: ReturnType<typeof initAdamW<Params>>,
      gradient: tf.Tensor,
      scalars: tf.Tensor,
    ) => adamW(OPTIMIZER, { params, state, gradient, scalars, decays: () => true }),
    { name: 'update', donate: [0, 1, 2, 3] },
  );
  const given = (step: number, { params, optimizer }: TrainingState<Params>) => {
    const gradient = values(700_700, 1 / step);
    const scalars = adamWScalars(OPTIMIZER, { step, learningRate: 0.01, gradientScale: 0.5 });
    return [
      params,
      optimizer,
      engine.upload(gradient, [gradient.length]),
      engine.upload(scalars, [scalars.length]),
    ] as const;
  };
  return {
    state: { step: 0, params, optimizer: initAdamW(params) } as TrainingState<Params>,
    prepare: async (state: TrainingState<Params>) => {
      const [, ...rest] = given(1, state);
      await prepareSnapshots([state.params.kernel], () => update.lower(state.params, ...rest));
    },
    async step(state: TrainingState<Params>): Promise<TrainingState<Params>> {
      const step = state.step + 1;
      const next = await update(...given(step, state));
      return { step, params: next.params, optimizer: next.state };
    },
  };
}

const bytes = (tensors: ReadonlyMap<string, TensorData>): Map<string, string> =>
  new Map([...tensors].map(([name, { data }]) => [name, Buffer.from(data).toString('base64')]));

test('a snapshot holds what the state was, is written while training goes on, and changes no bit of it', async () => {
  const plain = openTraining();
  let state = plain.state;
  for (let step = 0; step < 4; step++) state = await plain.step(state);
  const undisturbed = bytes(await readState(state));

  const training = openTraining();
  state = training.state;
  await training.prepare(state);
  for (let step = 0; step < 2; step++) state = await training.step(state);
  const expected = await readState(state);
  const sizes = stateSizes(state);
  const numTensors = tf.memory().numTensors;
  const snapshot = await takeSnapshot(engine, state, shareOf(sizes, 0, 1));
  const old = await Promise.all(
    [...snapshot.tensors.values()].map(async ({ data }) =>
      data instanceof Uint8Array ? false : data.load(),
    ),
  );
  assert.ok(
    old.every((piece) => piece !== false && 'address' in piece),
    'nothing is copied',
  );
  const saving = saveCheckpointPart(
    { dir, rank: 0, worldSize: 1, tensors: snapshot.tensors, sizes },
    writer,
  );
  // The first must not write over what is held, the second is in place again.
  for (let step = 0; step < 2; step++) state = await training.step(state);
  const files = await saving;
  snapshot.release();
  assert.equal(tf.memory().numTensors, numTensors);

  const saved = new Map<string, TensorData>();
  for (const { name } of files.filter((file) => file.name.endsWith('.safetensors'))) {
    const { tensors } = decodeSafetensors(await readFile(join(dir, name)));
    for (const [path, tensor] of tensors) saved.set(path, tensor);
  }
  assert.deepEqual([...bytes(saved)].sort(), [...bytes(expected)].sort());
  assert.deepEqual(bytes(await readState(state)), undisturbed);
});

test('where another holds an argument that is donated, it stays what it was', async () => {
  const add = engine.compile((a: tf.Tensor, b: tf.Tensor) => tf.add(a, b), {
    name: 'add',
    donate: [0],
  });
  const a = engine.upload(Float32Array.of(1, 2), [2]);
  const b = engine.upload(Float32Array.of(10, 20), [2]);
  const held = a.clone();
  const sum = await add(a, b);
  assert.deepEqual([...(await held.data())], [1, 2]);
  assert.deepEqual([...(await sum.data())], [11, 22]);
  assert.ok(a.isDisposed);
});
