/** Fields that do not go together are refused before anything of a run is made, with what to change. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { UsageError } from '../../proto/errors.ts';
import { resolveConfig } from '../config.ts';

/** What is said of a recipe's stage with these overrides; undefined where it is taken. */
function faultOf(recipe: string, overrides: string[], stage?: string): string | undefined {
  const text = readFileSync(new URL(`../recipes/${recipe}.yaml`, import.meta.url), 'utf8');
  try {
    resolveConfig({ text, file: recipe, stage, overrides });
    return undefined;
  } catch (error) {
    assert.ok(error instanceof UsageError);
    assert.equal(error.code, 'CONFIG_INVALID');
    return error.message;
  }
}

test('preferences compare with what the run begins with: there is to be something', () => {
  const fault = (...overrides: string[]) => faultOf('llava-dpo', overrides, 'preference');
  assert.equal(fault(), undefined);
  assert.match(fault('init=[]')!, /^llava-dpo: model\.preference compares .* begin from a run/);
  assert.match(fault('model.preference.labelSmoothing=0.5')!, /expected less than 0\.5/);
});

test('video-llava: a microbatch has pictures and films, and devices share each', () => {
  const fault = (...overrides: string[]) => faultOf('video-llava', overrides, 'instruction');
  assert.equal(
    fault('train.microbatchSize=1'),
    'video-llava: train.microbatchSize (1) has no half to show as pictures: set it to 2 or more, or model.pictures to false',
  );
  assert.equal(fault('train.microbatchSize=1', 'model.pictures=false'), undefined);
  assert.equal(fault('train.microbatchSize=3'), undefined, 'one picture and two films');
  const two = ['engine.devices=2', 'engine.threads=4'];
  assert.equal(fault('train.microbatchSize=8', ...two), undefined);
  assert.equal(fault('train.microbatchSize=6', 'model.pictures=false', ...two), undefined);
  assert.match(
    fault('train.microbatchSize=6', ...two)!,
    /^video-llava: half of train\.microbatchSize \(6\) is pictures, .* the 2 parts .*: set it to a multiple of 4, or model\.pictures to false$/,
  );
  assert.match(
    fault('train.microbatchSize=6', 'engine.devices=all', 'parallel.mesh.fsdp=2')!,
    /a multiple of 4/,
  );
});

test('opt has learned positions for a conversation and the answer behind it', () => {
  const fault = (...overrides: string[]) =>
    faultOf('blip2', ['model.length=40', 'model.maxAnswerTokens=12', ...overrides], 'generate');
  const opt = ['model.language.kind=opt', 'model.language.tied=true'];
  assert.equal(fault(...opt, 'model.language.maxPositions=52'), undefined);
  assert.equal(
    fault(...opt, 'model.language.maxPositions=51'),
    'blip2: model.language.maxPositions (51) has no place for model.length (40) tokens and an answer of ' +
      'model.maxAnswerTokens (12): set it to 52 or more, or make those shorter',
  );
  assert.equal(fault('model.language.kind=llama', 'model.language.maxPositions=1'), undefined);
});

test("llama's heads have an even width", () => {
  const heads = ['model.language.heads=4', 'model.language.keyValueHeads=4'];
  const fault = (width: number) =>
    faultOf('video-llava', [...heads, `model.language.width=${width}`], 'language');
  assert.equal(fault(104), undefined);
  assert.match(
    fault(100)!,
    /^video-llava: model\.language\.width \(100\) is an odd number \(25\) for each of its heads \(4\), .*: set it to a multiple of 8$/,
  );
});

test('pixels that are no whole number of int32 are refused', () => {
  const sized = (windows: number) => [
    ...['data.frameSize=21', `data.windows=${windows}`, 'data.framesPerWindow=1'],
  ];
  for (const recipe of ['clip', 'siglip', 'coca', 'llip']) {
    const fault = (windows: number) =>
      faultOf(recipe, [...sized(windows), 'model.vision.patchSize=7']);
    assert.equal(fault(4), undefined);
    assert.equal(
      fault(2),
      `${recipe}: data.frameSize (21) is odd, and the pixels of the 2 frames of a clip come to no whole number of ` +
        'four bytes: make it even, or data.windows a multiple of 4',
    );
  }
  const ofa = [...sized(2), 'model.patchSize=7'];
  assert.match(faultOf('video-ofa', ofa, 'clips')!, /^video-ofa: data\.frameSize \(21\) is odd/);
});

test('pictures that are framed in another way than their boxes are refused, and grids that are not seen whole', () => {
  for (const [recipe, stage] of [
    ['visual-bert', undefined],
    ['minigpt-v2', 'pretraining'],
  ] as const) {
    for (const override of ['data.fit=cover', 'data.augment.flip=true', 'data.augment.crop=square'])
      assert.match(
        faultOf(recipe, [override], stage)!,
        /boxes, which are shares of whole pictures/,
      );
  }
  assert.match(
    faultOf('visual-bert', ['model.grid=4', 'model.maxRegions=9'])!,
    /model\.grid of 4 has 16 regions, and model\.maxRegions is 9/,
  );
});

test('llip: heads divide the width of mixtures, and captions are patterns', () => {
  assert.equal(
    faultOf('llip', ['model.mixture.heads=5']),
    'llip: model.mixture.width (64) is not a multiple of model.mixture.heads (5)',
  );
  assert.match(faultOf('llip', ['model.captions=["a (red"]'])!, /^llip: model\.captions: Invalid/);
});
