import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs, promisify } from 'node:util';
import { reportFatal, UsageError } from '../../proto/errors.ts';
import { openRng } from '../../proto/random.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { ensurePeer, TORCH } from '../../worker/bench/peer-venv.ts';
import { median, report } from '../../worker/bench/report.ts';
import { inject } from '../drill/faults.ts';
import { observe, type FaultReport } from '../drill/observe.ts';
import { copyPrepared } from '../drill/prepared-copy.ts';
import { runDisturbed } from '../drill/running.ts';
import { prepareRun, type Prepared } from '../cluster.ts';

/**
 * A worker of two is killed (kill -9), again and again: how soon it is noticed, and how soon the next step is committed.
 * Beside it torchrun with restarts, by turns in the same run. `--kills` of ours, `--peer-kills` of torchrun's; `--python`
 * names one that has torch, else a venv is made in the user's cache.
 */
const FIELDS = [
  ...['train.steps=1000000', 'train.microbatches=4', 'train.microbatchSize=2'],
  ...['model.width=16', 'model.layers=1', 'data.demoTrainClips=12', 'data.demoHeldOutClips=4'],
  ...['checkpoint.everySteps=100', 'cluster.workers=2'],
];
/** A process that dies again and again soon after its start is not started any more. */
const KILLS_A_RUN = 3;
const LIMIT_MS = 60_000;
const execute = promisify(execFile);
const PEER_SCRIPT = new URL('peers/elastic_torchrun.py', import.meta.url).pathname;

interface PeerTrial {
  readonly launched: boolean;
  readonly seconds: number | null;
}

async function main(argv: string[]): Promise<void> {
  const { values } = parseArgs({
    args: argv,
    options: {
      kills: { type: 'string', default: '20' },
      'peer-kills': { type: 'string', default: '6' },
      python: { type: 'string' },
    },
  });
  const [kills, peerKills] = [count(values.kills), count(values['peer-kills'])];
  const peer = { label: 'torchrun', script: '', args: [], packages: [TORCH, 'numpy'] } as const;
  const cacheDir = userCacheDir(process.env);
  const python = values.python ?? (peerKills > 0 ? await ensurePeer(cacheDir, peer) : '');
  const folder = await mkdtemp(join(tmpdir(), 'videoloom-elastic-'));
  const ours: FaultReport[] = [];
  const theirs: PeerTrial[] = [];
  try {
    process.chdir(folder);
    const set = FIELDS.flatMap((field) => ['--set', field]);
    const recipe = ['videobert', '--preset', 'tiny', '--out', join(folder, 'prepared'), ...set];
    const prepared = await prepareRun(recipe, process.env);
    for (let round = 0; ours.length < kills || theirs.length < peerKills; round++) {
      const left = Math.min(KILLS_A_RUN, kills - ours.length);
      if (left > 0) ours.push(...(await killWorkers(prepared, join(folder, `r-${round}`), left)));
      if (theirs.length < peerKills) theirs.push(await killPeer(python));
    }
  } finally {
    process.chdir('/');
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  }
  tell(ours, theirs);
}

async function killWorkers(
  prepared: Prepared,
  folder: string,
  kills: number,
): Promise<FaultReport[]> {
  const reports: FaultReport[] = [];
  await runDisturbed(await copyPrepared(prepared, folder), {
    ...{ env: process.env, withProxies: false, limitSeconds: 3600, endsAfter: true },
    async disturb(running, signal) {
      const { journal } = running;
      for (let kill = 0; kill < kills; kill++) {
        const from = journal.events.length;
        const isCommit = ({ type }: { type: string }): boolean => type === 'commit';
        // Some steps in full strength between two kills.
        for (let seen = 0, at = from; seen < 20; seen++) {
          const commit = await journal.next(isCommit, { from: at, limitMs: LIMIT_MS, signal });
          if (commit === undefined) break;
          at = journal.events.indexOf(commit) + 1;
        }
        const rng = openRng(kill, 'elastic');
        const injected = await inject('kill-worker', running, { rng, graceMs: 0 });
        if (injected === undefined) continue;
        const options = { limitMs: LIMIT_MS, patienceMs: LIMIT_MS, healAfterMs: 0, signal };
        const seen = await observe(injected, running, options);
        reports.push(seen);
        process.stderr.write(
          `ours: noticed after ${seen.detectedMs} ms, training again after ${seen.resumedMs} ms\n`,
        );
      }
    },
  });
  await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  return reports;
}

async function killPeer(python: string): Promise<PeerTrial> {
  // No bytecode beside the sources: programs are made anew when a file comes.
  const { stdout } = await execute(python, ['-B', PEER_SCRIPT]);
  const trial = JSON.parse(stdout) as PeerTrial;
  process.stderr.write(`torchrun: training again after ${trial.seconds ?? 'more than 60'} s\n`);
  return trial;
}

function tell(ours: readonly FaultReport[], theirs: readonly PeerTrial[]): void {
  const known = (values: readonly (number | null | undefined)[]): number[] =>
    values.filter((value) => value !== null && value !== undefined).sort((a, b) => a - b);
  const detected = known(ours.map(({ detectedMs }) => detectedMs));
  const resumed = known(ours.map(({ resumedMs }) => resumedMs));
  const peer = known(theirs.map(({ seconds }) => seconds)).map((seconds) => 1000 * seconds);
  const name = 'kill-9';
  const p95 = (values: readonly number[]): number =>
    values[Math.ceil(0.95 * values.length) - 1] ?? NaN;
  const figure = (metric: string, value: number): void => {
    report({ name, metric, value, unit: 'ms', better: 'lower' });
  };
  report({ name, metric: 'kills', value: ours.length, unit: 'kills' });
  report({ name, metric: 'recovered', value: resumed.length, unit: 'kills' });
  figure('noticed, median', median(detected));
  figure('noticed, longest', detected.at(-1) ?? NaN);
  figure('training again, p95', p95(resumed));
  const beside = peer.length === 0 ? [] : [{ name: 'torchrun', value: median(peer) }];
  report(
    {
      ...{ name, metric: 'training again, median', value: median(resumed) },
      ...{ unit: 'ms', better: 'lower' },
    },
    beside,
  );
  if (theirs.length === 0) return;
  report({ name: 'torchrun', metric: 'kills', value: theirs.length, unit: 'kills' });
  report({ name: 'torchrun', metric: 'recovered', value: peer.length, unit: 'kills' });
}

function count(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 0) return value;
  throw new UsageError('BAD_FLAG', `${text}: give a whole number`);
}

main(process.argv.slice(2)).then(
  () => process.exit(0),
  (error: unknown) => process.exit(reportFatal(error)),
);
