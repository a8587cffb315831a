import { execFile, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { freePorts } from '../../proto/test/free-ports.ts';

/** Slurm with two nodes, `n1` and `n2`, that are this machine twice: its own daemons on ports of their own. */
export interface SlurmCluster {
  /** For every command of Slurm. */
  readonly env: NodeJS.ProcessEnv;
  /** Runs a command of Slurm; gives what it printed. */
  readonly slurm: (command: string, ...args: string[]) => Promise<string>;
  /** State of a job, as PENDING or COMPLETED; empty where it is not known any more. */
  readonly stateOf: (job: string) => Promise<string>;
  /** Nodes on which nothing runs, nor is cleared up. */
  readonly numIdle: () => Promise<number>;
  readonly kill: () => void;
}

const START_MS = 30_000;

/** Why there can be none here. */
export function slurmMissing(): string | false {
  if (process.getuid?.() !== 0) return 'Slurm’s daemons are started by root alone';
  const missing = ['slurmctld', 'slurmd', 'munged'].filter(
    (program) => spawnSync('which', [program]).status !== 0,
  );
  return missing.length > 0 && `there is no ${missing.join(', ')} (Debian: slurm-wlm, munge)`;
}

export async function startSlurm(folder: string): Promise<SlurmCluster> {
  const [controller, ...ports] = await freePorts(3);
  for (const name of ['state', 'spool']) await mkdir(join(folder, name), { recursive: true });
  const key = join(folder, 'munge.key');
  await writeFile(key, randomBytes(1024));
  await chmod(key, 0o600);
  const socket = join(folder, 'munge.sock');
  const config = join(folder, 'slurm.conf');
  const own = hostname();
  await writeFile(
    config,
    [
      'ClusterName=test',
      `SlurmctldHost=${own}(127.0.0.1)`,
      `SlurmctldPort=${controller}`,
      ...['SlurmUser=root', 'SlurmdUser=root', 'AuthType=auth/munge', 'CredType=cred/munge'],
      `AuthInfo=socket=${socket}`,
      `StateSaveLocation=${join(folder, 'state')}`,
      `SlurmdSpoolDir=${join(folder, 'spool')}/%n`,
      `SlurmctldPidFile=${join(folder, 'slurmctld.pid')}`,
      `SlurmdPidFile=${join(folder, '%n.pid')}`,
      ...['ProctrackType=proctrack/linuxproc', 'TaskPlugin=task/none', 'MpiDefault=none'],
      ...['SelectType=select/cons_tres', 'SelectTypeParameters=CR_Core', 'ReturnToService=2'],
      ...[
        'SlurmdParameters=config_overrides',
        'KillWait=5',
        'SchedulerParameters=sched_min_interval=0',
      ],
      ...ports.map(
        (port, i) =>
          `NodeName=n${i + 1} NodeHostname=${own} NodeAddr=127.0.0.1 Port=${port} CPUs=2 State=UNKNOWN`,
      ),
      'PartitionName=all Nodes=n1,n2 Default=YES State=UP MaxTime=60',
      '',
    ].join('\n'),
  );
  const env = { ...process.env, SLURM_CONF: config };
  const children: ChildProcess[] = [];
  const daemon = (program: string, ...args: string[]): void => {
    children.push(spawn(program, args, { env, stdio: 'ignore' }));
  };
  const kill = (): void => {
    for (const child of children) child.kill('SIGKILL');
  };
  const slurm = async (command: string, ...args: string[]): Promise<string> =>
    (await promisify(execFile)(command, args, { env })).stdout.trim();
  daemon(
    'munged',
    ...['--foreground', '--force', `--socket=${socket}`, `--key-file=${key}`],
    ...[`--pid-file=${join(folder, 'munge.pid')}`, `--log-file=${join(folder, 'munge.log')}`],
    `--seed-file=${join(folder, 'munge.seed')}`,
  );
  daemon('slurmctld', '-D');
  for (const node of ['n1', 'n2']) daemon('slurmd', '-D', '-N', node);
  const startMs = performance.now();
  const numIdle = async (): Promise<number> => {
    const said = slurm('sinfo', '--noheader', '--states=idle', '--format=%D').catch(() => '');
    return Number(await said);
  };
  while ((await numIdle()) < 2) {
    await delay(100);
    if (performance.now() - startMs < START_MS) continue;
    kill();
    throw new Error(`Slurm has no two nodes after ${START_MS / 1000} s; see ${folder}`);
  }
  return {
    env,
    slurm,
    numIdle,
    async stateOf(job) {
      const shown = await slurm('scontrol', 'show', 'job', job).catch(() => '');
      return /JobState=(\w+)/.exec(shown)?.[1] ?? '';
    },
    kill,
  };
}
