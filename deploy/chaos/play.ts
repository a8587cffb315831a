import { setTimeout as delay } from 'node:timers/promises';
import { openRng } from '../../proto/random.ts';
import { inject, type Injected } from '../drill/faults.ts';
import { timesOf, type FaultTimes } from '../drill/observe.ts';
import { runDisturbed, type Running, type RunOutcome } from '../drill/running.ts';
import type { Prepared } from '../cluster.ts';
import type { Schedule } from './schedule.ts';

/** What became of a schedule. */
export interface Played {
  readonly schedule: Schedule;
  readonly outcome: RunOutcome;
  readonly faults: readonly FaultTimes[];
  /** Each promise that broke. */
  readonly problems: readonly string[];
}

export interface PlayOptions {
  readonly env: NodeJS.ProcessEnv;
  /** Of the undisturbed run. */
  readonly weightsSha256: string;
  readonly limitSeconds: number;
}

/** Runs a prepared run under a schedule and compares the result with that of the undisturbed one. */
export async function play(
  prepared: Prepared,
  schedule: Schedule,
  { env, weightsSha256, limitSeconds }: PlayOptions,
): Promise<Played> {
  const injected: Injected[] = [];
  let running: Running | undefined;
  const outcome = await runDisturbed(
    { ...prepared, workers: schedule.workers },
    {
      ...{ env, limitSeconds },
      withProxies: schedule.faults.some(({ kind }) => kind === 'drop-network'),
      disturb: async (run, signal) => {
        running = run;
        await disturb(run, schedule, { injected, signal });
      },
    },
  );
  const { ledger, leftovers, failure } = outcome;
  const problems = [
    ...(failure === undefined ? [] : [failure]),
    ...(outcome.weightsSha256 === weightsSha256
      ? []
      : [`weights ${outcome.weightsSha256 || 'none'} instead of ${weightsSha256}`]),
    ...ledger.problems,
    ...leftovers.processes.map((process) => `left a process: ${process}`),
    ...leftovers.files.map((file) => `left a temporary file: ${file}`),
    ...(injected.length > 0 ? [] : ['no fault was injected']),
  ];
  const faults = running === undefined ? [] : injected.map((one) => timesOf(one, running!));
  return { schedule, outcome, faults, problems };
}

async function disturb(
  running: Running,
  { seed, faults, diskFreeStep }: Schedule,
  { injected, signal }: { injected: Injected[]; signal: AbortSignal },
): Promise<void> {
  const healing: Promise<void>[] = [];
  for (const [index, { kind, step, delayMs, lastsMs }] of faults.entries()) {
    const isThere = (event: { type: string; step?: number }): boolean =>
      event.type === 'commit' && (event.step ?? 0) >= step;
    // Before the first commit: while the processes start.
    if (step > 0) {
      const wait = { from: 0, limitMs: 600_000, signal };
      if ((await running.journal.next(isThere, wait)) === undefined) break;
    }
    await delay(delayMs);
    if (signal.aborted || running.journal.isOver()) break;
    const rng = openRng(seed, 'victim', index);
    const fault = await inject(kind, running, { rng, graceMs: lastsMs });
    if (fault === undefined) continue;
    injected.push(fault);
    const passes = delay(lastsMs, undefined, { signal }).catch(() => undefined);
    const isAtEnd = (event: { type: string; step?: number }): boolean =>
      event.type === 'commit' && (event.step ?? 0) >= diskFreeStep;
    const ends =
      kind === 'full-disk'
        ? [running.journal.next(isAtEnd, { from: 0, limitMs: lastsMs, signal })]
        : [];
    healing.push(Promise.race([passes, ...ends]).then(fault.heal));
  }
  await Promise.all(healing);
}
