import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { UsageError } from '../proto/errors.ts';
import { configJsonSchema, resolveConfig, stagesOf, type Config } from './config.ts';

const TEXT = readFileSync(join(import.meta.dirname, 'recipes/videobert.yaml'), 'utf8');

function resolve(overrides: string[] = [], preset?: string, text = TEXT): Config {
  return resolveConfig({ text, file: 'videobert.yaml', preset, overrides });
}

function messageOf(overrides: string[], preset?: string, text = TEXT): string {
  try {
    resolve(overrides, preset, text);
  } catch (error) {
    assert.ok(error instanceof UsageError);
    assert.equal(error.code, 'CONFIG_INVALID');
    return error.message;
  }
  assert.fail('it was taken');
}

test('presets change the recipe, and overrides the presets, the last one last', () => {
  assert.ok(Number(resolve([], 'tiny').model['width']) < Number(resolve().model['width']));
  assert.equal(resolve(['train.steps=7', 'train.steps=9'], 'tiny').train.steps, 9);
  assert.equal(resolve(['optimizer.learningRate=1e-4']).optimizer.learningRate, 1e-4);
  assert.equal(resolve(['data.folder=films']).data.folder, 'films');
});

test('an unknown field is named with its line and the nearest known one', () => {
  assert.match(
    messageOf(['train.step=3']),
    /^train\.step=3: unknown field train\.step; did you mean train\.steps\?$/,
  );
  const line = TEXT.split('\n').findIndex((text) => text.startsWith('  width:')) + 1;
  const misspelt = TEXT.replace('  width:', '  widht:');
  assert.match(
    messageOf([], undefined, misspelt),
    new RegExp(
      `^videobert\\.yaml:${line}:\\d+: unknown field model\\.widht; did you mean model\\.width\\?$`,
    ),
  );
});

test('a wrong value is named with what was expected', () => {
  assert.match(messageOf(['train.steps=abc']), /train\.steps is "abc": .*expected number/);
  assert.match(messageOf(['train.microbatches=3']), /train\.microbatches is 3: a power of two/);
  assert.match(
    messageOf(['model.heads=5']),
    /model\.width \(\d+\) is not a multiple of model\.heads \(5\)/,
  );
  assert.match(messageOf(['cluster.workers=64']), /only \d+ microbatches to share/);
  assert.match(messageOf(['optimizer.beta1=1']), /optimizer\.beta1 is 1: expected less than 1/);
  assert.match(messageOf(['optimizer.beta2=1']), /optimizer\.beta2 is 1: expected less than 1/);
  assert.equal(resolve(['optimizer.beta1=0']).optimizer.beta1, 0);
  assert.match(messageOf([], 'tny'), /no preset tny; it has: .*tiny/);
  assert.match(messageOf(['train.steps']), /expected an override such as train\.steps=100/);
  assert.match(messageOf([], undefined, 'a: [1'), /^videobert\.yaml: /);
});

test('names of prototypes are fields like others: unknown ones', () => {
  assert.match(messageOf(['__proto__.polluted=1']), /unknown field __proto__/);
  assert.match(messageOf(['train.constructor=1']), /unknown field train\.constructor/);
  assert.equal(({} as { polluted?: unknown }).polluted, undefined);
});

test('the schema that editors use is the one that is checked', () => {
  const file = join(import.meta.dirname, 'recipes/config.schema.json');
  assert.deepEqual(
    JSON.parse(readFileSync(file, 'utf8')),
    configJsonSchema(),
    'run `npm run generate`',
  );
});

test('a mesh that does not fit the devices, the microbatch or the threads is refused with what to change', () => {
  const fits = resolve(['engine.devices=4', 'engine.threads=8', 'parallel.mesh.fsdp=2']);
  assert.deepEqual(fits.parallel.mesh, { data: null, fsdp: 2, tensor: 1 });
  assert.equal(resolve(['engine.devices=all']).engine.devices, 'all');
  assert.match(
    messageOf(['engine.devices=4', 'parallel.mesh.tensor=3']),
    /^parallel\.mesh \(data null, fsdp 1, tensor 3\) does not come to engine\.devices \(4\)/,
  );
  assert.match(
    messageOf(['engine.devices=3', 'engine.threads=8']),
    /^train\.microbatchSize \(16\) is not a multiple of the 3 parts .* \(data 3 x fsdp 1\)/,
  );
  assert.match(
    messageOf(['engine.devices=4']),
    /^engine\.threads \(4\) is too few for engine\.devices \(4\).*set it to 8 or more/,
  );
  assert.match(messageOf(['engine.devices=2', 'engine.name=cpu']), /only the xla engine/);
  assert.match(
    messageOf(['parallel.mesh.fdsp=2']),
    /^parallel\.mesh\.fdsp=2: unknown field parallel\.mesh\.fdsp; did you mean parallel\.mesh\.fsdp\?$/,
  );
  assert.match(
    messageOf(['cluster.allReduce=nccl']),
    /cluster\.allReduce is nccl, which sums on GPUs, and the engine is cpu: set engine\.pluginPath/,
  );
  assert.equal(
    resolve(['cluster.allReduce=nccl', 'engine.pluginPath=cuda13']).cluster.allReduce,
    'nccl',
  );
  assert.match(
    messageOf(['parallel.rules=[{path: blocks, axes: [model]}]']),
    /^parallel\.rules=.*: parallel\.rules\.0\.axes\.0 is "model": expected fsdp, tensor, a list/,
  );
});

test('what no run plan may have is refused before anything is written', () => {
  for (const override of [
    'train.microbatchSize=1000000',
    'train.microbatches=131072',
    'data.prefetchSteps=1024',
    'data.frameSize=100000',
    'data.windows=1000000',
    'cluster.events=[]',
  ])
    assert.match(messageOf([override]), /^[\w.]+=.*Too (big|small)/, override);
});

test('a preset leaves out stages, and changes none that there is not', () => {
  const staged = `${TEXT}
stages:
  first: { train: { steps: 3 } }
  second: { train: { steps: 4 } }
`;
  const text = staged.replace(
    'presets:',
    'presets:\n  late: { stages: { first: null } }\n  odd: { stages: { third: {} } }',
  );
  assert.deepEqual(stagesOf(text), ['first', 'second']);
  assert.deepEqual(stagesOf(text, 'late'), ['second']);
  assert.equal(resolve([], undefined, text).train.steps, 3);
  assert.equal(resolve([], 'late', text).train.steps, 4);
  assert.throws(
    () => resolveConfig({ text, file: 'r.yaml', preset: 'late', stage: 'first', overrides: [] }),
    /preset late of r\.yaml has no stage first; it has: second/,
  );
  assert.match(messageOf([], 'odd', text), /preset odd changes stage third.*first, second/);
});
