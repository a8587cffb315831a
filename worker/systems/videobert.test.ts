import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { SampleIndex } from '../../video/index/sample-index.ts';
import type { Sample } from '../../video/index/sample.ts';
import { openTokenizer, trainTokenizer } from '../../video/text/tokenizer.ts';
import { fitVisualVocabulary, frameFeatures } from '../../video/visual-words/visual-vocabulary.ts';
import { openRng } from '../../proto/random.ts';
import { resolveConfig } from '../config.ts';
import { blankRows } from '../warm-up.ts';
import { readFile } from 'node:fs/promises';
import type { Row, VideoLanguageSystem } from './system.ts';
import { videoBertSystem } from './videobert.ts';

const SAMPLES: readonly Sample[] = ['a red circle rises', 'a blue star falls'].map(
  (text, file) => ({
    id: String(file),
    media: [{ file, startSeconds: 0, endSeconds: 3 }],
    ...{ text, cues: [], decodeMegapixels: 1 },
  }),
);

/** The tiny recipe's system without any run, and its config; each call opens one that has seen nothing. */
async function open(
  overrides: readonly string[] = [],
  samples = SAMPLES,
): Promise<{ system: VideoLanguageSystem; blank: readonly Row[]; rows: (epoch: number) => Row[] }> {
  const text = await readFile(new URL('../recipes/videobert.yaml', import.meta.url), 'utf8');
  const config = resolveConfig({
    ...{ text, file: 'videobert', preset: 'tiny' },
    overrides: ['data.frameSize=16', 'train.microbatchSize=2', ...overrides],
  });
  const { windows, framesPerWindow, frameSize } = config.data;
  const shape = [windows, framesPerWindow, frameSize, frameSize, 3] as const;
  const numBytes = shape.reduce((a, b) => a * b);
  /** Noise: a film of its own in each epoch. */
  const framesOf = (number: number, epoch: number): Uint8Array => {
    const rng = openRng(5, 'frames', number, epoch);
    return Uint8Array.from({ length: numBytes }, () => rng.integer(256));
  };
  const rows = (epoch: number): Row[] =>
    samples.map((sample, number) => ({
      ...{ sample, number, epoch, frames: framesOf(number, epoch) },
      timesSeconds: Array.from({ length: windows * framesPerWindow }, (_, i) => i / 4),
    }));
  const features = [0, 1, 2, 3].flatMap((epoch) =>
    rows(epoch).map(({ frames }) => frameFeatures(frames, shape)),
  );
  const model = config.model as unknown as Parameters<typeof videoBertSystem>[0];
  const tokenizer = openTokenizer(
    trainTokenizer(
      samples.map((sample) => sample.text),
      { vocabularySize: 64 },
    ),
  );
  const vocabulary = fitVisualVocabulary(Float32Array.from(features.flatMap((each) => [...each])), {
    branching: 4,
    depth: 2,
    seed: 1,
    pcaDims: model.visualComponents,
  });
  const splits = { train: samples, heldOut: samples };
  const data = { ...config.data, seed: config.train.seed };
  return {
    system: videoBertSystem(model, data, { tokenizer, vocabulary }, splits),
    blank: blankRows({ config, index: splits as unknown as SampleIndex }),
    rows,
  };
}

const idsOf = (system: VideoLanguageSystem, rows: readonly Row[]): number[] => [
  ...system.assemble(rows).arrays['ids']!.data,
];

test('a worker that has warmed up sees what one sees that has not', async () => {
  const [cold, warm] = [await open(), await open()];
  const blank = idsOf(warm.system, warm.blank);
  const seen = idsOf(warm.system, warm.rows(0));
  assert.deepEqual(seen, idsOf(cold.system, cold.rows(0)));
  assert.notDeepEqual(seen, blank);
});

