import { readdir, readFile, realpath, rm, writeFile } from 'node:fs/promises';
import { join, relative, resolve, sep } from 'node:path';
import { UsageError } from '../../proto/errors.ts';
import { makeOutputFolder } from '../../proto/output-path.ts';
import { openRng, shuffled, type Rng } from '../../proto/random.ts';
import { readRunPlan, SUMMARY_FILE, type RunPlan } from '../../proto/run-plan.ts';
import { prepareRun, type Prepared } from '../cluster.ts';
import { ProcessFailed } from '../processes.ts';
import { damageData, dataRootOf } from './damage.ts';
import { whyNoFullDisk } from './disk.ts';
import { inject, type FaultKind } from './faults.ts';
import { observe, type FaultReport } from './observe.ts';
import { copyPrepared } from './prepared-copy.ts';
import { drillReport, reportText, type DrillReport } from './report.ts';
import { runDisturbed, type Running, type RunOutcome } from './running.ts';

/** What a drill can do beside the faults of a running run. */
export type DrillFault = Exclude<FaultKind, 'kill-all'> | 'corrupt';

export const DRILL_FAULTS: readonly DrillFault[] = [
  'kill-worker',
  'pause-worker',
  'kill-coordinator',
  'join',
  'preempt',
  'corrupt',
  'full-disk',
  'drop-network',
];

export interface DrillOptions {
  /** Arguments of `worker/main.ts prepare` without `--out`. */
  readonly prepareArgs: readonly string[];
  /** Whether the length of the run was given: then it stays. */
  readonly hasSteps: boolean;
  /** Folder of the drill. */
  readonly out: string;
  /** Finished run of the same config to compare with, instead of training one. */
  readonly against?: string | undefined;
  /** All that can be done when empty. */
  readonly faults: readonly DrillFault[];
  readonly graceSeconds: number;
  /** Share of the media to damage. */
  readonly corruptShare: number;
  readonly seed: number;
  readonly json: boolean;
  readonly env: NodeJS.ProcessEnv;
}

/** A fault that was asked for and could not be injected. */
export interface Left {
  readonly kind: DrillFault;
  readonly why: string;
}

const MARKER = 'drill.json';
/** Between two faults a run trains for a while. */
const SETTLE_MS = 500;
/** A run whose faults would not fit into it is made longer by so much more than they are thought to take. */
const SLACK = 1.6;

/** Trains a run undisturbed and once more under faults, and tells what they did. Gives the exit code: 1 if a promise broke. */
export async function drill(options: DrillOptions): Promise<number> {
  const out = resolve(options.out);
  const { against } = options;
  // Before anything is removed: what is to be compared with must outlast the drill.
  if (against !== undefined) await checkOutside(against, out);
  const compared = against === undefined ? undefined : await resultOf(against);
  await emptyFolder(out);
  const rng = openRng(options.seed, 'drill');
  let prepared: Prepared;
  try {
    prepared = await prepareIn(options, out, []);
  } catch (error) {
    // It has said itself what went wrong.
    if (error instanceof ProcessFailed) return error.exit.code ?? 1;
    throw error;
  }
  let plan = await readRunPlan(prepared.folder);
  const { kinds, left } = await possibleFaults(options, prepared, plan);

  // --- Both runs see the same damage.
  const damaged = kinds.includes('corrupt') ? await damage(options, prepared, out) : [];
  if (damaged.length > 0)
    say(`damaged ${damaged.length} media files in ${shown(join(out, 'data'))}`);

  // --- The undisturbed run, as long as the faults need.
  const running = shuffled(
    kinds.filter((kind): kind is FaultKind & DrillFault => kind !== 'corrupt'),
    rng.fork('order'),
  );
  let undisturbed: RunOutcome | undefined;
  let expected: Result;
  if (compared !== undefined) expected = compared;
  else {
    for (;;) {
      say(`undisturbed: ${plan.totalSteps} steps, ${prepared.workers} workers`);
      const folder = join(out, 'undisturbed');
      undisturbed = await runUndisturbed(options, await copyPrepared(prepared, folder));
      if (undisturbed.failure !== undefined) break;
      const longer = stepsNeeded(running, plan, undisturbed);
      if (options.hasSteps || longer <= plan.totalSteps) break;
      say(`too short for ${running.length} faults: once more, with ${longer} steps`);
      await rm(folder, { recursive: true, force: true });
      const { folder: old } = prepared;
      prepared = await prepareIn(options, out, [`train.steps=${longer}`], 'longer');
      if (damaged.length > 0) await damage(options, prepared, out);
      await rm(old, { recursive: true, force: true });
      plan = await readRunPlan(prepared.folder);
    }
    const { weightsSha256, ledger } = undisturbed;
    expected = { weightsSha256, substituted: ledger.numSubstituted };
  }

  // --- The disturbed one.
  const reports: FaultReport[] = [];
  say(`disturbed: ${running.join(', ') || 'by nothing but the damage'}`);
  const outcome = await runDisturbed(await copyPrepared(prepared, join(out, 'disturbed')), {
    env: options.env,
    withProxies: running.includes('drop-network'),
    limitSeconds: limitSeconds(undisturbed),
    disturb: (run, signal) =>
      disturb(run, { ...options, kinds: running, plan, rng, reports, left, signal }),
  });
  const report = drillReport({
    ...{ seed: options.seed, folder: shown(out), plan, workers: prepared.workers },
    ...{ reports, left, damaged, expected, undisturbed, outcome },
  });
  await writeFile(join(out, MARKER), `${JSON.stringify(report, undefined, 2)}\n`);
  process.stdout.write(
    options.json ? `${JSON.stringify(report, undefined, 2)}\n` : `${reportText(report)}\n`,
  );
  return exitCode(report);
}

