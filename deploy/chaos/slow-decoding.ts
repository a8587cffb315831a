import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { reportFatal, UsageError } from '../../proto/errors.ts';
import { openRng } from '../../proto/random.ts';
import { copyPrepared } from '../drill/prepared-copy.ts';
import { runDisturbed, signal, workersOf, type Running } from '../drill/running.ts';
import { prepareRun } from '../cluster.ts';

/**
 * Runs in which every decoder stands still most of the time (SIGSTOP and SIGCONT in bursts that a seed draws, up to
 * longer than `detectWithin`), so that steps wait for clips: nobody may be taken for dead. Exits with 1 when a worker
 * was, or a weight differs.
 */
const STEPS = 8;
const FIELDS = [
  ...[`train.steps=${STEPS}`, 'train.microbatches=2', 'train.microbatchSize=2'],
  ...['model.width=16', 'model.layers=1', 'evaluate.draws=1', 'evaluate.microbatches=1'],
  ...['data.demoTrainClips=12', 'data.demoHeldOutClips=4', 'checkpoint.everySteps=100'],
  // Every clip is decoded, each time.
  ...['data.cacheMebibytes=0', 'data.frameDiskGibibytes=0', 'data.prefetchSteps=1'],
  ...['cluster.workers=2', 'cluster.detectWithin=2', 'data.decodeTimeoutSeconds=120'],
];
const LIMIT_SECONDS = 600;
/** Standing still and running, at most. */
const [STOP_MS, GO_MS] = [2500, 150];

async function main(argv: string[]): Promise<number> {
  const { values } = parseArgs({
    args: argv,
    options: { runs: { type: 'string', default: '100' }, from: { type: 'string', default: '1' } },
  });
  const [runs, from] = [Number(values.runs), Number(values.from)];
  if (!(runs > 0) || !(from > 0))
    throw new UsageError('BAD_FLAG', '--runs and --from take whole numbers');
  const folder = await mkdtemp(join(tmpdir(), 'videoloom-slow-'));
  let [alarms, failures, stops] = [0, 0, 0];
  try {
    process.chdir(folder);
    const set = FIELDS.flatMap((field) => ['--set', field]);
    const recipe = ['videobert', '--preset', 'tiny', '--out', join(folder, 'prepared'), ...set];
    const prepared = await prepareRun(recipe, process.env);
    let weights: string | undefined;
    for (let seed = from; seed < from + runs; seed++) {
      const run = await copyPrepared(prepared, join(folder, `run-${seed}`));
      let running: Running | undefined;
      let own = 0;
      const outcome = await runDisturbed(run, {
        ...{ env: process.env, withProxies: false, limitSeconds: LIMIT_SECONDS },
        disturb: async (now, ending) => {
          running = now;
          own = await slowDown(now, seed, ending);
        },
      });
      const lost = (running?.journal.events ?? []).filter(({ type }) => type === 'worker-lost');
      weights ??= outcome.weightsSha256;
      const isFailed = outcome.failure !== undefined || outcome.weightsSha256 !== weights;
      alarms += lost.length;
      failures += Number(isFailed);
      stops += own;
      const verdict = lost.length > 0 ? 'FALSE ALARM' : isFailed ? 'FAILED' : 'ok';
      say(`run ${seed}: ${verdict} ${outcome.seconds.toFixed(1)} s, decoders stopped ${own} times`);
      for (const { message } of lost) say(`  ${message ?? ''}`);
      if (outcome.failure !== undefined) say(`  ${outcome.failure}`);
      await rm(run.folder, { recursive: true, force: true });
    }
  } finally {
    process.chdir('/');
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  }
  const report = { name: 'slow-decoding', runs, stops, falseAlarms: alarms, failures };
  process.stdout.write(`${JSON.stringify(report)}\n`);
  return alarms + failures === 0 ? 0 : 1;
}

/** Until the run ends; gives how often a decoder was stopped. */
async function slowDown(running: Running, seed: number, signal_: AbortSignal): Promise<number> {
  const rng = openRng(seed, 'slow-decoding');
  const pause = (ms: number): Promise<unknown> =>
    delay(ms, undefined, { signal: signal_ }).catch(() => undefined);
  let stops = 0;
  while (!signal_.aborted) {
    const decoders = await childrenOf(workersOf(running).map(([, pid]) => pid));
    for (const pid of decoders) {
      if (!signal(pid, 'SIGSTOP')) continue;
      running.stopped.add(pid);
      stops++;
    }
    await pause(rng.integer(STOP_MS));
    for (const pid of decoders) {
      signal(pid, 'SIGCONT');
      running.stopped.delete(pid);
    }
    await pause(rng.integer(GO_MS));
  }
  return stops;
}

/** Processes that these have started: a worker of so small a model starts decoders alone. */
async function childrenOf(parents: readonly number[]): Promise<number[]> {
  const found: number[] = [];
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const stat = await readFile(`/proc/${entry}/stat`, 'utf8').catch(() => '');
    const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
    if (parents.includes(parent)) found.push(Number(entry));
  }
  return found;
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error: unknown) => process.exit(reportFatal(error)),
);