test('films that look otherwise in each epoch are seen as they look then, whatever was seen before', async () => {
  for (const override of [
    'data.augment.flip=true',
    'data.augment.crop=true',
    'data.sampling={policy: random-clip, seconds: 1}',
  ]) {
    const [fresh, old] = [await open([override]), await open([override])];
    idsOf(old.system, old.rows(0));
    assert.deepEqual(idsOf(old.system, old.rows(1)), idsOf(fresh.system, fresh.rows(1)), override);
  }
});

test('a text that is read alike is no other text: such pairs match', async () => {
  const spelt = ['a red circle rises up', 'A RED  circle rises down'].map((text, i) => ({
    ...SAMPLES[i]!,
    text,
  }));
  const matched = async (maxTextTokens: number): Promise<number[]> => {
    const overrides = [`model.maxTextTokens=${maxTextTokens}`, 'model.mismatchedShare=1'];
    const { system, rows } = await open(overrides, spelt);
    const shown = Array.from({ length: 20 }, (_, epoch) => rows(epoch)).flat();
    const { arrays } = system.assemble(shown);
    const { data: weights } = arrays['alignmentWeights']!;
    return [...arrays['matched']!.data].filter((_, i) => weights[i] === 1);
  };
  // The fifth word tells them apart.
  const [cut, whole] = [await matched(4), await matched(16)];
  assert.ok(cut.length > 0);
  assert.ok(cut.every((label) => label === 1));
  assert.ok(whole.includes(0));
});

test('windows that repeat the last frame of a short clip are neither shown nor asked', async () => {
  const { system, rows } = await open(['data.framesPerWindow=2', 'model.mismatchedShare=0']);
  const whole = rows(0)[0]!;
  const { length } = whole.timesSeconds;
  const maskedFrame = [...system.heldOutTasks, ...system.furtherTasks!].filter(
    ({ objective }) => objective === 'masked-frame',
  );
  assert.ok(maskedFrame.length >= 2);
  for (const [numFrames, numWindows] of [
    [1, 1],
    [2, 1],
    [3, 2],
    [4, 2],
    [length, length / 2],
  ] as const) {
    const timesSeconds = whole.timesSeconds.map((_, i) => Math.min(i, numFrames - 1) / 4);
    // A sample of its own: of each the system remembers what it saw.
    const row = { ...whole, sample: { ...whole.sample }, timesSeconds };
    for (const { assemble, name } of [
      ...[0, 1, 2, 3].map((epoch) => ({
        name: `training, epoch ${epoch}`,
        assemble: () => system.assemble([{ ...row, epoch }]),
      })),
      ...maskedFrame.map((task) => ({ name: task.name, assemble: () => task.assemble([row]) })),
    ]) {
      const { present, visualPositions, visualWeights } = assemble().arrays;
      // In front stand the text and three tokens that are no word, `[SEP]` among them at the end.
      const first = present!.shape[1]! - 1 - length / 2;
      const shown = [...present!.data.subarray(first, first + length / 2)];
      const hasVideo = shown[0] === 1;
      assert.ok(hasVideo || name.startsWith('training'), name);
      assert.deepEqual(
        shown,
        shown.map((_, i) => (hasVideo && i < numWindows ? 1 : 0)),
        `${name}, ${numFrames} frames`,
      );
      for (const [slot, weight] of visualWeights!.data.entries()) {
        const window = visualPositions!.data[slot]! - first;
        assert.ok(weight === 0 || window < numWindows, `${name}, ${numFrames} frames: ${window}`);
      }
    }
  }
});

test('of a short clip the repeated frames change nothing: it is seen as if they were others', async () => {
  const seen = async (byte: number) => {
    const { system, rows } = await open(['data.framesPerWindow=2']);
    const [row] = rows(0);
    const frames = row!.frames.slice();
    const frameBytes = frames.length / row!.timesSeconds.length;
    frames.fill(byte, 4 * frameBytes);
    const timesSeconds = row!.timesSeconds.map((_, i) => Math.min(i, 3) / 4);
    return idsOf(system, [{ ...row!, frames, timesSeconds }]);
  };
  assert.deepEqual(await seen(0), await seen(255));
});
