import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { UsageError, VideoloomError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { CoordinatorServiceService as Rpc } from '../proto/gen/videoloom/v1/coordinator.ts';
import { RunPhase, type RunStatus } from '../proto/gen/videoloom/v1/run.ts';
import { call, callStream, dial, type Channel } from '../proto/grpc.ts';
import { readRunPlan, RUN_PLAN_FILE, SUMMARY_FILE } from '../proto/run-plan.ts';
import { openSecurity } from '../proto/security-folder.ts';
import { shellWord } from '../proto/shell-word.ts';
import { leaderOf } from './leader.ts';
import { hasEnded, showLeft } from './reports/left-run.ts';
import { openRunView, summary, type Outcome } from './view.ts';

export interface StatusOptions {
  readonly json?: boolean;
  readonly watch?: boolean;
  readonly tls?: string;
  readonly insecure?: boolean;
  readonly env: NodeJS.ProcessEnv;
}

/**
 * Prints the status of a run: of its coordinator while that lives, else what it left behind.
 *
 * @throws UsageError `RUN_NOT_FOUND` when the folder has no run; VideoloomError `COORDINATOR_UNREACHABLE` when nobody
 *   answers at an address, or nobody any more for a run that is watched and has not ended
 */
export async function showStatus(run: string, options: StatusOptions): Promise<void> {
  const isAddress = /^[^/]+:\d+$/.test(run);
  if (!isAddress && !(await isRunFolder(run))) {
    throw new UsageError(
      'RUN_NOT_FOUND',
      `${run} is neither the folder of a started run nor the address (host:port) of a coordinator`,
    );
  }
  const asJson = options.json === true;
  if (options.watch === true) {
    await watchStatus(run, { ...options, isAddress });
    return;
  }
  const status = await ask(run, { ...options, isAddress }, async (channel) => {
    const response = await call(channel, Rpc.getStatus, {}, { timeoutMs: 5000 });
    return response.status;
  });
  if (status !== undefined) print(status, asJson, run);
  else if (isAddress) throw unreachable(run);
  else await showWhatIsLeft(run, asJson);
}

type Asking = StatusOptions & { readonly isAddress: boolean };

/** A coordinator that was killed is started again within it. */
const PATIENCE_MS = 10_000;
const ASK_AGAIN_MS = 250;

/** Shows a run until it ends, past coordinators that are killed and started again. */
async function watchStatus(run: string, options: Asking): Promise<void> {
  const asJson = options.json === true;
  const view = openRunView(process.stdout);
  let heardMs = performance.now();
  for (let isNew = true; ; isNew = false) {
    const askedMs = performance.now();
    const last = await ask(run, options, async (channel, isOurs) => {
      let latest: RunStatus | undefined;
      for await (const { status } of callStream(
        channel,
        Rpc.watchStatus,
        {},
        { timeoutMs: Infinity },
      )) {
        if (status === undefined || !isOurs(status)) return undefined;
        heardMs = performance.now();
        latest = status;
        if (asJson) process.stdout.write(`${JSON.stringify(status)}\n`);
        else view.show(status);
      }
      return latest;
    });
    if (last !== undefined && isOver(last)) {
      view.end();
      if (!asJson) print(last, asJson, run);
      return;
    }
    const isLate = performance.now() - heardMs > PATIENCE_MS;
    // A journal may be long: it is read when the coordinator falls silent, and once more before it is given up.
    const isToBeRead = isNew || isLate || heardMs > askedMs;
    if (!options.isAddress && isToBeRead && (await hasEnded(run))) {
      view.end();
      await showWhatIsLeft(run, asJson);
      return;
    }
    if (isLate) {
      view.end();
      throw unreachable(run, options.isAddress);
    }
    await delay(ASK_AGAIN_MS);
  }
}

/**
 * Asks who leads the run now. Gives undefined where nobody does: where there is no answer, or one of another run that has
 * the address by now.
 */
async function ask(
  run: string,
  { isAddress, tls, insecure, env }: Asking,
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

function unreachable(run: string, isAddress = true): VideoloomError {
  return new VideoloomError(
    'COORDINATOR_UNREACHABLE',
    isAddress
      ? `no coordinator answers at ${run}: it has ended, or it listens elsewhere. Check host and port, or name the ` +
          'run folder in place of the address'
      : `no coordinator of ${run} answers, and the run has not ended: go on with: videoloom resume ${shellWord(run)}`,
  );
}

function isOver({ phase }: RunStatus): boolean {
  return phase === RunPhase.FINISHED || phase === RunPhase.FAILED || phase === RunPhase.STOPPED;
}

async function isRunFolder(folder: string): Promise<boolean> {
  return (await exists(join(folder, RUN_PLAN_FILE))) || (await exists(join(folder, SUMMARY_FILE)));
}

/** The figures of a finished run, else how far it came. */
async function showWhatIsLeft(folder: string, asJson: boolean): Promise<void> {
  const left = await readJson<Outcome & { runId: string; step: number }>(
    join(folder, SUMMARY_FILE),
  );
  if (left === undefined) {
    await showLeft(folder, asJson);
    return;
  }
  const text = `${left.runId}: finished, step ${left.step}\n${summary(left, { folder })}`;
  process.stdout.write(`${asJson ? JSON.stringify(left) : text}\n`);
}

function print(status: RunStatus, asJson: boolean, folder: string): void {
  if (asJson) {
    process.stdout.write(`${JSON.stringify(status)}\n`);
    return;
  }
  const phase = Object.entries(RunPhase).find(([, value]) => value === status.phase)?.[0] ?? '';
  process.stdout.write(
    `${status.runId}: ${phase.toLowerCase()}, step ${status.committedStep} of ${status.totalSteps}\n` +
      `${summary(status, { folder })}\n`,
  );
}

async function readJson<T>(file: string): Promise<T | undefined> {
  try {
    return JSON.parse(await readFile(file, 'utf8')) as T;
  } catch {
    return undefined;
  }
}
