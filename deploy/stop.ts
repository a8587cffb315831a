import { setTimeout as delay } from 'node:timers/promises';
import { CoordinatorServiceService as Rpc } from '../proto/gen/videoloom/v1/coordinator.ts';
import { RunPhase } from '../proto/gen/videoloom/v1/run.ts';
import { call } from '../proto/grpc.ts';
import { printable } from '../proto/printable.ts';
import { followRun, placeOf, type OperatorOptions } from './ask-run.ts';
import { leaderOf } from './leader.ts';
import { showLeft } from './reports/left-run.ts';

const ANSWER_TIMEOUT_MS = 10_000;
/** A coordinator stays for those who still ask it. */
const MOST_GOING_MS = 60_000;
const LOOK_AGAIN_MS = 100;

/**
 * Has a run stop after the step under way, as Ctrl-C at its launcher does, and waits until it has ended and, on this
 * machine, its coordinator too. Says how it ended; a run that had ended before is left as it is. Gives the exit code: 1
 * for a run that has failed.
 *
 * @throws UsageError `RUN_NOT_FOUND` when there is no run; VideoloomError `COORDINATOR_UNREACHABLE` when nobody answers,
 *   and the run has not ended
 */
export async function stopRun(run: string, options: OperatorOptions): Promise<number> {
  const place = await placeOf(run);
  const last = await followRun(place, options, {
    // Each that answers: one that was killed and started again has forgotten that it was asked.
    async tell(channel) {
      await call(channel, Rpc.stopRun, {}, { timeoutMs: ANSWER_TIMEOUT_MS });
    },
  });
  if (!place.isAddress) {
    await coordinatorGone(place.run);
    const left = await showLeft(place.run, false);
    if (last?.phase !== RunPhase.FAILED || left === 'failed') return left === 'failed' ? 1 : 0;
    // Its journal could not be written.
    process.stdout.write(`  ${printable(last.failure)}\n`);
    return 1;
  }
  if (last !== undefined) {
    const { runId, phase, committedStep, totalSteps, failure } = last;
    const how = { [RunPhase.FINISHED]: 'finished', [RunPhase.FAILED]: 'failed' }[phase as number];
    const why = failure === '' ? '' : `\n  ${printable(failure)}`;
    process.stdout.write(
      `${runId}: ${how ?? 'stopped'} at step ${committedStep} of ${totalSteps}${why}\n`,
    );
  }
  return last?.phase === RunPhase.FAILED ? 1 : 0;
}

/** So that whoever goes on with the run at once finds it free. Of another machine's process nobody here can tell. */
async function coordinatorGone(run: string): Promise<void> {
  const begin = performance.now();
  while ((await leaderOf(run))?.isAlive === true && performance.now() - begin < MOST_GOING_MS)
    await delay(LOOK_AGAIN_MS);
}
