import assert from 'node:assert/strict';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { startS3Server } from '../../video/storage/test/s3-server.ts';
import {
  committedStep,
  reachStep,
  readSummary,
  startVideoloom,
  videoloom,
  type Summary,
} from './command.ts';

/** Far more than pass between the look that sees a step and the signal that ends the run. */
const STEPS = 32;
const work = await temporaryFolder('work');
let undisturbed: Summary;

const train = (out: string, workers: number, ...overrides: string[]): string[] => [
  ...['train', 'videobert', '--preset', 'tiny', '--steps', String(STEPS)],
  ...['--workers', String(workers), '--out', out, 'checkpoint.everySteps=6'],
  ...['data.demoTrainClips=24', 'data.demoHeldOutClips=8', ...overrides],
];

before(async () => {
  const { code, output } = await videoloom(train('one', 1), { cwd: work });
  assert.equal(code, 0, output);
  undisturbed = await readSummary(join(work, 'one'));
});

test('a run whose machine is lost goes on from the store with the same weights, and outlasts the loss of the store', async (t) => {
  const server = await startS3Server();
  if ('skip' in server) {
    t.skip(server.skip);
    return;
  }
  t.after(() => server.close());
  const env = {
    ...{ AWS_ENDPOINT_URL_S3: server.endpoint, AWS_REGION: 'us-east-1' },
    ...{ AWS_ACCESS_KEY_ID: 'key', AWS_SECRET_ACCESS_KEY: 'secret' },
  };
  const created = await fetch(`${server.endpoint}/bucket`, { method: 'PUT' });
  assert.equal(created.status, 200);
  const options = { cwd: work, env };
  const run = join(work, 'stored');
  const started = startVideoloom(train('stored', 2, 'checkpoint.store=s3://bucket/runs'), options);
  await reachStep(run, 3, started);
  // As a preemption does: the step ends, its checkpoint is written and copied.
  process.kill(-started.child.pid!, 'SIGINT');
  const stopped = await started.ended;
  assert.equal(stopped.code, 75, stopped.output);
  const step = await committedStep(run);
  assert.ok(step < STEPS);
  await rm(run, { recursive: true });

  const resuming = startVideoloom(
    ['resume', 's3://bucket/runs/stored', '--out', 'stored', '--workers', '1'],
    options,
  );
  while (!resuming.output().includes(`with the checkpoint of step ${step}\n`)) {
    assert.equal(resuming.child.exitCode, null, resuming.output());
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  // The store goes too: the run ends all the same.
  await server.close();
  const { code, output } = await resuming.ended;
  assert.equal(code, 0, output);
  assert.equal((await readSummary(run)).weightsSha256, undisturbed.weightsSha256);
  const audit = await videoloom(['audit', run], { cwd: work });
  assert.equal(audit.code, 0, audit.output);
  const log = await readFile(join(run, 'logs', 'worker-0.jsonl'), 'utf8');
  assert.match(log, /the checkpoint is not in s3:\/\/bucket\/runs/);
  assert.doesNotMatch(log, /secret/);
});
