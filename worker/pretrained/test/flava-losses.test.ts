/** What FLAVA is trained by, beside transformers' FlavaForPreTraining: the same weights, the same rows. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openRng } from '../../../proto/random.ts';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { openCpuEngine } from '../../backend/cpu-engine.ts';
import { encodeSafetensors } from '../../checkpoint/format.ts';
import { openInitializer } from '../../initializer.ts';
import { infoNceSums } from '../../losses/contrastive.ts';
import {
  flavaImageEmbedding,
  flavaSums,
  flavaTextEmbedding,
  initFlavaTraining,
  type FlavaTrainingSizes,
} from '../../models/flava-training.ts';
import { formulaWeights } from '../../test/formula-weights.ts';
import { flavaPretrainingJson, flavaPretrainingWeights } from '../flava.ts';
import { writeModelFolder } from '../model-folder.ts';
import { runPeer, whyNoPeer } from '../parity/peer.ts';
import { readTensors } from '../parity/reference-tensors.ts';
import { exportTree } from '../weights.ts';

const BLOCKS = {
  numLayers: 2,
  numHeads: 2,
  mlpWidth: 24,
  activation: 'gelu',
  epsilon: 1e-12,
} as const;
const SIZES: FlavaTrainingSizes = {
  image: { ...BLOCKS, width: 16, imageSize: 16, patchSize: 4, channels: 3 },
  text: { ...BLOCKS, width: 16, vocabulary: 20, length: 6, numSegments: 2 },
  joint: { ...BLOCKS, width: 16, numLayers: 1 },
  ...{ embedding: 12, codes: 10 },
};
/** Pairs (the second does not match), pictures alone, texts alone. */
const KINDS = [0, 0, 0, 1, 1, 2, 2];
const MATCHES = [1, 0, 1, 0, 0, 0, 0];
const [ROWS, LENGTH, PATCHES, NO_LABEL] = [KINDS.length, 6, 16, -100];

