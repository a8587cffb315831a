import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { reportFatal, UsageError } from '../../proto/errors.ts';
import { copyPrepared } from '../drill/prepared-copy.ts';
import { runDisturbed } from '../drill/running.ts';
import { prepareRun } from '../cluster.ts';
import { play, type Played } from './play.ts';
import { scheduleOf, scheduleText } from './schedule.ts';

/** A run of seconds: the start of its processes takes most of them. */
const STEPS = 30;
const FIELDS = [
  ...[`train.steps=${STEPS}`, 'train.microbatches=4', 'train.microbatchSize=2'],
  ...['model.width=16', 'model.layers=1', 'evaluate.draws=1', 'evaluate.microbatches=1'],
  ...['data.demoTrainClips=12', 'data.demoHeldOutClips=4', 'checkpoint.everySteps=5'],
  ...['cluster.workers=2', 'cluster.detectWithin=2'],
];
const LIMIT_SECONDS = 300;

/**
 * Runs a tiny training under schedules that seeds draw, each to its end, all processes real and all faults real, and
 * compares each result with that of the undisturbed run. Prints a line a seed, and JSON at the end; exits with 1 when a
 * promise broke, with the line that replays it.
 */
async function main(argv: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      seeds: { type: 'string', default: '50' },
      from: { type: 'string', default: '1' },
      /** Leaves the runs that failed. */
      keep: { type: 'boolean', default: false },
    },
  });
  const [seeds, from] = [count(values.seeds, '--seeds'), count(values.from, '--from')];
  const folder = await mkdtemp(join(tmpdir(), 'videoloom-chaos-'));
  const { env } = process;
  const played: Played[] = [];
  const startMs = performance.now();
  let hasKept = false;
  try {
    process.chdir(folder);
    // Fields of the config, as for `train`.
    const set = [...FIELDS, ...positionals].flatMap((field) => ['--set', field]);
    const recipe = ['videobert', '--preset', 'tiny', '--out', join(folder, 'prepared'), ...set];
    const prepared = await prepareRun(recipe, env);
    const reference = await runDisturbed(
      { ...(await copyPrepared(prepared, join(folder, 'undisturbed'))), workers: 2 },
      {
        ...{ env, withProxies: false, limitSeconds: LIMIT_SECONDS },
        disturb: () => Promise.resolve(),
      },
    );
    if (reference.failure !== undefined)
      throw new UsageError('CHAOS_NO_REFERENCE', `the undisturbed run: ${reference.failure}`);
    const { weightsSha256 } = reference;
    say(`undisturbed: ${reference.seconds.toFixed(1)} s, weights ${weightsSha256.slice(0, 16)}`);
    for (let seed = from; seed < from + seeds; seed++) {
      const schedule = scheduleOf(seed, STEPS);
      const run = await copyPrepared(prepared, join(folder, `seed-${seed}`));
      const one = await play(run, schedule, { env, weightsSha256, limitSeconds: LIMIT_SECONDS });
      played.push(one);
      const { problems, outcome } = one;
      const verdict = problems.length === 0 ? 'ok' : 'FAILED';
      say(
        `seed ${seed}: ${verdict} ${outcome.seconds.toFixed(1)} s, ${scheduleText(schedule)}` +
          (outcome.ledger.numRedone > 0 ? `, ${outcome.ledger.numRedone} steps redone` : ''),
      );
      for (const problem of problems) say(`  ${problem}`);
      if (problems.length > 0) say(`  replay: npm run chaos -- --seeds 1 --from ${seed} --keep`);
      if (problems.length === 0 || !values.keep)
        await rm(run.folder, { recursive: true, force: true });
      else {
        hasKept = true;
        say(`  kept: ${run.folder}`);
      }
    }
  } finally {
    process.chdir('/');
    if (!hasKept) await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  }
  const failed = played.filter(({ problems }) => problems.length > 0);
  const report = { ...figures(played), seconds: Math.round((performance.now() - startMs) / 1000) };
  process.stdout.write(`${JSON.stringify(report)}\n`);
  say(
    `${played.length - failed.length} of ${played.length} schedules ended as the undisturbed run`,
  );
  return failed.length === 0 ? 0 : 1;
}

function figures(played: readonly Played[]): object {
  const faults = played.flatMap((one) => one.faults);
  const kinds = [...new Set(faults.map(({ kind }) => kind))].sort();
  const byKind = kinds.map((kind) => {
    const own = faults.filter((fault) => fault.kind === kind);
    return {
      ...{ kind, injected: own.length },
      detectedMs: quantiles(own.map(({ detectedMs }) => detectedMs)),
      trainingAgainMs: quantiles(own.map(({ resumedMs }) => resumedMs)),
    };
  });
  const sum = (of: (one: Played) => number): number =>
    played.reduce((total, one) => total + of(one), 0);
  return {
    name: 'chaos',
    schedules: played.length,
    failed: played.filter(({ problems }) => problems.length > 0).map((one) => one.schedule.seed),
    faults: faults.length,
    samples: sum(({ outcome }) => outcome.ledger.numSamples),
    lost: sum(({ outcome }) => outcome.ledger.numLost),
    doubled: sum(({ outcome }) => outcome.ledger.numDoubled),
    stepsRedone: sum(({ outcome }) => outcome.ledger.numRedone),
    byKind,
  };
}

/** Of those that were seen; a fault near the end of a run is not always noticed. */
function quantiles(values: readonly (number | undefined)[]): object {
  const known = values.filter((value) => value !== undefined).sort((a, b) => a - b);
  const at = (share: number): number | undefined => known[Math.floor(share * (known.length - 1))];
  return { count: known.length, median: at(0.5), p95: at(0.95), max: known.at(-1) };
}

function count(text: string, flag: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new UsageError('BAD_FLAG', `${flag} is ${text}: give a whole number above 0`);
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error: unknown) => process.exit(reportFatal(error)),
);
