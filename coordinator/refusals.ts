import { status } from '@grpc/grpc-js';

import { messageOf, VideoloomError } from '../proto/errors.ts';
import { RunPhase } from '../proto/gen/videoloom/v1/run.ts';
import { RpcError } from '../proto/grpc.ts';
import type { Worker } from './membership.ts';
import type { RunState } from './run-state.ts';

/** To a call that bears a generation that is over. */
export function staleGeneration(state: RunState, theirs: number): RpcError {
  const latest = `the newest is ${state.generationNumber}`;
  const what =
    theirs > state.generationNumber
      ? `was never opened here (${latest})`
      : 'is over: its members changed';
  return new RpcError(
    status.FAILED_PRECONDITION,
    'STALE_GENERATION',
    `generation ${theirs} ${what}. Wait for the next one on the Attend stream and redo the step.`,
  );
}

/** To a call that the run has no use for at this point. */
export function notNow(state: RunState, what: string): RpcError {
  return new RpcError(
    status.FAILED_PRECONDITION,
    'NOT_NOW',
    `${what} does not fit: ${state.committedStep} of ${state.plan.totalSteps} steps are committed` +
      (state.isStopping ? ' and the run is being stopped.' : '.'),
  );
}

/** To a call after the end of the run. */
export function runOver(state: RunState): RpcError {
  const { runId } = state.plan;
  const [code, message] =
    state.phase === RunPhase.FINISHED
      ? ['RUN_FINISHED', `run ${runId} is finished; nothing is left to train.`]
      : state.phase === RunPhase.FAILED
        ? ['RUN_FAILED', `run ${runId} has failed: ${messageOf(state.failure)}`]
        : ['RUN_STOPPED', `run ${runId} was stopped; start its coordinator again to go on.`];
  return new RpcError(status.FAILED_PRECONDITION, code, message);
}

/** All steps are done, and no checkpoint holds what they gave: the run fails and can be resumed. */
export function resultNotKept({ plan, committedStep, restoreStep }: RunState): VideoloomError {
  return new VideoloomError(
    'RESULT_NOT_KEPT',
    `run ${plan.runId} has trained to step ${committedStep}, but its last checkpoint could not be written (the reason is ` +
      'in the logs of the workers). Make room on the disk of the run folder, then start the same command again: it goes ' +
      `on from ${restoreStep === 0 ? 'the start' : `the checkpoint of step ${restoreStep}`} to the same weights.`,
  );
}

/** To a worker that a worker of another host could not exchange gradients with, or it with that one. */
export function onLoopback(
  { workerId, host, tensorAddress }: Pick<Worker, 'workerId' | 'host' | 'tensorAddress'>,
  other: Worker,
  hidden: string,
): RpcError {
  return new RpcError(
    status.FAILED_PRECONDITION,
    'WORKER_ON_LOOPBACK',
    `worker "${workerId}" on host ${host} listens on ${tensorAddress}, worker "${other.workerId}" on host ${other.host} on ` +
      `${other.tensorAddress}: they cannot reach each other. Start worker "${hidden}" with --listen and an address of its ` +
      'host that the others reach; workers that `videoloom train` starts follow the address of its own --listen.',
  );
}

/** Workers that should hold equal bits do not: the run fails. */
export function replicasDiverged(
  state: RunState,
  when: string,
  disagreement: string,
): VideoloomError {
  const ranks = state.generation!.members.map(
    ({ rank, workerId }) => `rank ${rank} is "${workerId}"`,
  );
  return new VideoloomError(
    'REPLICAS_DIVERGED',
    `the workers of run ${state.plan.runId} do not hold the same values ${when}: ${disagreement} (${ranks.join(', ')}). ` +
      'Workers must run the same build on the same kind of device; if they do, check the memory of the odd one.',
  );
}

/** To a worker whose Attend stream has ended. */
export function disconnected({ workerId }: Worker, message: string): RpcError {
  return new RpcError(
    status.UNAVAILABLE,
    'WORKER_DISCONNECTED',
    `worker "${workerId}" has left: ${message}`,
    { retryable: true },
  );
}

/** To a worker that has sent no beat for too long. */
export function heartbeatLost({ workerId, vitals }: Worker, silentMs: number): RpcError {
  return new RpcError(
    status.UNAVAILABLE,
    'HEARTBEAT_LOST',
    `worker "${workerId}" was silent for ${Math.round(silentMs)} ms (last heard of in phase ${vitals.phase || '(unknown)'}): it is no member any more and may join again.`,
    { retryable: true },
  );
}

/** To a worker that beats and makes no progress. */
export function stalled({ workerId, vitals }: Worker, rank: number, stillMs: number): RpcError {
  const { phase, progress } = vitals;
  return new RpcError(
    status.UNAVAILABLE,
    'WORKER_STALLED',
    `worker "${workerId}" (rank ${rank}) has been in phase ${phase} without progress for ${Math.round(stillMs)} ms ` +
      `(its counter stands at ${progress}): it is no member any more and may join again. ` +
      'Look at what that host waits for: a device, a disk, a network; `videoloom postmortem` names its last steps.',
    { retryable: true },
  );
}

/** To a worker of a group whose members wait for each other, in vain twice. */
export function unreachable({ workerId, vitals }: Worker, rank: number, restMs: number): RpcError {
  return new RpcError(
    status.UNAVAILABLE,
    'WORKER_UNREACHABLE',
    `the members waited for each other, and so they did after they had connected anew: worker "${workerId}" ` +
      `(rank ${rank}, phase ${vitals.phase}) sits out for ${Math.round(restMs / 1000)} s. ` +
      'Can its host and those of the others reach the tensor addresses of each other?',
    { retryable: true },
  );
}

/** To a worker that kept the others waiting at a barrier; `late` are all that did. */
export function tooLate(
  { workerId, vitals }: Worker,
  late: readonly { readonly worker: Worker; readonly rank: number }[],
  limitMs: number,
): RpcError {
  const ranks = late.map(({ worker, rank }) => `${rank} ("${worker.workerId}")`).join(', ');
  return new RpcError(
    status.UNAVAILABLE,
    'BARRIER_TIMEOUT',
    `${late.length === 1 ? 'rank' : 'ranks'} ${ranks} did not come within ${limitMs} ms after the first of the others; ` +
      `worker "${workerId}" was last heard of in phase ${vitals.phase || '(unknown)'}: it is no member any more and ` +
      'may join again. If its steps are that slow, raise cluster.detectWithin.',
    { retryable: true },
  );
}

/** To the older of two equal calls. */
export function repeatedCall(): RpcError {
  return new RpcError(
    status.ABORTED,
    'REPEATED_CALL',
    'the same worker has sent this call again; the newer one gets the answer.',
  );
}
