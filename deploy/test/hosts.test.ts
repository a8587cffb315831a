import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { readJournal } from '../../coordinator/journal.ts';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  MANIFEST_FILE,
} from '../../proto/checkpoint-manifest.ts';
import { exists } from '../../proto/exists.ts';
import { freePorts } from '../../proto/test/free-ports.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { committedStep, reachStep, readSummary, startVideoloom, videoloom } from './command.ts';
import { slurmMissing, startSlurm, type SlurmCluster } from './slurm-cluster.ts';

/** Runs whose workers are on other machines: jobs of a real Slurm, and logins to real sshds, all of this one. */
const PROJECT = fileURLToPath(new URL('../..', import.meta.url));
const LIMIT_MS = 120_000;
/** It wants to be called by its whole path. */
const SSHD = '/usr/sbin/sshd';
const work = await temporaryFolder('hosts');
const ends: (() => void)[] = [];
after(() => {
  for (const end of ends.toReversed()) end();
});

const recipe = (out: string, steps: number): string[] => [
  ...['videobert', '--preset', 'tiny', '--steps', String(steps), '--out', join(work, out)],
  // Nobody is to be found still here: other tests starve a process for a second or two.
  ...['cluster.detectWithin=30', 'data.demoTrainClips=12', 'data.demoHeldOutClips=4'],
];
const STEPS = 400;
let weights = '';

before(async () => {
  const alone = await videoloom(['train', ...recipe('alone', STEPS), '--workers', '1'], {
    cwd: work,
  });
  assert.equal(alone.code, 0, alone.output);
  weights = (await readSummary(join(work, 'alone'))).weightsSha256;
});

test('a job of Slurm loses a worker, has to go, queues up, and ends with the same bits', async (context) => {
  const missing = slurmMissing();
  if (missing !== false) {
    context.skip(missing);
    return;
  }
  await mkdir(join(work, 'slurm'));
  const cluster = await startSlurm(join(work, 'slurm'));
  ends.push(cluster.kill);
  const run = join(work, 'job');
  const log = join(work, 'job.log');
  const job = await submit(cluster, 'job', STEPS);
  const said = async (): Promise<string> =>
    `${await cluster.slurm('scontrol', 'show', 'job', job)}\n${await readFile(log, 'utf8')}`;
  ends.push(() => {
    execFileSync('scancel', [job], { env: cluster.env });
  });
  await waitFor('step 30', async () => (await committedStep(run)) >= 30, said);
  assert.deepEqual(await nodesOf(cluster, job), ['n1', 'n2']);

  // A worker dies and is started again, on its node.
  const [, second] = await workersOf(run);
  process.kill(second!, 'SIGKILL');
  await waitFor('another process of worker-1', async () => {
    const [, now] = await workersOf(run);
    return now !== second;
  });

  // As two minutes before the end of the job's time.
  await cluster.slurm('scancel', '--batch', '--signal=TERM', job);
  await waitFor('the job in the queue', async () => (await cluster.stateOf(job)) === 'PENDING');
  const stoppedAt = await committedStep(run);
  assert.ok(stoppedAt < STEPS, `it was stopped at step ${stoppedAt}`);
  await waitFor(
    'the end of the job',
    async () => {
      const state = await cluster.stateOf(job);
      // It would begin in two minutes, when the nodes are cleared up for certain; before they are, it fails there.
      if (state === 'PENDING' && (await cluster.numIdle()) === 2) {
        await delay(2000);
        await cluster.slurm('scontrol', 'update', `JobId=${job}`, 'StartTime=now');
        await delay(2000);
      }
      return state === 'COMPLETED';
    },
    said,
  );
  assert.match(await readFile(log, 'utf8'), /^resuming /m);
  assert.equal((await readSummary(run)).weightsSha256, weights);

  // One that is cancelled does not come back.
  const other = await submit(cluster, 'cancelled', 1_000_000);
  await waitFor('a step', async () => (await committedStep(join(work, 'cancelled'))) >= 1);
  await cluster.slurm('scancel', other);
  await waitFor('the end of its steps', async () => (await nodesOf(cluster, other)).length === 0);
  await waitFor('its end', async () => (await cluster.stateOf(other)) === 'CANCELLED');
  await delay(2000);
  assert.equal(await cluster.stateOf(other), 'CANCELLED');
});

/** Submits deploy/slurm/train.sbatch; gives the number of the job, which writes OUT.log. */
function submit({ slurm }: SlurmCluster, out: string, steps: number): Promise<string> {
  return slurm(
    ...['sbatch', '--parsable', `--chdir=${PROJECT}`, `--output=${join(work, `${out}.log`)}`],
    ...[join(PROJECT, 'deploy', 'slurm', 'train.sbatch'), ...recipe(out, steps)],
    ...['--listen', '127.0.0.1:0'],
  );
}

