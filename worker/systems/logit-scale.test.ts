/** CLIP's temperature: bounded, and free to come back from its bound. */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import type { Engine } from '../backend/engine.ts';
import { registerGradients } from '../backend/gradients.ts';
import { openInitializer } from '../initializer.ts';
import { adamWScalars, initAdamW, type AdamWState } from '../optim/adamw.ts';
import { compilePrograms } from '../programs.ts';
import { openCaptioned } from '../test/captioned-system.ts';
import { openTestSystem } from '../test/open-system.ts';
import { leavesOf, mapTree, type TensorTree } from '../tree.ts';
import type { VideoLanguageSystem } from './system.ts';

const ADAMW = { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weightDecay: 0 };
const LEARNING_RATE = 0.01;
const MOST = Math.fround(Math.log(100));

let engine: Engine;
before(async () => {
  engine = await openCpuEngine();
  registerGradients();
});

/** What either system compares of four rows: each left vector is near the right one of its row, or of the next. */
function comparedRows(isNearOwn: boolean): Record<string, tf.Tensor> {
  const left = tf.eye(4);
  // So short that the softmax is not saturated at a scale of 100.
  const right = tf.mul(tf.gather(left, isNearOwn ? [0, 1, 2, 3] : [1, 2, 3, 0]), 0.01);
  const ids = tf.tensor1d([0, 1, 2, 3]);
  return {
    ...{ clips: left, texts: right, captionIds: ids },
    ...{ image: left, video: left, text: right, textIds: ids, rowWeightIds: tf.ones([4]) },
  };
}

/** The logarithm of the scale after each of some steps of nothing else. */
async function stepsFrom(
  start: number,
  system: VideoLanguageSystem,
  { isNearOwn }: { readonly isNearOwn: boolean },
): Promise<number[]> {
  const programs = compilePrograms(engine, system, ADAMW);
  const drawn = system.init(openInitializer(3)) as Record<string, TensorTree>;
  let params: TensorTree = { ...drawn, logitScale: tf.scalar(start) };
  let optimizer: AdamWState<TensorTree> = initAdamW(params);
  const scales = tf.fill([Object.keys(system.objectives).length], 0.25);
  const after: number[] = [];
  for (let step = 1; step <= 4; step++) {
    const { direct } = await programs.contrast!.compare(
      params,
      {},
      comparedRows(isNearOwn),
      scales,
    );
    const gradient = mapTree(params, (tensor) => tf.zeros(tensor.shape)) as typeof drawn;
    const flat = leavesOf({ ...gradient, logitScale: direct['logitScale']! });
    const scalars = adamWScalars(ADAMW, { step, learningRate: LEARNING_RATE, gradientScale: 1 });
    const next: { readonly params: TensorTree; readonly state: AdamWState<TensorTree> } =
      await programs.update(
        params,
        optimizer,
        tf.concat(flat.map(([, tensor]) => tf.reshape(tensor, [-1]))),
        tf.tensor1d(scalars),
      );
    ({ params, state: optimizer } = next);
    after.push((params as { logitScale: tf.Tensor }).logitScale.dataSync()[0]!);
  }
  return after;
}

const opened = {
  clip: () => openCaptioned('clip', { preset: 'tiny' }),
  bind: () => openTestSystem('video-llava', 'bind', []),
};

for (const [name, open] of Object.entries(opened)) {
  test(`${name}: the scale goes no higher than 100, and comes down from there`, async () => {
    const { system } = await open();
    const risen = await stepsFrom(MOST - 1.5 * LEARNING_RATE, system, { isNearOwn: true });
    assert.ok(risen[0]! < MOST, String(risen));
    assert.deepEqual(risen.slice(1), [MOST, MOST, MOST]);
    // Of a constant sign, every step of Adam is the learning rate.
    const fallen = await stepsFrom(MOST, system, { isNearOwn: false });
    for (const [i, scale] of fallen.entries())
      assert.ok(Math.abs(scale - (MOST - (i + 1) * LEARNING_RATE)) < 1e-3, String(fallen));
    // Some released weights are a little above.
    const begun = await stepsFrom(MOST + 0.2, system, { isNearOwn: false });
    assert.equal(begun[0], MOST);
    assert.ok(begun[1]! < MOST, String(begun));
  });
}
