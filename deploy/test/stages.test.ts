/** A later stage is of the weights that it began from: others, or half of them, are never taken for those. */
import assert from 'node:assert/strict';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { parse, stringify } from 'yaml';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { RECIPES_FOLDER } from '../../proto/recipe-names.ts';
import { startS3Server } from '../../video/storage/test/s3-server.ts';
import { reachStep, readSummary, startVideoloom, videoloom, type Outcome } from './command.ts';

const work = await temporaryFolder('work');
const server = await startS3Server();
const env =
  'skip' in server
    ? {}
    : {
        AWS_ENDPOINT_URL_S3: server.endpoint,
        AWS_REGION: 'us-east-1',
        AWS_ACCESS_KEY_ID: 'test',
        AWS_SECRET_ACCESS_KEY: 'secret',
      };

/** VideoBERT in two stages of few steps; `seed` is of the first. */
async function writeRecipe(file: string, seed: number): Promise<void> {
  const text = await readFile(join(RECIPES_FOLDER, 'videobert.yaml'), 'utf8');
  const recipe = parse(text) as Record<string, unknown>;
  const stages = {
    one: { train: { seed, steps: 4 } },
    two: { init: [{ from: 'one' }], train: { steps: 2 } },
  };
  await writeFile(join(work, file), stringify({ ...recipe, stages }));
}

function train(recipe: string, out: string, ...more: string[]): Promise<Outcome> {
  return videoloom(trainArgs(recipe, out, ...more), { cwd: work, env });
}

function trainArgs(recipe: string, out: string, ...more: string[]): string[] {
  return [
    ...['train', recipe, '--preset', 'tiny', '--workers', '1', '--out', out, ...more],
    ...['data.demoTrainClips=12', 'data.demoHeldOutClips=4', 'cluster.detectWithin=20'],
  ];
}

async function weightsOf(run: string): Promise<string> {
  return (await readSummary(join(work, run))).weightsSha256;
}

async function runIdOf(run: string): Promise<string> {
  const text = await readFile(join(work, run, 'run.json'), 'utf8');
  return (JSON.parse(text) as { runId: string }).runId;
}

describe('a recipe with stages', () => {
  before(async () => {
    await writeRecipe('a.yaml', 1);
    await writeRecipe('b.yaml', 2);
  });
  after(async () => {
    if (!('skip' in server)) await server.close();
  });

  test('takes a stage for complete only if it began from what the one before it has left', async () => {
    const first = await train('./a.yaml', 'again');
    assert.equal(first.code, 0, first.output);
    assert.deepEqual(
      [await runIdOf('again/one'), await runIdOf('again/two')],
      ['again-one', 'again-two'],
    );
    const weights = await weightsOf('again/two');

    // Trained anew to the same weights, the first stage is what the second began from.
    await rm(join(work, 'again/one'), { recursive: true });
    const same = await train('./a.yaml', 'again');
    assert.equal(same.code, 0, same.output);
    assert.match(same.output, /again\/two is complete/);
    assert.equal(await weightsOf('again/two'), weights);

    await rm(join(work, 'again/one'), { recursive: true });
    const other = await train('./b.yaml', 'again');
    assert.equal(other.code, 2, other.output);
    assert.match(
      other.output,
      /RUN_DIFFERS: .*again\/two began from other weights of the stage one .* remove .*again\/two/,
    );
  });

  test('begins no stage from one that is half trained, and says how far a named run was', async () => {
    const args = ['train.steps=100000', 'checkpoint.everySteps=2'];
    const half = startVideoloom(trainArgs('./a.yaml', 'half', '--stage', 'one', ...args), {
      cwd: work,
    });
    await reachStep(join(work, 'half/one'), 5, half);
    half.child.kill('SIGTERM');
    const stopped = await half.ended;
    assert.equal(stopped.code, 75, stopped.output);
    const two = await train('./a.yaml', 'half', '--stage', 'two');
    assert.equal(two.code, 2, two.output);
    assert.match(
      two.output,
      /STAGE_UNFINISHED: .*half\/one is at step \d+ of 100000.*videoloom resume .*half\/one/,
    );

    const init = `init=${JSON.stringify([{ from: 'half/one' }])}`;
    const named = await train('videobert', 'named', '--steps', '2', init);
    assert.equal(named.code, 0, named.output);
    assert.match(named.output, /begins with \d+ tensors of one \(step \d+ of 100000\)/);
  });

  test('finds in a store the stages of its own run, and those of no other', async (context) => {
    if ('skip' in server) {
      context.skip(server.skip);
      return;
    }
    await makeBucket(server.endpoint);
    const store = 'checkpoint.store=s3://runs/all';
    const one = await train('./a.yaml', 'stored', store);
    assert.equal(one.code, 0, one.output);
    const other = await train('./b.yaml', 'other', store);
    assert.equal(other.code, 0, other.output);
    assert.doesNotMatch(other.output, /took the run/);
    assert.notEqual(await weightsOf('stored/two'), await weightsOf('other/two'));

    const weights = await weightsOf('stored/two');
    await rm(join(work, 'stored'), { recursive: true });
    const back = await train('./a.yaml', 'stored', store);
    assert.equal(back.code, 0, back.output);
    assert.match(back.output, /took the run from s3:\/\/runs\/all\/stored-two/);
    assert.equal(await weightsOf('stored/two'), weights);
  });
});

async function makeBucket(endpoint: string): Promise<void> {
  const { CreateBucketCommand, S3Client } = await import('@aws-sdk/client-s3');
  const client = new S3Client({
    ...{ endpoint, region: 'us-east-1', forcePathStyle: true },
    credentials: { accessKeyId: 'test', secretAccessKey: 'secret' },
  });
  await client.send(new CreateBucketCommand({ Bucket: 'runs' }));
  client.destroy();
}
