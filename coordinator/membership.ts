/** Who takes part in a run: pure functions over the workers that have joined, in the order in which they did. */

import { status } from '@grpc/grpc-js';

import type { Member } from '../proto/gen/videoloom/v1/run.ts';
import { RpcError } from '../proto/grpc.ts';
import type { ProcessTime } from './time-book.ts';
import type { Vitals } from './stillness.ts';

/** A worker process that has joined. */
export interface Worker {
  readonly workerId: string;
  /** Proof of this process's join; another one of the same worker id has another. */
  readonly session: string;
  readonly host: string;
  readonly tensorAddress: string;
  readonly serviceAddress: string;
  readonly metricsAddress: string;
  readonly engine: string;
  /** The committed step whose state it holds in memory for certain; 0 = none, or nobody knows. */
  readonly stateStep: number;
  /** The generation that committed that step, or took it from a checkpoint. */
  readonly stateIn: number;
  /** Whether its Attend stream is open: only then can it be told of a generation. */
  readonly isAttending: boolean;
  /** When it was last heard of, on the coordinator's monotonic clock. */
  readonly lastBeatMs: number;
  /** What its beats told: what it does, and since when nothing of that has moved. */
  readonly vitals: Vitals;
  /** It has said that it wants to go. */
  readonly isLeaving: boolean;
  /** Name of its process, which may join more than once. */
  readonly process: string;
  /** Where that process's wall clock went. */
  readonly time: ProcessTime;
}

/**
 * The state that a generation goes on from. A step that was computed again, after the run went back, is of another
 * generation, and among another number of workers of other bits where the order of a sum hangs on that number.
 */
export interface Committed {
  readonly committedStep: number;
  readonly committedIn: number;
}

/**
 * The members of a generation that goes on from `committed`: the first workers that attend, as many as there are
 * microbatches, in the order in which they joined, so that survivors keep their order. Those that want to leave stay
 * out, unless they alone hold the state that the others need; so do those that rest, unless there is nobody else.
 */
export function chooseMembers(
  workers: readonly Worker[],
  {
    numMicrobatches,
    committed,
    isResting = () => false,
  }: {
    numMicrobatches: number;
    committed: Committed;
    isResting?: (worker: Worker) => boolean;
  },
): readonly Worker[] {
  const here = workers.filter(({ isAttending }) => isAttending);
  const holds = (worker: Worker): boolean => holdsState(worker, committed);
  const willing = here.filter(({ isLeaving }) => !isLeaving);
  const awake = willing.filter((worker) => !isResting(worker));
  const staying = (awake.length > 0 ? awake : willing).slice(0, numMicrobatches);
  const isStateLost = staying.length > 0 && here.some(holds) && !staying.some(holds);
  return isStateLost ? withHolder(here, holds, numMicrobatches) : staying;
}

/**
 * `chosen` as members of a generation that goes on from `committed`, ranked in their order. Their ranges are
 * contiguous, in rank order, cover [0, numMicrobatches), and differ in size by one at most.
 */
export function asMembers(
  chosen: readonly Worker[],
  { numMicrobatches, committed }: { numMicrobatches: number; committed: Committed },
): Member[] {
  const start = (rank: number): number => Math.floor((rank * numMicrobatches) / chosen.length);
  return chosen.map((worker, rank) => ({
    workerId: worker.workerId,
    rank,
    tensorAddress: worker.tensorAddress,
    serviceAddress: worker.serviceAddress,
    firstMicrobatch: start(rank),
    numMicrobatches: start(rank + 1) - start(rank),
    holdsState: holdsState(worker, committed),
  }));
}

/** Whether a worker has that state in memory; before the first step there is nothing to hold. */
export function holdsState(
  { stateStep, stateIn }: Pick<Worker, 'stateStep' | 'stateIn'>,
  { committedStep, committedIn }: Committed,
): boolean {
  return committedStep > 0 && stateStep === committedStep && stateIn === committedIn;
}

/** As many as there is room for, one that holds the state among them in any case. */
function withHolder(
  here: readonly Worker[],
  holds: (worker: Worker) => boolean,
  room: number,
): Worker[] {
  const holder = here.find(holds)!;
  const others = here.filter((worker) => worker !== holder).slice(0, room - 1);
  return here.filter((worker) => worker === holder || others.includes(worker));
}

/** A session's text: names its worker, so that a stranger can be told whether it was replaced or forgotten. */
export function sessionOf(workerId: string, nonce: string): string {
  return `${workerId}/${nonce}`;
}

/** The worker id in a session's text; of a text that is no session, anything. */
export function workerIdOf(session: string): string {
  return session.slice(0, session.lastIndexOf('/'));
}

/**
 * The worker of a session.
 * @throws RpcError FENCED: a newer process has joined under the same worker id; UNKNOWN_SESSION: the worker was dropped or
 * this coordinator started after it had joined, so it may join again.
 */
export function workerOf(workers: readonly Worker[], session: string): Worker {
  const worker = workers.find((candidate) => candidate.session === session);
  if (worker !== undefined) return worker;
  const workerId = workerIdOf(session);
  if (workers.some((candidate) => candidate.workerId === workerId)) throw fenced(workerId);
  throw new RpcError(
    status.FAILED_PRECONDITION,
    'UNKNOWN_SESSION',
    `session "${session}" is not known here: the worker was dropped, or the coordinator was started anew. Join again.`,
    { retryable: true },
  );
}

/** Tells a process that another one has joined as the same worker. */
export function fenced(workerId: string): RpcError {
  return new RpcError(
    status.FAILED_PRECONDITION,
    'FENCED',
    `another process has joined as worker "${workerId}" since: this one no longer counts. ` +
      'End it, or start it under a worker id of its own.',
  );
}
