/** Who leads a run is asked by its folder or by an address; past coordinators that are killed and started again. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { UsageError, VideoloomError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { CoordinatorServiceService as Rpc } from '../proto/gen/videoloom/v1/coordinator.ts';
import type { RunStatus } from '../proto/gen/videoloom/v1/run.ts';
import { call, callStream, dial, type Channel } from '../proto/grpc.ts';
import { isOver } from '../proto/run-phase.ts';
import { readRunPlan, RUN_PLAN_FILE, SUMMARY_FILE } from '../proto/run-plan.ts';
import { openSecurity } from '../proto/security-folder.ts';
import { shellWord } from '../proto/shell-word.ts';
import { leaderOf } from './leader.ts';
import { hasEnded } from './reports/left-run.ts';

/** Who calls, where the coordinator asks for it. */
export interface OperatorOptions {
  readonly tls?: string;
  readonly insecure?: boolean;
  readonly env: NodeJS.ProcessEnv;
}

/** The folder of a run, or the address (host:port) of a coordinator. */
export interface RunPlace {
  readonly run: string;
  readonly isAddress: boolean;
}

/** A coordinator that was killed is started again within it. */
const PATIENCE_MS = 10_000;
const ASK_AGAIN_MS = 250;
const ANSWER_TIMEOUT_MS = 5000;

/** @throws UsageError `RUN_NOT_FOUND` when the folder has no run */
export async function placeOf(run: string): Promise<RunPlace> {
  if (/^[^/]+:\d+$/.test(run)) return { run, isAddress: true };
  if (await isRunFolder(run)) return { run, isAddress: false };
  const within = await runsWithin(run);
  throw new UsageError(
    'RUN_NOT_FOUND',
    `${run} is neither the folder of a started run nor the address (host:port) of a coordinator` +
      (within.length === 0 ? '' : `. Name one of the runs in it: ${within.join(', ')}`),
  );
}

/** Folders of runs in a folder, of the stages of a recipe for one; those that run on this machine say so. */
async function runsWithin(folder: string): Promise<string[]> {
  const runs: string[] = [];
  for (const name of (await readdir(folder).catch(() => [])).sort()) {
    const run = join(folder, name);
    if (!(await isRunFolder(run))) continue;
    runs.push((await leaderOf(run))?.isAlive === true ? `${run} (running)` : run);
  }
  return runs;
}

/** The status as the coordinator has it now; undefined where nobody leads the run. */
export function currentStatus(
  place: RunPlace,
  options: OperatorOptions,
): Promise<RunStatus | undefined> {
  return ask(place, options, statusOf);
}

/**
 * Follows a run until it ends, and gives its last status; undefined where it has ended and its coordinator is gone.
 * @param tell called with each coordinator that answers, before it is listened to
 * @throws VideoloomError `COORDINATOR_UNREACHABLE` when nobody answers any more, and the run has not ended
 */
export async function followRun(
  place: RunPlace,
  options: OperatorOptions,
  {
    tell,
    onStatus,
  }: {
    readonly tell?: (channel: Channel) => Promise<void>;
    readonly onStatus?: (status: RunStatus) => void;
  },
): Promise<RunStatus | undefined> {
  const { run, isAddress } = place;
  /** When a coordinator last answered, or ceased to; another run may take its address. */
  const heard = { ms: performance.now(), runId: '' };
  for (let isNew = true; ; isNew = false) {
    const askedMs = performance.now();
    const last = await ask(place, options, async (channel, isOurs) => {
      const isSame = (status: RunStatus): boolean =>
        isOurs(status) && (heard.runId === '' || heard.runId === status.runId);
      if (tell !== undefined) {
        const status = await statusOf(channel);
        if (status === undefined || !isSame(status)) return undefined;
        heard.runId = status.runId;
        await tell(channel);
        heard.ms = performance.now();
      }
      let latest: RunStatus | undefined;
      try {
        const updates = callStream(channel, Rpc.watchStatus, {}, { timeoutMs: Infinity });
        for await (const { status } of updates) {
          if (status === undefined || !isSame(status)) return undefined;
          heard.runId = status.runId;
          latest = status;
          onStatus?.(status);
        }
      } finally {
        // It may have been long since the last word.
        if (latest !== undefined) heard.ms = performance.now();
      }
      return latest;
    });
    if (last !== undefined && isOver(last)) return last;
    const isLate = performance.now() - heard.ms > PATIENCE_MS;
    // A journal may be long: it is read when the coordinator falls silent, and once more before it is given up.
    const isToBeRead = isNew || isLate || heard.ms > askedMs;
    if (!isAddress && isToBeRead && (await hasEnded(run))) return undefined;
    if (isLate) throw unreachable(place);
    await delay(ASK_AGAIN_MS);
  }
}

async function statusOf(channel: Channel): Promise<RunStatus | undefined> {
  const { status } = await call(channel, Rpc.getStatus, {}, { timeoutMs: ANSWER_TIMEOUT_MS });
  return status;
}

/**
 * Asks who leads the run now. Gives undefined where nobody does: where there is no answer, or one of another run that has
 * the address by now.
 */
async function ask(
  { run, isAddress }: RunPlace,
  { tls, insecure, env }: OperatorOptions,
  question: (
    channel: Channel,
    isOurs: (status: RunStatus) => boolean,
  ) => Promise<RunStatus | undefined>,
): Promise<RunStatus | undefined> {
  const leader = isAddress ? { address: run, isAlive: true } : await leaderOf(run);
  if (leader === undefined || leader.isAlive === false) return undefined;
  // Of another machine's process nobody here can tell; where the run is finished it need not be waited for.
  if (leader.isAlive === undefined && (await exists(join(run, SUMMARY_FILE)))) return undefined;
  const plan = isAddress ? undefined : await readRunPlan(run);
  const isOurs = ({ runId }: RunStatus): boolean => plan === undefined || runId === plan.runId;
  const security = await openSecurity({
    as: { role: 'operator' },
    ...{ tls, insecure, env, runFolder: isAddress ? undefined : run },
  });
  const channel = dial(leader.address, { security, peer: { role: 'coordinator' } });
  try {
    const status = await question(channel, isOurs);
    return status !== undefined && isOurs(status) ? status : undefined;
  } catch (error) {
    if (error instanceof VideoloomError && error.retryable) return undefined;
    throw error;
  } finally {
    channel.close();
  }
}

/** Where nobody answers. */
export function unreachable({ run, isAddress }: RunPlace): VideoloomError {
  return new VideoloomError(
    'COORDINATOR_UNREACHABLE',
    isAddress
      ? `no coordinator answers at ${run}: it has ended, or it listens elsewhere. Check host and port, or name the ` +
          'run folder in place of the address'
      : `no coordinator of ${run} answers, and the run has not ended: go on with: videoloom resume ${shellWord(run)}`,
  );
}

async function isRunFolder(folder: string): Promise<boolean> {
  return (await exists(join(folder, RUN_PLAN_FILE))) || (await exists(join(folder, SUMMARY_FILE)));
}
