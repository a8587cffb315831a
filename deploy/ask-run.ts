import { join } from 'node:path';
import { UsageError, VideoloomError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { RunPhase, type RunStatus } from '../proto/gen/videoloom/v1/run.ts';
import { dial, type Channel } from '../proto/grpc.ts';
import { readRunPlan, RUN_PLAN_FILE, SUMMARY_FILE } from '../proto/run-plan.ts';
import { openSecurity } from '../proto/security-folder.ts';
import { shellWord } from '../proto/shell-word.ts';
import { leaderOf } from './leader.ts';

/** Who calls, where the coordinator asks for it. */
export interface OperatorOptions {
  readonly tls?: string;
  readonly insecure?: boolean;
  readonly env: NodeJS.ProcessEnv;
}

export type Asking = OperatorOptions & { readonly isAddress: boolean };

/** A coordinator that was killed is started again within it. */
export const PATIENCE_MS = 10_000;
export const ASK_AGAIN_MS = 250;

/** Whether `run` is host:port; else it is a folder. @throws UsageError `RUN_NOT_FOUND` when the folder has no run */
export async function isCoordinatorAddress(run: string): Promise<boolean> {
  if (/^[^/]+:\d+$/.test(run)) return true;
  if (await isRunFolder(run)) return false;
  throw new UsageError(
    'RUN_NOT_FOUND',
    `${run} is neither the folder of a started run nor the address (host:port) of a coordinator`,
  );
}

/**
 * Asks who leads the run now. Gives undefined where nobody does: where there is no answer, or one of another run that has
 * the address by now.
 */
export async function ask(
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

export function unreachable(run: string, isAddress = true): VideoloomError {
  return new VideoloomError(
    'COORDINATOR_UNREACHABLE',
    isAddress
      ? `no coordinator answers at ${run}: it has ended, or it listens elsewhere. Check host and port, or name the ` +
          'run folder in place of the address'
      : `no coordinator of ${run} answers, and the run has not ended: go on with: videoloom resume ${shellWord(run)}`,
  );
}

export function isOver({ phase }: RunStatus): boolean {
  return phase === RunPhase.FINISHED || phase === RunPhase.FAILED || phase === RunPhase.STOPPED;
}

async function isRunFolder(folder: string): Promise<boolean> {
  return (await exists(join(folder, RUN_PLAN_FILE))) || (await exists(join(folder, SUMMARY_FILE)));
}