interface Disturbing {
  readonly kinds: readonly FaultKind[];
  readonly plan: RunPlan;
  readonly rng: Rng;
  readonly graceSeconds: number;
  readonly reports: FaultReport[];
  readonly left: Left[];
  readonly signal: AbortSignal;
}

/** One fault after the other, each at a moment that the seed draws, once the run is whole again after the last. */
async function disturb(running: Running, disturbing: Disturbing): Promise<void> {
  const { kinds, plan, rng, reports, left, signal } = disturbing;
  const { journal } = running;
  const { detectWithinMs, totalSteps } = plan;
  for (const [index, kind] of kinds.entries()) {
    const draw = rng.fork(kind);
    const moment = Math.ceil((totalSteps * 0.7 * (index + draw.uniform())) / kinds.length);
    const limitMs = Math.max(120_000, 60 * detectWithinMs);
    const isThere = ({ type, step = 0 }: { type: string; step?: number }): boolean =>
      type === 'commit' && step > moment;
    await journal.next(isThere, { from: 0, limitMs: 3_600_000, signal });
    // In the middle of a step, not just after one.
    await new Promise((resolve) => setTimeout(resolve, SETTLE_MS * draw.uniform()));
    const graceMs = 1000 * disturbing.graceSeconds;
    const isLate = journal.isOver() || signal.aborted;
    const injected = isLate ? undefined : await inject(kind, running, { rng: draw, graceMs });
    if (injected === undefined) {
      const why = `the run was over before; give it more steps than ${totalSteps}`;
      left.push({ kind: kind as DrillFault, why });
      continue;
    }
    const report = await observe(injected, running, {
      ...{ limitMs, patienceMs: 5 * detectWithinMs, healAfterMs: SETTLE_MS, signal },
    });
    reports.push(report);
    say(`  ${kind} of ${report.victim} after step ${report.step}`);
    await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
  }
}

/** What of the asked faults can be done here, and why the rest cannot. */
async function possibleFaults(
  { faults }: DrillOptions,
  prepared: Prepared,
  plan: RunPlan,
): Promise<{ kinds: DrillFault[]; left: Left[] }> {
  const asked = faults.length > 0 ? faults : DRILL_FAULTS;
  const root = await dataRootOf(prepared);
  const noDisk = asked.includes('full-disk') ? await whyNoFullDisk() : undefined;
  const reasons: Partial<Record<DrillFault, string | undefined>> = {
    join:
      plan.microbatches > prepared.workers
        ? undefined
        : `a step has ${plan.microbatches} microbatches for ${prepared.workers} workers: one more would only wait. ` +
          'Give fewer --workers',
    corrupt: root.startsWith('/')
      ? undefined
      : `the data are at ${root}: only files of this machine are copied to be damaged`,
    'full-disk': noDisk,
  };
  const left = asked.flatMap((kind) => {
    const why = reasons[kind];
    return why === undefined ? [] : [{ kind, why }];
  });
  return { kinds: asked.filter((kind) => reasons[kind] === undefined), left };
}

