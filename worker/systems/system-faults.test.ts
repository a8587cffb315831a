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
