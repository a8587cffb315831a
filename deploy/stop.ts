import { setTimeout as delay } from 'node:timers/promises';
import { CoordinatorServiceService as Rpc } from '../proto/gen/videoloom/v1/coordinator.ts';
import { RunPhase, type RunStatus } from '../proto/gen/videoloom/v1/run.ts';
import { call, callStream } from '../proto/grpc.ts';
import { shellWord } from '../proto/shell-word.ts';
import {
  ask,
  ASK_AGAIN_MS,
  isCoordinatorAddress,
  isOver,
  PATIENCE_MS,
  unreachable,
  type OperatorOptions,
} from './ask-run.ts';
import { leaderOf } from './leader.ts';
import { hasEnded } from './reports/left-run.ts';

/**
 * Has a run stop after the step under way, as Ctrl-C at its launcher does, and waits until it has: its checkpoint is
 * written, its coordinator gone. A run that has ended, or that nobody leads, is left as it is.
 *
 * @throws UsageError `RUN_NOT_FOUND` when the folder has no run; VideoloomError `COORDINATOR_UNREACHABLE` when nobody
 *   answers at an address, or for a run that another machine leads and that has not ended
 */
export async function stopRun(run: string, options: OperatorOptions): Promise<void> {
  const isAddress = await isCoordinatorAddress(run);
  let heardMs = performance.now();
  for (;;) {
    // Again where a coordinator was killed and started anew meanwhile: it has forgotten that it was asked.
    const last = await ask(run, { ...options, isAddress }, async (channel, isOurs) => {
      const { status } = await call(channel, Rpc.getStatus, {}, { timeoutMs: 5000 });
      if (status === undefined || !isOurs(status)) return undefined;
      await call(channel, Rpc.stopRun, {}, { timeoutMs: 5000 });
      let latest: RunStatus | undefined = status;
      for await (const { status: next } of callStream(
        channel,
        Rpc.watchStatus,
        {},
        { timeoutMs: Infinity },
      )) {
        heardMs = performance.now();
        latest = next ?? latest;
      }
      return latest;
    });
    if (last !== undefined && isOver(last)) {
      if (!isAddress) await coordinatorGone(run);
      say(said(last, isAddress ? undefined : run));
      return;
    }
    if (!isAddress && (await isLeftAlone(run))) {
      say(`${run} is not running`);
      return;
    }
    if (performance.now() - heardMs > PATIENCE_MS) throw unreachable(run, isAddress);
    await delay(ASK_AGAIN_MS);
  }

  /** Ended, or without a coordinator for so long that nobody starts it again. */
  async function isLeftAlone(folder: string): Promise<boolean> {
    if (await hasEnded(folder)) return true;
    const leader = await leaderOf(folder);
    const isLate = performance.now() - heardMs > PATIENCE_MS;
    return leader === undefined || (leader.isAlive === false && isLate);
  }
}

/** So that whoever goes on with the run at once finds it free. */
async function coordinatorGone(run: string): Promise<void> {
  const begin = performance.now();
  while (performance.now() - begin < PATIENCE_MS) {
    if ((await leaderOf(run))?.isAlive !== true) return;
    await delay(ASK_AGAIN_MS);
  }
}

function said(
  { runId, phase, committedStep, totalSteps }: RunStatus,
  run: string | undefined,
): string {
  switch (phase) {
    case RunPhase.FINISHED:
      return `${runId} finished, step ${totalSteps}`;
    case RunPhase.FAILED:
      return `${runId} has failed at step ${committedStep} of ${totalSteps}`;
    default:
      return (
        `${runId} stopped after step ${committedStep} of ${totalSteps}` +
        (run === undefined ? '' : `; go on with: videoloom resume ${shellWord(run)}`)
      );
  }
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}