/** How long the undisturbed run would have to be, from what processes needed to start and steps to train in it. */
function stepsNeeded(
  kinds: readonly FaultKind[],
  { totalSteps, detectWithinMs, checkpointEverySteps }: RunPlan,
  { seconds, trainingSeconds }: RunOutcome,
): number {
  const startSeconds = Math.max(1, seconds - trainingSeconds);
  const stepSeconds = Math.max(0.001, trainingSeconds / Math.max(1, totalSteps - 1));
  const found = (2.5 * detectWithinMs) / 1000;
  const cost = (kind: FaultKind): number => {
    if (kind === 'pause-worker' || kind === 'drop-network') return found + 1;
    if (kind === 'full-disk') return 2 * checkpointEverySteps * stepSeconds;
    return startSeconds;
  };
  const needed = kinds.reduce((sum, kind) => sum + 1 + cost(kind), 0);
  return Math.ceil((SLACK * needed) / stepSeconds);
}

function prepareIn(
  { prepareArgs, against, env, faults }: DrillOptions,
  out: string,
  overrides: readonly string[],
  name = 'prepared',
): Promise<Prepared> {
  const corrupts = faults.length === 0 || faults.includes('corrupt');
  const set = [
    // Frames of whole films, decoded before, are not to be found.
    ...(corrupts ? ['data.frameDiskGibibytes=0', 'data.cacheMebibytes=0'] : []),
    ...overrides,
  ].flatMap((field) => ['--set', field]);
  const folder = against === undefined ? join(out, name) : against;
  return prepareRun([...prepareArgs, '--out', folder, ...set], env);
}

async function damage(
  { corruptShare, seed }: DrillOptions,
  prepared: Prepared,
  out: string,
): Promise<string[]> {
  const copy = join(out, 'data');
  await rm(copy, { recursive: true, force: true });
  return damageData(prepared, { copy, share: corruptShare, seed });
}

function runUndisturbed(options: DrillOptions, prepared: Prepared): Promise<RunOutcome> {
  const disturb = (): Promise<void> => Promise.resolve();
  const limit = { withProxies: false, limitSeconds: 86_400 };
  return runDisturbed(prepared, { env: options.env, ...limit, disturb });
}

/** A disturbed run may take long, but not for ever. */
function limitSeconds(undisturbed: RunOutcome | undefined): number {
  return undisturbed === undefined ? 86_400 : Math.max(600, 10 * undisturbed.seconds);
}

/** What the disturbed run has to end with. */
interface Result {
  readonly weightsSha256: string;
  readonly substituted: number | undefined;
}

/** @throws UsageError DRILL_AGAINST_OWN: the folder of a drill is emptied when it begins */
async function checkOutside(run: string, out: string): Promise<void> {
  const [place, folder] = await Promise.all(
    [run, out].map((path) => realpath(path).catch(() => resolve(path))),
  );
  if (!`${place!}${sep}`.startsWith(`${folder!}${sep}`)) return;
  throw new UsageError(
    'DRILL_AGAINST_OWN',
    `--against ${run} lies in ${shown(out)}, the folder of this drill, which is emptied first. Give --out another ` +
      'folder, or move the run out of it',
  );
}

async function resultOf(run: string): Promise<Result> {
  try {
    const text = await readFile(join(run, SUMMARY_FILE), 'utf8');
    const { weightsSha256, skippedSamples } = JSON.parse(text) as {
      weightsSha256: string;
      skippedSamples: number;
    };
    return { weightsSha256, substituted: skippedSamples };
  } catch (error) {
    throw new UsageError(
      'RUN_NOT_FINISHED',
      `${run} has no summary.json: only a finished run can be compared with. Leave --against out to train one`,
      { cause: error },
    );
  }
}

/** A folder for the drill: new, or that of an earlier one, which goes. */
async function emptyFolder(out: string): Promise<void> {
  const there = await readdir(out).catch((): string[] => []);
  if (there.length > 0 && !there.includes(MARKER)) {
    throw new UsageError(
      'DRILL_FOLDER_IN_USE',
      `${out} holds something else than a drill: give --out another folder`,
    );
  }
  await rm(out, { recursive: true, force: true });
  await makeOutputFolder(out);
  await writeFile(join(out, MARKER), '{}\n');
}

function exitCode({ passed }: DrillReport): number {
  return passed ? 0 : 1;
}

function shown(path: string): string {
  return relative(process.cwd(), path) || path;
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}
