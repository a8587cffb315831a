import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { reportFatal, VideoloomError } from '../../proto/errors.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { ensurePeer, TORCH } from '../../worker/bench/peer-venv.ts';
import { median, report } from '../../worker/bench/report.ts';
import { followJournal } from '../drill/run-journal.ts';

/**
 * From the command to the first step of two workers, by turns with torchrun, whose workers add a megabyte over Gloo and
 * train nothing, or train a model of the same size on tokens that are there already, or do so with torch.compile.
 * `videoloom train` prepares a new run first; data, index and compiled programs are there, and torch.compile's cache (a
 * first round makes them). Median of `--rounds`, JSON lines.
 */
const FIELDS = ['train.steps=1000000', 'data.demoTrainClips=12', 'data.demoHeldOutClips=4'];
const VIDEOLOOM = fileURLToPath(new URL('../videoloom.mjs', import.meta.url));
const PEER_SCRIPT = fileURLToPath(new URL('peers/launch_torchrun.py', import.meta.url));
const LIMIT_MS = 300_000;
const PEER_KINDS = {
  bare: 'no training',
  train: 'training',
  compile: 'training with torch.compile',
};

async function main(argv: string[]): Promise<void> {
  const { values } = parseArgs({
    args: argv,
    options: { rounds: { type: 'string', default: '5' }, python: { type: 'string' } },
  });
  const peer = { label: 'torchrun', script: '', args: [], packages: [TORCH, 'numpy'] } as const;
  const python = values.python ?? (await ensurePeer(userCacheDir(process.env), peer));
  const folder = await mkdtemp(join(tmpdir(), 'videoloom-launch-'));
  const ours: number[] = [];
  const theirs = Object.entries(PEER_KINDS).map(([kind, what]) => ({
    ...{ kind, name: `${TORCH.replace('torch==', 'torchrun ')}, ${what}` },
    seconds: [] as number[],
  }));
  try {
    for (let round = 0; round <= Number(values.rounds); round++) {
      const own = await launchOurs(folder, `run-${round}`);
      if (round > 0) ours.push(own);
      process.stderr.write(`ours ${own.toFixed(2)} s`);
      for (const { kind, seconds } of theirs) {
        const time = await launchPeer(python, kind);
        if (round > 0) seconds.push(time);
        process.stderr.write(`, ${kind} ${time.toFixed(2)} s`);
      }
      process.stderr.write('\n');
    }
  } finally {
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  }
  report(
    {
      ...{ name: 'launch', metric: 'first step of two workers', value: median(ours) },
      ...{ unit: 's', better: 'lower' },
    },
    theirs.map(({ name, seconds }) => ({ name, value: median(seconds) })),
  );
}

/** Seconds from the command to the first commit. */
async function launchOurs(folder: string, name: string): Promise<number> {
  const startMs = Date.now();
  const args = ['train', 'videobert', '--preset', 'tiny', '--workers', '2', '--out', name];
  const child = spawn(process.execPath, [VIDEOLOOM, ...args, ...FIELDS], {
    ...{ cwd: folder, stdio: 'ignore' },
  });
  const isFirst = ({ type }: { type: string }): boolean => type === 'commit';
  const commit = await followJournal(join(folder, name)).next(isFirst, {
    ...{ from: 0, limitMs: LIMIT_MS },
  });
  child.kill('SIGTERM');
  if (child.exitCode === null) await once(child, 'exit');
  if (commit === undefined)
    throw new VideoloomError('NO_STEP', `no step within ${LIMIT_MS / 1000} s`);
  return (commit.atMs - startMs) / 1000;
}

async function launchPeer(python: string, kind: string): Promise<number> {
  // No bytecode beside the sources: programs are made anew when a file comes.
  const { stdout } = await promisify(execFile)(python, ['-B', PEER_SCRIPT, kind]);
  const { seconds } = JSON.parse(stdout) as { seconds: number | null };
  if (seconds === null) throw new VideoloomError('NO_STEP', `torchrun (${kind}) took no step`);
  return seconds;
}

main(process.argv.slice(2)).then(
  () => process.exit(0),
  (error: unknown) => process.exit(reportFatal(error)),
);