test('workers are reached by ssh; without a machine that is gone the others end with the same bits', async (context) => {
  if (spawnSync(SSHD, ['-V']).error !== undefined) {
    context.skip('there is no sshd (Debian: openssh-server)');
    return;
  }
  const folder = join(work, 'ssh');
  await mkdir(folder, { mode: 0o700 });
  const key = join(folder, 'key');
  execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key]);
  const machines = [await startSshd(folder, 'gpu-a', key), await startSshd(folder, 'gpu-b', key)];
  const config = join(folder, 'config');
  await writeFile(config, machines.map(({ entry }) => entry).join('\n'));
  const command = [
    ...['train', ...recipe('login', STEPS), '--hosts', 'gpu-a,gpu-b'],
    ...['--ssh', `ssh -F ${config}`, '--listen', '127.0.0.1:0'],
  ];
  const first = startVideoloom(command, { cwd: work });
  ends.push(() => {
    first.killAll();
  });
  await reachStep(join(work, 'login'), 30, first);
  // Ctrl-C in a terminal: all of the group get it.
  process.kill(-first.child.pid!, 'SIGINT');
  const stopped = await first.ended;
  assert.equal(stopped.code, 75, stopped.output);
  const stoppedAt = await committedStep(join(work, 'login'));
  assert.match(stopped.output, new RegExp(`^stopped after step ${stoppedAt} of ${STEPS}`, 'm'));
  assert.ok(await exists(checkpointAt(join(work, 'login'), stoppedAt)));

  // On this machine alone, with more workers than have certificates.
  const here = startVideoloom(['resume', 'login', '--workers', '3', '--listen', '127.0.0.1:0'], {
    cwd: work,
  });
  ends.push(() => {
    here.killAll();
  });
  await reachStep(join(work, 'login'), stoppedAt + 10, here);
  here.child.kill('SIGTERM');
  assert.equal((await here.ended).code, 75, here.output());

  const run = startVideoloom(command, { cwd: work });
  ends.push(() => {
    run.killAll();
  });
  await reachStep(join(work, 'login'), stoppedAt + 40, run);
  const [, second] = await workersOf(join(work, 'login'));
  machines[1]!.child.kill('SIGKILL');
  process.kill(second!, 'SIGKILL');
  const { code, output } = await run.ended;
  assert.equal(code, 0, output);
  assert.match(output, /^worker-1 on gpu-b ended with code 255, the others go on: .*refused/m);
  assert.equal((await readSummary(join(work, 'login'))).weightsSha256, weights);
  const hosts = new Set<string>();
  readJournal(join(work, 'login', 'journal.jsonl'), (record) => {
    if (record.type === 'worker-joined') hosts.add(record.workerId);
  });
  assert.deepEqual([...hosts].sort(), ['worker-0', 'worker-1', 'worker-2']);
});

test('what --hosts cannot mean is refused, with the mend', async () => {
  const refused: [string, RegExp][] = [
    ['gpu-a,-oProxyCommand=x', /HOSTS_INVALID: --hosts: "-oProxyCommand=x" is no name/],
    ['gpu-a,gpu-a', /HOSTS_INVALID: --hosts: a machine is named twice: --workers/],
    ['slurm', /HOSTS_INVALID: .* it runs in none: submit deploy\/slurm\/train\.sbatch/],
  ];
  for (const [hosts, message] of refused) {
    const { code, output } = await videoloom(['train', 'videobert', '--hosts', hosts], {
      cwd: work,
    });
    assert.equal(code, 2, output);
    assert.match(output, message);
  }
});

interface Machine {
  readonly child: ChildProcess;
  /** In the configuration of ssh. */
  readonly entry: string;
}

/** An sshd on the loopback that takes `key` and goes by `name`. */
async function startSshd(folder: string, name: string, key: string): Promise<Machine> {
  const hostKey = join(folder, `${name}-host`);
  execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', hostKey]);
  const [port] = await freePorts(1);
  const known = join(folder, `${name}-known`);
  await writeFile(known, `[127.0.0.1]:${port} ${await readFile(`${hostKey}.pub`, 'utf8')}`);
  await chmod(key, 0o600);
  // As the system starts it.
  if (process.getuid?.() === 0) await mkdir('/run/sshd', { recursive: true });
  const options = {
    ...{
      Port: port,
      ListenAddress: '127.0.0.1',
      HostKey: hostKey,
      AuthorizedKeysFile: `${key}.pub`,
    },
    ...{ StrictModes: 'no', UsePAM: 'no', PidFile: 'none', PermitRootLogin: 'yes' },
  };
  const args = Object.entries(options).flatMap(([option, value]) => ['-o', `${option}=${value}`]);
  const child = spawn(SSHD, ['-D', '-e', '-f', '/dev/null', ...args], {
    stdio: 'ignore',
  });
  ends.push(() => {
    child.kill('SIGKILL');
  });
  const entry = [
    ...[`Host ${name}`, '  HostName 127.0.0.1', `  Port ${port}`, `  User ${userInfo().username}`],
    ...[`  IdentityFile ${key}`, '  IdentitiesOnly yes', `  UserKnownHostsFile ${known}`, ''],
  ].join('\n');
  return { child, entry };
}

function checkpointAt(run: string, step: number): string {
  return join(run, CHECKPOINTS_FOLDER, checkpointFolderName(step), MANIFEST_FILE);
}

/** Process ids of worker-0, worker-1 and so on, as they said last. */
async function workersOf(run: string): Promise<number[]> {
  const pids: number[] = [];
  for (const number of [0, 1]) {
    const text = await readFile(join(run, 'logs', `worker-${number}.jsonl`), 'utf8');
    const last = text.trimEnd().split('\n').at(-1)!;
    pids.push((JSON.parse(last) as { pid: number }).pid);
  }
  return pids;
}

/** The nodes that steps of a job run on. */
async function nodesOf({ slurm }: SlurmCluster, job: string): Promise<string[]> {
  const steps = await slurm('squeue', '--steps', '--noheader', `--jobs=${job}`, '--format=%i %N');
  const lines = steps.split('\n').filter((line) => /^\d+\.\d+ /.test(line));
  return lines.map((line) => line.split(' ')[1]!).sort();
}

async function waitFor(
  what: string,
  isThere: () => Promise<boolean>,
  said: () => Promise<string> = () => Promise.resolve(''),
): Promise<void> {
  const startMs = performance.now();
  while (!(await isThere())) {
    if (performance.now() - startMs > LIMIT_MS)
      throw new Error(`${what}: not within ${LIMIT_MS / 1000} s\n${await said().catch(String)}`);
    await delay(50);
  }
}