test('the losses are those of transformers', async (t) => {
  const why = await whyNoPeer();
  if (why !== undefined) {
    t.skip(why);
    return;
  }
  await openCpuEngine();
  const params = formulaWeights(initFlavaTraining(SIZES, openInitializer(1)));
  const rng = openRng(3, 'flava');
  const wholes = (count: number, limit: number): number[] =>
    Array.from({ length: count }, () => rng.integer(limit));
  const pixels = Float32Array.from({ length: ROWS * 16 * 16 * 3 }, () => rng.normal());
  const ids = wholes(ROWS * LENGTH, 20);
  const maskedIds = ids.map((id, i) => (i % 3 === 1 ? 4 : id));
  // The last row is shorter, and nothing is asked at its padding.
  const present = ids.map((_, i) => (i >= ROWS * LENGTH - 2 ? 0 : 1));
  const hidden = Array.from({ length: ROWS * PATCHES }, (_, i) => ((i * 7) % 16 < 5 ? 1 : 0));
  const codes = wholes(ROWS * PATCHES, 10);
  /** Hidden places of each row, as many in each. */
  const placesOf = (isHidden: (at: number) => boolean, length: number): number[] =>
    KINDS.flatMap((_, row) =>
      [...Array(length).keys()].filter((at) => isHidden(row * length + at)),
    );
  const wordPlaces = placesOf((i) => i % 3 === 1, LENGTH); // two a row: LENGTH is a multiple of 3
  const patchPlaces = placesOf((i) => hidden[i] === 1, PATCHES);
  const [numWords, numPatches] = [wordPlaces.length / ROWS, patchPlaces.length / ROWS];
  const at = (values: readonly number[], places: readonly number[], length: number): number[] =>
    places.map((place, i) => values[Math.floor(i / (places.length / ROWS)) * length + place]!);
  const isAsked = (row: number, i: number): boolean => present[row * LENGTH + wordPlaces[i]!] === 1;
  const weights = (count: number, counts: (row: number, i: number) => boolean): tf.Tensor =>
    tf.tensor2d(
      Array.from({ length: ROWS * count }, (_, i) => Number(counts(Math.floor(i / count), i))),
      [ROWS, count],
    );
  const matched = (row: number): boolean => KINDS[row] === 0 && MATCHES[row] === 1;
  const images = tf.tensor4d(pixels, [ROWS, 16, 16, 3]);
  const text = (own: readonly number[]) => ({
    ids: tf.tensor2d([...own], [ROWS, LENGTH], 'int32'),
    segments: tf.zeros([ROWS, LENGTH], 'int32'),
    present: tf.tensor2d(present, [ROWS, LENGTH]),
  });
  const sums = flavaSums(
    params,
    {
      images,
      hiddenPatches: tf.tensor2d(hidden, [ROWS, PATCHES]),
      masked: text(maskedIds),
      patches: {
        positions: tf.tensor2d(patchPlaces, [ROWS, numPatches], 'int32'),
        labels: tf.tensor2d(at(codes, patchPlaces, PATCHES), [ROWS, numPatches], 'int32'),
      },
      words: {
        positions: tf.tensor2d(wordPlaces, [ROWS, numWords], 'int32'),
        labels: tf.tensor2d(at(ids, wordPlaces, LENGTH), [ROWS, numWords], 'int32'),
      },
      patchWeights: {
        alone: weights(numPatches, (row) => KINDS[row] === 1),
        joint: weights(numPatches, matched),
      },
      wordWeights: {
        alone: weights(numWords, (row, i) => KINDS[row] === 2 && isAsked(row, i)),
        joint: weights(numWords, (row, i) => matched(row) && isAsked(row, i)),
      },
      matchLabels: tf.tensor1d(MATCHES, 'int32'),
      matchWeights: tf.tensor1d(KINDS.map((kind) => (kind === 0 ? 1 : 0))),
    },
    SIZES,
  );
  const contrast = infoNceSums(
    {
      left: flavaImageEmbedding(params, images, SIZES),
      right: flavaTextEmbedding(params, text(ids), SIZES),
      groupIds: tf.range(0, ROWS),
      paired: tf.tensor1d(KINDS.map((kind) => (kind === 0 ? 1 : 0))),
    },
    tf.exp(params.logitScale),
  );
  const counted = (row: number): boolean => KINDS[row] === 2;
  const numAsked = wordPlaces.filter((_, i) => {
    const row = Math.floor(i / numWords);
    return counted(row) && isAsked(row, i);
  }).length;
  const found = {
    mim: [sums.mim.lossSum, 2 * numPatches],
    mlm: [sums.mlm.lossSum, numAsked],
    itm: [sums.itm.lossSum, 3],
    mmm_image: [sums['mmm-image'].lossSum, 2 * numPatches],
    mmm_text: [sums['mmm-text'].lossSum, 2 * numWords],
    global_contrastive: [contrast.lossSum, 3],
  } as const;

  const folder = await temporaryFolder('flava');
  await writeModelFolder(folder, {
    config: { ...flavaPretrainingJson(SIZES), torch_dtype: 'float32' },
    tensors: await exportTree(params, flavaPretrainingWeights(SIZES)),
  });
  const labelled = (values: readonly number[], isHidden: (i: number) => boolean): Float32Array =>
    Float32Array.from(values, (value, i) => (isHidden(i) ? value : NO_LABEL));
  const inputs = {
    kinds: [KINDS, [ROWS]],
    matches: [MATCHES, [ROWS]],
    pixels: [pixels, [ROWS, 16, 16, 3]],
    ids: [ids, [ROWS, LENGTH]],
    maskedIds: [maskedIds, [ROWS, LENGTH]],
    present: [present, [ROWS, LENGTH]],
    hidden: [hidden, [ROWS, PATCHES]],
    patchLabels: [labelled(codes, () => true), [ROWS, PATCHES]],
    wordLabels: [labelled(ids, (i) => i % 3 === 1 && present[i] === 1), [ROWS, LENGTH]],
  } as const;
  const tensors = new Map(
    Object.entries(inputs).map(([name, [values, shape]]) => {
      const data = new Uint8Array(Float32Array.from(values).buffer);
      return [name, { dtype: 'F32' as const, shape: [...shape], data }];
    }),
  );
  const [given, made] = [join(folder, 'inputs.safetensors'), join(folder, 'outputs.safetensors')];
  await writeFile(given, encodeSafetensors(tensors));
  await runPeer('flava_losses.py', folder, given, made);
  const wanted = await readTensors(made);
  assert.deepEqual([...wanted.keys()].sort(), Object.keys(found).sort());
  for (const [name, [sum, count]] of Object.entries(found)) {
    const [ours] = await sum.data();
    const [theirs] = await wanted.get(name)!.data();
    const off = Math.abs(ours! / count - theirs!);
    assert.ok(off < 1e-5 * Math.max(1, theirs!), `${name}: ${ours! / count} and ${theirs!}`);
  }
});
