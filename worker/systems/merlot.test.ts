import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openRng } from '../../proto/random.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { uploadBatch } from '../batches.ts';
import { openInitializer } from '../initializer.ts';
import { attendedPositions } from '../tokens/attended-mask.ts';
import { CAPTIONED, captionedRows, openCaptioned } from '../test/captioned-system.ts';

const OVERRIDES = [
  'data.frameSize=8',
  'model.patchSize=4',
  'model.vision.width=8',
  'model.joint.width=8',
];

test('frames whose order is asked say nothing of their places, and no constant answer is right', async () => {
  const { system, config } = await openCaptioned('merlot', {
    preset: 'tiny',
    overrides: OVERRIDES,
  });
  const task = system.heldOutTasks.find(({ name }) => name === 'frame-order-accuracy')!;
  const batch = task.assemble(captionedRows(config));
  const { data: moments } = batch.arrays['moments']!;
  const orders = CAPTIONED.map((_, row) => [...moments.slice(4 * row, 4 * row + 4)]);
  for (const order of orders) assert.deepEqual([...order].sort(), [4, 5, 6, 7]);
  assert.ok(new Set(orders.map(String)).size > 4);
  const labels = task.labels(batch);
  assert.equal(labels.length, CAPTIONED.length * 6);
  const numBefore = labels.filter((label) => label === 1).length;
  assert.ok(numBefore > 12 && numBefore < 36, `${numBefore}`);
});

test('places that show one and the same frame have no order', async () => {
  const { system, config } = await openCaptioned('merlot', {
    preset: 'tiny',
    overrides: OVERRIDES,
  });
  // The clip's second frame stands for those that it has not.
  const rows = captionedRows(config).map((row) => ({ ...row, timesSeconds: [0.5, 1.5, 1.5, 1.5] }));
  const task = system.heldOutTasks.find(({ name }) => name === 'frame-order-accuracy')!;
  assert.equal(task.labels(task.assemble(rows)).length, CAPTIONED.length * 3);
  const { data } = system.assemble(rows).arrays['pairWeights']!;
  for (let group = 0; group < CAPTIONED.length; group++) {
    for (let i = 0; i < 4; i++) {
      for (let j = 0; j < 4; j++) {
        // Frames with frames, then frames with words, of which each frame's own may be asked.
        const [frames, words] = [0, 1].map((kind) => data[((group * 2 + kind) * 4 + i) * 4 + j]!);
        const isOne = i > 0 && j > 0;
        assert.equal(frames !== 0, i !== j && !isOne, `frames ${i} ${j}`);
        assert.equal(words !== 0, i === j || !isOne, `words ${i} ${j}`);
      }
    }
  }
});

test('where words are blanked, the order of frames does not depend on them', async () => {
  const engine = await openCpuEngine();
  const { system, config } = await openCaptioned('merlot', {
    preset: 'tiny',
    overrides: OVERRIDES,
  });
  const params = system.init(openInitializer(3));
  const others = CAPTIONED.map((sample) => ({
    ...sample,
    cues: [...sample.cues].reverse().map((cue, i) => ({ ...sample.cues[i]!, text: cue.text })),
  }));
  for (const [name, isSame] of [
    ['frame-order-blind-accuracy', true],
    ['frame-order-accuracy', false],
  ] as const) {
    const task = system.heldOutTasks.find((each) => each.name === name)!;
    const losses = await Promise.all(
      [CAPTIONED, others].map(async (samples) => {
        const batch = uploadBatch(engine, task.assemble(captionedRows(config, samples)));
        return (await system.sums(params, {}, batch)['frame-order']!.lossSum.data())[0]!;
      }),
    );
    assert.equal(losses[0] === losses[1], isSame, `${name} ${losses.join()}`);
  }
});

test('training hides a fifth of the words, never a start, and counts what it hides', async () => {
  const engine = await openCpuEngine();
  const { system, config } = await openCaptioned('merlot', {
    preset: 'tiny',
    overrides: OVERRIDES,
  });
  const batch = system.assemble(captionedRows(config));
  const { arrays, counts } = batch;
  const candidates = arrays['candidateWeights']!;
  const numWords = [...candidates.data].filter((one) => one === 1).length;
  assert.ok(Math.abs(counts['masked-token']! / numWords - 0.2) < 0.05);
  const [groups, length] = candidates.shape as [number, number];
  for (let g = 0; g < groups; g++) {
    for (let start = 0; start < length; start += config.model['segmentTokens'] as number)
      assert.equal(candidates.data[g * length + start], 0);
  }
  const sums = system.sums(system.init(openInitializer(3)), {}, uploadBatch(engine, batch));
  const [loss] = await sums['masked-token']!.lossSum.data();
  const perWord = loss! / counts['masked-token']!;
  // As nobody has learnt anything yet, about as much as any of so many words.
  assert.ok(Math.abs(perWord - Math.log(config.model['vocabulary'] as number)) < 1, `${perWord}`);
});

test('an evaluation asks as many hidden words as it counts answers', async () => {
  const { system, config } = await openCaptioned('merlot', {
    preset: 'tiny',
    overrides: OVERRIDES,
  });
  const task = system.heldOutTasks.find(({ name }) => name === 'masked-token-accuracy')!;
  const batch = task.assemble(captionedRows(config));
  const numAsked = [...batch.arrays['maskWeights']!.data].filter((weight) => weight === 1).length;
  assert.equal(task.labels(batch).length, numAsked);
  assert.equal(batch.counts['masked-token'], numAsked);
});

test('half of the picks fall on the most attended fifth, and runs stay within candidates', async () => {
  await openCpuEngine();
  const [rows, length] = [400, 40];
  const rng = openRng(9, 'attended');
  const column = (draw: (i: number) => number): tf.Tensor =>
    tf.tensor2d(
      Float32Array.from({ length: rows * length }, (_, i) => draw(i)),
      [rows, length],
    );
  const candidates = column((i) => (i % 8 === 0 ? 0 : 1)); // 35 of 40
  const picked = attendedPositions(
    {
      attention: column((i) => (i % length < 9 ? 2 : 1)), // 7 candidates: a fifth
      candidates,
      draws: column(() => -Math.log(1 - rng.uniform())),
      reachLeft: column(() => 0),
      reachRight: column(() => 0),
    },
    { count: 4 },
  );
  const positions = (await picked.array()) as number[][];
  let numTop = 0;
  for (const row of positions) {
    assert.equal(new Set(row).size, 4);
    for (const position of row) {
      assert.ok(position % 8 !== 0);
      if (position < 9) numTop++;
    }
  }
  const share = numTop / (4 * rows);
  // 0.5 + 0.5 / 5 at the first pick, less as the fifth is used up.
  assert.ok(share > 0.45 && share < 0.62, `${share}`);
});
