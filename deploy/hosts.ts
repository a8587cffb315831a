import { execFile } from 'node:child_process';
import { lookup } from 'node:dns/promises';
import { accessSync, constants } from 'node:fs';
import { hostname } from 'node:os';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { isLoopback } from '../proto/address.ts';
import { messageOf, UsageError } from '../proto/errors.ts';
import { shellWord } from '../proto/shell-word.ts';

/** A machine that a launcher starts workers on. Project, Node and run folder are at the same paths there. */
export interface Host {
  readonly name: string;
  /** What to run here so that `command` runs there, with this standard input and its exit code. */
  reach(command: readonly string[]): readonly string[];
}

export interface HostOptions {
  /** How machines are logged in to: a command with its options. */
  readonly ssh: string;
  /** Where commands run, there as here. */
  readonly cwd: string;
  readonly env: NodeJS.ProcessEnv;
}

/** A job of Slurm in place of names. */
const SLURM = 'slurm';
const HOST_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]*$/;
const USER_AT = /^[A-Za-z0-9_][A-Za-z0-9._-]*@/;
/** Settings that ssh would not hand on; secrets are not among them, which a command line would show. */
const HANDED_ON =
  /^(VIDEOLOOM_TLS_DIR|PJRT_PLUGIN_PATH|XLA_FLAGS|XDG_CACHE_HOME|AWS_(PROFILE|REGION|DEFAULT_REGION|ENDPOINT_URL|ENDPOINT_URL_S3))$/;
/**
 * A question for a password would wait for ever, and so would a connection to a machine without power. The first value
 * that ssh reads counts: whoever gives --ssh others has those.
 */
const SSH_OPTIONS = [
  'BatchMode=yes',
  'ConnectTimeout=10',
  'ServerAliveInterval=15',
  'ServerAliveCountMax=3',
].flatMap((option) => ['-o', option]);

/**
 * The machines that `--hosts` names: `slurm` for those of the job that this runs in, else names for ssh with commas
 * between them.
 * @throws UsageError HOSTS_INVALID
 */
export async function openHosts(text: string, options: HostOptions): Promise<readonly Host[]> {
  if (text === SLURM) return slurmHosts(options);
  const names = text.split(',').map((name) => name.trim());
  const bad = names.find((name) => !HOST_NAME.test(name.replace(USER_AT, '')));
  if (bad !== undefined)
    throw invalid(`"${bad}" is no name of a machine: write them as gpu-a,gpu-b or me@gpu-a`);
  if (new Set(names).size < names.length)
    throw invalid('a machine is named twice: --workers says how many workers there are in all');
  const login = options.ssh.split(/\s+/).filter((word) => word !== '');
  const [program = ''] = login;
  if (!isProgram(program, options.env))
    throw invalid(`--ssh is to begin with a program, and there is no "${program}" here`);
  const handedOn = Object.entries(options.env).flatMap(([name, value]) =>
    HANDED_ON.test(name) && value !== undefined ? [`${name}=${value}`] : [],
  );
  return names.map((name) => ({
    name,
    reach: (command) => [
      ...[...login, ...SSH_OPTIONS, '-T', name],
      `cd ${shellWord(options.cwd)} && exec ${['env', ...handedOn, ...command].map(shellWord).join(' ')}`,
    ],
  }));
}

/** The name of this machine, where others reach it by that. @throws UsageError HOSTS_INVALID */
export async function nameForOthers(): Promise<string> {
  const name = hostname();
  const { address } = await lookup(name).catch(() => ({ address: '' }));
  if (address !== '' && !isLoopback(address)) return name;
  const leads = address === '' ? 'leads nowhere' : `leads to ${address}, here alone`;
  throw invalid(
    `workers elsewhere find no coordinator under the name ${name}, which ${leads}: name an address of this machine ` +
      'that they reach, as --listen 10.0.0.7:0',
  );
}

async function slurmHosts({ cwd, env }: HostOptions): Promise<Host[]> {
  const list = env['SLURM_JOB_NODELIST'];
  if (list === undefined || list === '')
    throw invalid(
      'slurm means the nodes of the job that this command runs in, and it runs in none: submit ' +
        'deploy/slurm/train.sbatch with sbatch, or run it in salloc',
    );
  let names: string;
  try {
    const show = ['show', 'hostnames', list];
    ({ stdout: names } = await promisify(execFile)('scontrol', show, { env }));
  } catch (error) {
    throw invalid(`scontrol does not say which nodes ${list} are: ${messageOf(error).trim()}`);
  }
  return names
    .trim()
    .split('\n')
    .map((name) => ({
      name,
      reach: (command) => [
        // A step of its own for each worker, beside what else runs on the node, with all that the job has there.
        ...['srun', '--overlap', '--nodes=1', '--ntasks=1', `--nodelist=${name}`],
        ...[`--chdir=${cwd}`, '--cpu-bind=none', '--quiet', ...command],
      ],
    }));
}

function isProgram(name: string, env: NodeJS.ProcessEnv): boolean {
  if (name === '') return false;
  const folders = name.includes('/') ? [''] : (env['PATH'] ?? '').split(delimiter);
  return folders.some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

function invalid(what: string): UsageError {
  return new UsageError('HOSTS_INVALID', `--hosts: ${what}.`);
}
