/**
 * The state machine of a run: `transition(state, event, now)` gives the next state and what to do about it. It reads no
 * clock, file or socket, so that any history can be played to it. What it promises:
 *
 * - one generation at a time, its number larger than every one before; calls that bear another are refused;
 * - a step is committed once every member of one generation has voted for it, and all of them said the same;
 * - a commit stands in the journal before anybody hears of it (the order of the effects);
 * - a generation goes on from the newest committed step that a member holds in memory, else from the newest checkpoint;
 *   its members hold the same bits of it.
 */

import { status } from '@grpc/grpc-js';

import { meansOwnMachine, parseAddress } from '../proto/address.ts';
import type { VideoloomError } from '../proto/errors.ts';
import type {
  CheckpointFile,
  CommitStepRequest,
  CommitStepResponse,
  ReportCheckpointPartRequest,
  ReportCheckpointPartResponse,
  ReportResultRequest,
  ReportResultResponse,
} from '../proto/gen/videoloom/v1/coordinator.ts';
import { RunPhase } from '../proto/gen/videoloom/v1/run.ts';
import type { Generation, Member } from '../proto/gen/videoloom/v1/run.ts';
import { RpcError } from '../proto/grpc.ts';
import { isOver } from '../proto/run-phase.ts';
import type { RunPlan } from '../proto/run-plan.ts';
import { positionOf } from '../proto/sample-order.ts';
import { NO_TIME } from '../proto/time-ledger.ts';
import { timeLimits, type TimeLimits } from '../proto/time-limits.ts';
import { findDisagreement, resultStatement, stepStatement } from './agreement.ts';
import type { JournalEvent, JournaledSkip, LossReason } from './journal-events.ts';
import { asMembers, chooseMembers, fenced, holdsState, workerOf } from './membership.ts';
import type { Committed, Worker } from './membership.ts';
import {
  disconnected,
  heartbeatLost,
  notNow,
  onLoopback,
  repeatedCall,
  resultNotKept,
  replicasDiverged,
  runOver,
  stalled,
  staleGeneration,
  tooLate,
  unreachable,
} from './refusals.ts';
import {
  afterBeat,
  isBusyFor,
  isWaiting,
  NEWBORN,
  stillnessLimitMs,
  withGap,
} from './stillness.ts';
import type { Beat, GapsByPhase } from './stillness.ts';
import { closingTime, UNTOLD } from './time-book.ts';
import type { ProcessTime } from './time-book.ts';

/** One member's say, and the call that waits for the answer. */
interface Ballot<Request> {
  readonly session: string;
  readonly callId: number;
  readonly request: Request;
  readonly atMs: number;
}

/** What the members have said so far; `sinceMs` is when the first of them did. */
interface Poll<Request> {
  readonly sinceMs: number;
  readonly ballots: readonly Ballot<Request>[];
}

/** A checkpoint whose parts are being written. */
interface PendingCheckpoint {
  readonly step: number;
  readonly sinceMs: number;
  readonly generation: number;
  /** Who has to report a part. */
  readonly workerIds: readonly string[];
  /** The parts by worker id. */
  readonly parts: ReadonlyMap<string, readonly CheckpointFile[]>;
}

/** The answer to the votes of the last committed step, for those who did not receive it. */
interface LastCommit {
  readonly step: number;
  readonly generation: number;
  readonly workerIds: readonly string[];
  readonly response: CommitStepResponse;
}

/** Everything that is known of a run. */
export interface RunState {
  readonly plan: RunPlan;
  readonly limits: TimeLimits;
  /** How long phases stood still so far, over all workers. */
  readonly gaps: GapsByPhase;
  readonly phase: RunPhase;
  /** In the order in which they joined. */
  readonly workers: readonly Worker[];
  /** The membership in force; undefined while there are too few workers. */
  readonly generation: Generation | undefined;
  /** Sessions of its members, by rank. */
  readonly memberSessions: readonly string[];
  /** Highest generation number ever used. */
  readonly generationNumber: number;
  /** Whether this process has opened a generation: from then on one worker is enough. */
  readonly hasStarted: boolean;
  /** Since when somebody who attends waits for the first generation of this process. */
  readonly waitingSinceMs: number | undefined;
  readonly committedStep: number;
  /** The generation that committed it, or took it from a checkpoint; 0 where that is not known. */
  readonly committedIn: number;
  /** The highest step ever committed, whether or not it still counts: a commit up to here is one made again. */
  readonly highestStep: number;
  readonly lastCommit: LastCommit | undefined;
  /** Step of the newest whole checkpoint; 0 = none. */
  readonly restoreStep: number;
  /** That of the checkpoint that is still being read back: as long as it is the newest, nothing goes on from it. */
  readonly uncheckedStep: number | undefined;
  readonly checkpoint: PendingCheckpoint | undefined;
  /** Checkpoints whose parts are all there and whose manifest is being written: by step, the calls that wait for it. */
  readonly completing: ReadonlyMap<number, readonly number[]>;
  /** How often the checkpoint of the last step was written again. */
  readonly numResultTries: number;
  /** A checkpoint was lost with a worker: take one after the next step. */
  readonly isCheckpointDue: boolean;
  readonly votes: Poll<CommitStepRequest> | undefined;
  readonly results: Poll<ReportResultRequest> | undefined;
  readonly isStopRequested: boolean;
  /** The last step before a requested stop is committed: no generation is opened any more. */
  readonly isStopping: boolean;
  /** Why the run failed. */
  readonly failure: VideoloomError | undefined;
  readonly lastTickMs: number;
  /** When a generation was opened or a step committed last. */
  readonly lastProgressMs: number;
  /** Since then the stall was told of; the same members were given another try. */
  readonly stall: { readonly isTold: boolean; readonly isRetried: boolean };
  /** Workers that the others could not reach, by id: they join again at once, and would stop the others again. */
  readonly rests: ReadonlyMap<string, Rest>;
}

/** How long a worker sits out; the next time twice as long, until a step is committed with it. */
interface Rest {
  readonly lengthMs: number;
  readonly untilMs: number;
}

/** What can happen to a run. Call events carry a `callId` that exactly one answer or refusal names later. */
export type RunEvent =
  | { readonly type: 'join'; readonly worker: Joiner }
  | { readonly type: 'attend'; readonly session: string }
  | {
      readonly type: 'beat';
      readonly session: string;
      readonly step: number;
      /** The generation that committed it. */
      readonly stateIn: number;
      readonly beat: Beat;
      readonly isLeaving: boolean;
      readonly time: ProcessTime;
    }
  | { readonly type: 'detach'; readonly session: string; readonly message: string }
  | ({ readonly type: 'vote'; readonly request: CommitStepRequest } & CallEvent)
  | ({ readonly type: 'result'; readonly request: ReportResultRequest } & CallEvent)
  | ({ readonly type: 'part'; readonly request: ReportCheckpointPartRequest } & CallEvent)
  | ({ readonly type: 'checkpoint-settled' } & CheckpointOutcome)
  /** The checkpoint to go on from is damaged; `step` is the newest whole one, 0 = none. */
  | { readonly type: 'restore-point-lost'; readonly step: number }
  /** The checkpoint that was still being read back has been; where it is damaged, that was told before. */
  | { readonly type: 'restore-point-checked' }
  | { readonly type: 'stop' }
  | { readonly type: 'fail'; readonly error: VideoloomError }
  | { readonly type: 'tick' };

interface CallEvent {
  readonly callId: number;
}

/** A worker that joins. */
export type Joiner = Omit<Worker, 'isAttending' | 'lastBeatMs' | 'vitals' | 'isLeaving' | 'time'>;

/** How the writing of a manifest ended. */
interface CheckpointOutcome {
  readonly step: number;
  readonly generation: number;
  readonly sizeBytes: number;
  readonly failure: string | undefined;
}

/** What answers a call. */
export type RunResponse = CommitStepResponse | ReportResultResponse | ReportCheckpointPartResponse;

/** What is to be done, in this order. */
export type RunEffect =
  | { readonly type: 'journal'; readonly event: JournalEvent; readonly sync: boolean }
  | {
      readonly type: 'announce';
      readonly sessions: readonly string[];
      readonly generation: Generation;
    }
  | { readonly type: 'answer'; readonly callId: number; readonly response: RunResponse }
  | { readonly type: 'refuse'; readonly callId: number; readonly error: VideoloomError }
  /** Tell a worker that wants to leave that it may. */
  | { readonly type: 'release'; readonly session: string }
  /** End the Attend stream of a session. */
  | { readonly type: 'dismiss'; readonly session: string; readonly error: VideoloomError }
  | {
      readonly type: 'write-manifest';
      readonly step: number;
      readonly generation: number;
      readonly files: readonly CheckpointFile[];
    }
  | { readonly type: 'stalled'; readonly message: string }
  /** The run ends: phase FINISHED, STOPPED or FAILED. */
  | { readonly type: 'over' };

/** Where a run stands when a coordinator takes it over. */
export interface RunOrigin {
  readonly committedStep: number;
  readonly committedIn: number;
  readonly restoreStep: number;
  readonly uncheckedStep?: number | undefined;
  readonly generationNumber: number;
  readonly highestStep: number;
  readonly isFinished: boolean;
}

/** The state before anybody has joined. */
export function initialRunState(plan: RunPlan, origin: RunOrigin, nowMs: number): RunState {
  return {
    plan,
    limits: timeLimits(plan),
    gaps: {},
    phase: origin.isFinished ? RunPhase.FINISHED : RunPhase.WAITING,
    workers: [],
    generation: undefined,
    memberSessions: [],
    generationNumber: origin.generationNumber,
    hasStarted: false,
    waitingSinceMs: undefined,
    committedStep: origin.committedStep,
    committedIn: origin.committedIn,
    highestStep: origin.highestStep,
    lastCommit: undefined,
    restoreStep: origin.restoreStep,
    uncheckedStep: origin.uncheckedStep,
    checkpoint: undefined,
    completing: new Map(),
    numResultTries: 0,
    isCheckpointDue: false,
    votes: undefined,
    results: undefined,
    isStopRequested: false,
    isStopping: false,
    failure: undefined,
    lastTickMs: nowMs,
    lastProgressMs: nowMs,
    stall: NO_STALL,
    rests: new Map(),
  };
}

/**
 * So long those who are there wait at first for the others that the plan wants: where the run begins, and where it goes
 * on. A machine may be gone for good.
 */
const PATIENCE_MS = { atBeginning: 60_000, goingOn: 15_000 } as const;

/** A disk that stays full is not waited for: the run ends as failed and can be resumed. */
const MAX_RESULT_TRIES = 3;

const NO_STALL: RunState['stall'] = { isTold: false, isRetried: false };

/**
 * What `event` makes of `state`, at `nowMs` on a clock that never goes back.
 * @throws RpcError when a call is refused at once; the state is then as it was
 */
export function transition(
  state: RunState,
  event: RunEvent,
  nowMs: number,
): { readonly state: RunState; readonly effects: readonly RunEffect[] } {
  const turn: Turn = { state: { ...state }, effects: [], nowMs };
  react(turn, event);
  return { state: turn.state, effects: turn.effects };
}

/**
 * The member behind a call of the current generation.
 * @throws RpcError FENCED, UNKNOWN_SESSION, STALE_GENERATION, NOT_A_MEMBER
 */
export function memberOf(state: RunState, session: string, generation: number): Member {
  const { workerId } = workerOf(state.workers, session);
  if (state.generation?.number !== generation) throw staleGeneration(state, generation);
  const member = state.generation.members[state.memberSessions.indexOf(session)];
  if (member !== undefined) return member;
  throw new RpcError(
    status.FAILED_PRECONDITION,
    'NOT_A_MEMBER',
    `worker "${workerId}" is no member of generation ${generation}: wait for one that lists it.`,
  );
}

/** One call of `transition`: the state so far and what is to be done. */
interface Turn {
  readonly state: { -readonly [Key in keyof RunState]: RunState[Key] };
  readonly effects: RunEffect[];
  readonly nowMs: number;
}

function react(turn: Turn, event: RunEvent): void {
  switch (event.type) {
    case 'join':
      join(turn, event.worker);
      return;
    case 'attend':
      attend(turn, event.session);
      return;
    case 'beat':
      beat(turn, event);
      return;
    case 'detach':
      detach(turn, event.session, event.message);
      return;
    case 'vote':
      vote(turn, event);
      return;
    case 'result':
      report(turn, event);
      return;
    case 'part':
      takePart(turn, event);
      return;
    case 'checkpoint-settled':
      settleCheckpoint(turn, event);
      return;
    case 'restore-point-lost':
      loseRestorePoint(turn, event.step);
      return;
    case 'restore-point-checked':
      trustRestorePoint(turn);
      return;
    case 'stop':
      stop(turn);
      return;
    case 'fail':
      fail(turn, event.error);
      return;
    case 'tick':
      tick(turn);
      return;
  }
}

// Workers come and go

const MAX_WORKERS = 4096;

function join(turn: Turn, joiner: Joiner): void {
  const { state } = turn;
  if (isOver(state)) throw runOver(state);
  if (state.workers.length >= MAX_WORKERS) {
    throw new RpcError(
      status.RESOURCE_EXHAUSTED,
      'TOO_MANY_WORKERS',
      `run ${state.plan.runId} has ${MAX_WORKERS} workers already; end some before adding "${joiner.workerId}".`,
    );
  }
  const { workerId, host, engine } = joiner;
  checkReachable(state.workers, joiner);
  const predecessor = state.workers.find((worker) => worker.workerId === workerId);
  if (predecessor !== undefined) {
    lose(turn, predecessor, 'replaced', fenced(workerId));
    closeRanks(turn);
  }
  journal(turn, { type: 'worker-joined', workerId, host, engine });
  const fresh = { isAttending: false, isLeaving: false, lastBeatMs: turn.nowMs };
  const unknown = { vitals: NEWBORN, time: UNTOLD };
  turn.state.workers = [...turn.state.workers, { ...joiner, ...fresh, ...unknown }];
}

/** @throws RpcError WORKER_ON_LOOPBACK: an address that leads nowhere on another worker's host would stop them both */
function checkReachable(workers: readonly Worker[], joiner: Joiner): void {
  const isHidden = ({ tensorAddress }: Joiner): boolean =>
    meansOwnMachine(parseAddress(tensorAddress).host);
  for (const other of workers) {
    if (!other.isAttending || other.host === joiner.host) continue;
    if (other.workerId === joiner.workerId) continue;
    const hidden = [joiner, other].find(isHidden);
    if (hidden !== undefined) throw onLoopback(joiner, other, hidden.workerId);
  }
}

function attend(turn: Turn, session: string): void {
  if (isOver(turn.state)) throw runOver(turn.state);
  workerOf(turn.state.workers, session);
  updateWorker(turn, session, { isAttending: true, lastBeatMs: turn.nowMs });
  const { generation } = turn.state;
  // That it is no member tells it to wait for the next one.
  if (generation !== undefined)
    turn.effects.push({ type: 'announce', sessions: [session], generation });
  else openGeneration(turn);
}

function beat(turn: Turn, event: RunEvent & { type: 'beat' }): void {
  const { session, step, stateIn, beat: told, isLeaving, time } = event;
  const { state } = turn;
  const worker = state.workers.find((candidate) => candidate.session === session);
  if (worker === undefined) return;
  const { vitals, ended } = afterBeat(worker.vitals, told);
  if (ended !== undefined) state.gaps = withGap(state.gaps, ended.phase, ended.gapMs);
  // A member that holds what its generation goes on from keeps it until the next commit.
  const isMember = state.memberSessions.includes(session);
  const held = isMember && holdsState({ stateStep: step, stateIn }, state);
  const change = { vitals, time, isLeaving: worker.isLeaving || isLeaving };
  updateWorker(turn, session, {
    ...(held && { stateStep: step, stateIn }),
    ...{ ...change, lastBeatMs: turn.nowMs },
  });
  if (isLeaving && !worker.isLeaving) letGo(turn, session);
}

/** A member of a generation that trains goes when the step is committed; any other one goes now. */
function letGo(turn: Turn, session: string): void {
  const { state } = turn;
  if (isOver(state) || state.isStopping) return;
  if (!state.memberSessions.includes(session)) turn.effects.push({ type: 'release', session });
  else if (state.phase === RunPhase.EVALUATING) openGeneration(turn);
}

function detach(turn: Turn, session: string, message: string): void {
  const worker = turn.state.workers.find((candidate) => candidate.session === session);
  if (worker === undefined) return;
  const reason = worker.isLeaving ? 'left' : 'disconnected';
  lose(turn, worker, reason, disconnected(worker, message));
  closeRanks(turn);
}

function updateWorker(turn: Turn, session: string, change: Partial<Worker>): void {
  turn.state.workers = turn.state.workers.map((worker) =>
    worker.session === session ? { ...worker, ...change } : worker,
  );
}

/** Strikes a worker off; {@link closeRanks} follows once all that are lost at this moment are struck off. */
function lose(
  turn: Turn,
  worker: Worker,
  reason: LossReason | 'left',
  error: VideoloomError,
): void {
  const { state } = turn;
  const { workerId, session, lastBeatMs, vitals } = worker;
  state.workers = state.workers.filter((other) => other.session !== session);
  if (!isOver(state)) {
    const generation = state.memberSessions.includes(session) ? state.generationNumber : 0;
    const afterMs = Math.round(
      turn.nowMs - lastBeatMs + (reason === 'stalled' ? vitals.stillMs : 0),
    );
    const { message } = error;
    const { phase } = vitals;
    if (reason === 'left') journal(turn, { type: 'worker-left', workerId, generation });
    else
      journal(turn, { type: 'worker-lost', workerId, reason, message, generation, phase, afterMs });
    journalTime(turn, worker);
  }
  turn.effects.push({ type: 'dismiss', session, error });
  const { checkpoint } = state;
  if (checkpoint?.workerIds.includes(workerId) === true && !checkpoint.parts.has(workerId)) {
    // The copy of somebody else is as good: take one at the next step.
    state.isCheckpointDue = true;
    abandonCheckpoint(
      turn,
      'worker-lost',
      `worker "${workerId}" was lost before its part was on disk`,
    );
  }
}

/** Opens the next generation when a member of the current one is gone. */
function closeRanks(turn: Turn): void {
  const { state } = turn;
  const isHere = (session: string): boolean =>
    state.workers.some((worker) => worker.session === session);
  if (state.generation !== undefined && !state.memberSessions.every(isHere)) openGeneration(turn);
}

/** Makes those who attend the members of a new generation, or none when they are too few. */
function openGeneration(turn: Turn): void {
  const { state } = turn;
  const { plan } = state;
  disperse(turn, staleGeneration(state, state.generationNumber));
  if (isOver(state) || state.isStopping) return;
  const chosen = chosenOf(turn);
  const sessions = chosen.map(({ session }) => session);
  const isEnough = sessions.length >= fewestMembers(turn);
  const held = isEnough ? heldState(state, sessions) : undefined;
  if (!isEnough || (state.isStopRequested && held === undefined)) {
    suspend(turn);
    if (state.isStopRequested) stopUnlessHeld(turn);
    return;
  }
  const number = state.generationNumber + 1;
  const origin = held ?? savedState(state, number);
  const isUnsure = held === undefined && isUnchecked(state);
  if (isUnsure || (origin.committedStep < state.committedStep && state.completing.size > 0)) {
    // What becomes of the manifest that is being written, or of the checkpoint that is being read, decides how far the run
    // goes back.
    suspend(turn);
    return;
  }
  goOnFrom(turn, origin);
  const { committedStep, committedIn, restoreStep } = state;
  const members = asMembers(chosen, { numMicrobatches: plan.microbatches, committed: state });
  state.generation = { number, members, committedStep, restoreStep, committedIn };
  state.memberSessions = sessions;
  state.generationNumber = number;
  state.hasStarted = true;
  state.phase = committedStep >= plan.totalSteps ? RunPhase.EVALUATING : RunPhase.TRAINING;
  state.lastProgressMs = turn.nowMs;
  state.stall = { ...state.stall, isTold: false };
  if (lacksResult(state) && state.completing.size === 0) {
    // Those who were to write the last checkpoint were lost, or could not: its members write it again.
    abandonCheckpoint(turn, 'replaced', `generation ${number} writes it`);
    const workerIds = members.map(({ workerId }) => workerId);
    state.checkpoint = pendingCheckpoint(turn, number, workerIds);
  }
  // Whoever holds something else is about to replace it: it must not be counted on any more.
  for (const worker of state.workers) {
    if (sessions.includes(worker.session) && !holdsState(worker, state)) {
      updateWorker(turn, worker.session, { stateStep: 0 });
    }
  }
  // On disk before anybody acts on it: after a loss of power its number must not be used again.
  journal(
    turn,
    { type: 'generation', generation: number, committedStep, restoreStep, members },
    true,
  );
  const listeners = state.workers.filter(({ isAttending }) => isAttending);
  const generation = state.generation;
  turn.effects.push({
    type: 'announce',
    sessions: listeners.map(({ session }) => session),
    generation,
  });
  releaseLeavers(turn);
}

function fewestMembers({ state, nowMs }: Turn): number {
  const { plan, hasStarted, isStopRequested, generationNumber, waitingSinceMs = Infinity } = state;
  const patienceMs = generationNumber === 0 ? PATIENCE_MS.atBeginning : PATIENCE_MS.goingOn;
  const isEnough = hasStarted || isStopRequested || nowMs - waitingSinceMs > patienceMs;
  return isEnough ? 1 : Math.min(plan.minWorkers, plan.microbatches);
}

/** No generation is in force until another one is opened. */
function suspend(turn: Turn): void {
  const { state } = turn;
  state.generation = undefined;
  state.memberSessions = [];
  state.phase = RunPhase.WAITING;
  releaseLeavers(turn);
}

/** Whether the newest checkpoint may turn out to be damaged. */
function isUnchecked({ restoreStep, uncheckedStep }: RunState): boolean {
  return restoreStep === uncheckedStep;
}

/** All steps are done, and no checkpoint holds what they gave. */
function lacksResult({ plan, committedStep, restoreStep }: RunState): boolean {
  return committedStep >= plan.totalSteps && restoreStep < committedStep;
}

/** Those who would be members of a generation that is opened now. */
function chosenOf({ state, nowMs }: Turn): readonly Worker[] {
  const { workers, plan, rests } = state;
  return chooseMembers(workers, {
    ...{ numMicrobatches: plan.microbatches, committed: state },
    isResting: ({ workerId }) => nowMs < (rests.get(workerId)?.untilMs ?? 0),
  });
}

function releaseLeavers({ state, effects }: Turn): void {
  for (const { session, isLeaving } of state.workers) {
    if (isLeaving && !state.memberSessions.includes(session))
      effects.push({ type: 'release', session });
  }
}

/** The newest state that one of them holds in memory; undefined where a checkpoint is as new, or they hold none. */
function heldState(state: RunState, sessions: readonly string[]): Committed | undefined {
  const { committedStep, restoreStep } = state;
  const own = new Set(sessions);
  const held = state.workers.filter(
    ({ session, stateStep }) => own.has(session) && stateStep <= committedStep,
  );
  if (held.some((worker) => holdsState(worker, state))) return state;
  const newest = held
    .filter(({ stateStep }) => stateStep > restoreStep)
    .sort((a, b) => b.stateStep - a.stateStep || b.stateIn - a.stateIn)[0];
  return newest && { committedStep: newest.stateStep, committedIn: newest.stateIn };
}

/**
 * What the newest checkpoint holds. It is the last committed step's own state where it is of that step: then a worker that
 * has read it for a generation that is over need not read it again.
 */
function savedState(
  { committedStep, committedIn, restoreStep }: RunState,
  number: number,
): Committed {
  const isLast = restoreStep === committedStep && committedIn > 0;
  return { committedStep: restoreStep, committedIn: isLast ? committedIn : number };
}

function goOnFrom(turn: Turn, { committedStep: step, committedIn }: Committed): void {
  const { state } = turn;
  state.committedIn = step === 0 ? 0 : committedIn;
  if (step === state.committedStep) return;
  const inMemory = step > state.restoreStep;
  const from = inMemory ? 'memory' : step > 0 ? 'checkpoint' : 'start';
  journal(turn, { type: 'restored', step, from }, true);
  state.committedStep = step;
  state.lastCommit = undefined;
  if (state.checkpoint !== undefined && state.checkpoint.step > step) {
    abandonCheckpoint(turn, 'restored', `the run went back to step ${step}`);
  }
}

/** Refuses all who wait for the others. */
function disperse(turn: Turn, error: VideoloomError): void {
  const { state, effects } = turn;
  for (const { callId } of [...(state.votes?.ballots ?? []), ...(state.results?.ballots ?? [])]) {
    effects.push({ type: 'refuse', callId, error });
  }
  state.votes = undefined;
  state.results = undefined;
}

// Steps

function vote(turn: Turn, { callId, request }: RunEvent & { type: 'vote' }): void {
  const { state } = turn;
  const { session, generation, step } = request;
  const { workerId } = workerOf(state.workers, session);
  const { lastCommit } = state;
  if (
    lastCommit?.step === step &&
    lastCommit.generation === generation &&
    lastCommit.workerIds.includes(workerId)
  ) {
    // The answer was lost on its way: it stays what it was.
    turn.effects.push({ type: 'answer', callId, response: lastCommit.response });
    return;
  }
  memberOf(state, session, generation);
  if (state.phase !== RunPhase.TRAINING || state.isStopping)
    throw isOver(state) ? runOver(state) : notNow(state, `a vote for step ${step}`);
  if (step !== state.committedStep + 1) {
    throw new RpcError(
      status.FAILED_PRECONDITION,
      'UNEXPECTED_STEP',
      `worker "${workerId}" votes for step ${step}, but step ${state.committedStep} is the last committed one.`,
    );
  }
  state.votes = withBallot(turn, state.votes, { session, callId, request });
  if (state.votes.ballots.length === state.memberSessions.length)
    commit(turn, state.votes, state.generation!);
}

function commit(turn: Turn, votes: Poll<CommitStepRequest>, generation: Generation): void {
  const { state } = turn;
  const { plan } = state;
  const step = state.committedStep + 1;
  const requests = inRankOrder(state, votes);
  const disagreement = findDisagreement(requests.map(stepStatement));
  if (disagreement !== undefined) {
    fail(turn, replicasDiverged(state, `after step ${step}`, disagreement));
    return;
  }
  const last = state.isStopRequested || step >= plan.totalSteps;
  // When all want to leave, nobody holds the state any more.
  const staysOn = state.workers.some(({ isAttending, isLeaving }) => isAttending && !isLeaving);
  const isDue = state.isCheckpointDue || step % plan.checkpointEverySteps === 0;
  const checkpoint = last || !staysOn || (isDue && !isBeingWritten(turn));
  const { objectives, gradientNorm, learningRate } = requests[0]!;
  journal(
    turn,
    {
      type: 'commit',
      step,
      generation: generation.number,
      firstPosition: positionOf(plan, step, 0, 0),
      numSamples: plan.microbatches * plan.microbatchSize,
      objectives,
      gradientNorm,
      learningRate,
      clips: sum(requests.map(({ numClips }) => numClips)),
      tokens: sum(requests.map(({ numTokens }) => numTokens)),
      skipped: requests.flatMap(({ skipped }) => skipped),
      checkpoint,
      last,
    },
    checkpoint,
  );
  state.highestStep = Math.max(state.highestStep, step);
  const workerIds = generation.members.map(({ workerId }) => workerId);
  const waitedMs = state.memberSessions.map((session) =>
    Math.round(turn.nowMs - votes.ballots.find((other) => other.session === session)!.atMs),
  );
  const response = { checkpoint, last, waitedMs };
  state.committedStep = step;
  state.committedIn = generation.number;
  state.lastCommit = { step, generation: generation.number, workerIds, response };
  state.lastProgressMs = turn.nowMs;
  state.stall = NO_STALL;
  if (workerIds.some((id) => state.rests.has(id)))
    state.rests = new Map([...state.rests].filter(([id]) => !workerIds.includes(id)));
  state.votes = undefined;
  const held = { stateStep: step, stateIn: generation.number };
  for (const session of state.memberSessions) updateWorker(turn, session, held);
  state.isCheckpointDue = isDue && !checkpoint;
  if (checkpoint) {
    for (const worker of membersOf(state)) journalTime(turn, worker);
    abandonCheckpoint(
      turn,
      'too-slow',
      `its parts were not on disk when step ${step} was committed`,
    );
    state.checkpoint = pendingCheckpoint(turn, generation.number, workerIds);
  }
  for (const { callId } of votes.ballots) turn.effects.push({ type: 'answer', callId, response });
  if (step >= plan.totalSteps) state.phase = RunPhase.EVALUATING;
  else if (last) state.isStopping = true;
  else admitWaiting(turn);
}

/** Opens a generation for those who joined since the last one, if it would have other members. */
function admitWaiting(turn: Turn): void {
  const sessions = chosenOf(turn).map(({ session }) => session);
  const { memberSessions } = turn.state;
  if (
    sessions.length !== memberSessions.length ||
    sessions.some((session, i) => session !== memberSessions[i])
  ) {
    openGeneration(turn);
  }
}

// Checkpoints

/** One of the last committed step, of which no part is there. */
function pendingCheckpoint(
  { state: { committedStep: step }, nowMs }: Turn,
  generation: number,
  workerIds: readonly string[],
): PendingCheckpoint {
  return { step, sinceMs: nowMs, generation, workerIds, parts: new Map() };
}

/**
 * Whether one is on its way to the disk, which the next one waits for: else, where writing takes longer than the steps
 * between two, each would be given up for the next. One that has taken too long will not come any more.
 */
function isBeingWritten({ state: { checkpoint, limits }, nowMs }: Turn): boolean {
  return checkpoint !== undefined && nowMs - checkpoint.sinceMs <= limits.checkpointMs;
}

function takePart(turn: Turn, { callId, request }: RunEvent & { type: 'part' }): void {
  const { state } = turn;
  const { session, generation, step, files, failure } = request;
  const { workerId } = workerOf(state.workers, session);
  const { checkpoint } = state;
  const isExpected =
    checkpoint?.step === step &&
    generation >= checkpoint.generation &&
    checkpoint.workerIds.includes(workerId) &&
    // What is on disk stays there, where only the answer was lost.
    (failure === '' || !checkpoint.parts.has(workerId));
  const waiting = state.completing.get(step);
  if (!isExpected && waiting !== undefined && failure === '') {
    // Its answer was lost: what comes of the manifest is the answer to this call, too.
    state.completing = new Map(state.completing).set(step, [...waiting, callId]);
    return;
  }
  if (!isExpected) {
    // Late or repeated: it says whether such a checkpoint exists, and changes nothing.
    turn.effects.push({
      type: 'answer',
      callId,
      response: { complete: step === state.restoreStep },
    });
    return;
  }
  if (failure !== '') {
    abandonCheckpoint(
      turn,
      'write-failed',
      `worker "${workerId}" could not write its part: ${failure}`,
    );
    turn.effects.push({ type: 'answer', callId, response: { complete: false } });
    endStopIfIdle(turn);
    writeResultAgain(turn);
    return;
  }
  const parts = new Map(checkpoint.parts).set(workerId, files);
  if (parts.size < checkpoint.workerIds.length) {
    state.checkpoint = { ...checkpoint, parts };
    turn.effects.push({ type: 'answer', callId, response: { complete: false } });
    return;
  }
  state.checkpoint = undefined;
  state.completing = new Map(state.completing).set(step, [callId]);
  const all = checkpoint.workerIds.flatMap((id) => parts.get(id) ?? []);
  turn.effects.push({
    type: 'write-manifest',
    step,
    generation: checkpoint.generation,
    files: all,
  });
}

function settleCheckpoint(turn: Turn, outcome: CheckpointOutcome): void {
  const { state } = turn;
  const { step, generation, sizeBytes, failure } = outcome;
  const callIds = state.completing.get(step) ?? [];
  state.completing = new Map([...state.completing].filter(([other]) => other !== step));
  if (failure === undefined) {
    journal(turn, { type: 'checkpoint', step, generation, sizeBytes }, true);
    state.restoreStep = Math.max(state.restoreStep, step);
  } else {
    journal(turn, { type: 'checkpoint-failed', step, reason: 'manifest', message: failure });
  }
  const response = { complete: failure === undefined };
  for (const callId of callIds) turn.effects.push({ type: 'answer', callId, response });
  endStopIfIdle(turn);
  // Who had nothing to go on from but this has waited for it.
  if (state.generation === undefined && !isOver(state)) openGeneration(turn);
  else if (failure === undefined) finishIfKept(turn);
  else writeResultAgain(turn);
}

/** Goes on from what a member holds in memory, else from the older checkpoint; another one is due. */
function loseRestorePoint(turn: Turn, step: number): void {
  const { state } = turn;
  if (isOver(state) || step >= state.restoreStep) return;
  state.restoreStep = step;
  state.isCheckpointDue = true;
  if (state.generation !== undefined) openGeneration(turn);
}

/** Goes on with what has waited for the newest checkpoint to be read. */
function trustRestorePoint(turn: Turn): void {
  const { state } = turn;
  state.uncheckedStep = undefined;
  if (isOver(state)) return;
  if (state.generation === undefined) openGeneration(turn);
  else finishIfKept(turn);
}

function abandonCheckpoint(turn: Turn, reason: string, message: string): void {
  const { checkpoint } = turn.state;
  if (checkpoint === undefined) return;
  turn.state.checkpoint = undefined;
  journal(turn, { type: 'checkpoint-failed', step: checkpoint.step, reason, message });
  endStopIfIdle(turn);
}

// The end

function report(turn: Turn, { callId, request }: RunEvent & { type: 'result' }): void {
  const { state } = turn;
  const { session, generation } = request;
  const { workerId } = workerOf(state.workers, session);
  if (state.phase === RunPhase.FINISHED || state.phase === RunPhase.STOPPED || state.isStopping) {
    turn.effects.push({ type: 'answer', callId, response: {} });
    return;
  }
  memberOf(state, session, generation);
  if (state.phase !== RunPhase.EVALUATING)
    throw isOver(state) ? runOver(state) : notNow(state, `the result of worker "${workerId}"`);
  if (request.time !== undefined)
    updateWorker(turn, session, { time: { settled: request.time, step: NO_TIME } });
  state.results = withBallot(turn, state.results, { session, callId, request });
  finishIfKept(turn);
}

/** The last checkpoint has come to nothing: the next generation begins with it, a few times at most. */
function writeResultAgain(turn: Turn): void {
  const { state } = turn;
  if (isOver(state) || state.isStopping || !lacksResult(state)) return;
  state.numResultTries++;
  if (state.numResultTries > MAX_RESULT_TRIES) fail(turn, resultNotKept(state));
  else openGeneration(turn);
}

/** Ends the run once every member has reported and the weights are in a checkpoint, which are the run's result. */
function finishIfKept(turn: Turn): void {
  const { state } = turn;
  const { results } = state;
  if (results === undefined || results.ballots.length < state.memberSessions.length) return;
  if (lacksResult(state)) {
    // Where its manifest is being written, what comes of that decides.
    if (state.completing.size === 0) writeResultAgain(turn);
    return;
  }
  if (isUnchecked(state)) return;
  const requests = inRankOrder(state, results);
  const disagreement = findDisagreement(requests.map(resultStatement));
  if (disagreement !== undefined) {
    fail(turn, replicasDiverged(state, 'at the end of the run', disagreement));
    return;
  }
  const { figures, weightsSha256 } = requests[0]!;
  for (const worker of state.workers) journalTime(turn, worker);
  const skipped = skippedIn(requests);
  journal(
    turn,
    {
      ...{ type: 'finished', step: state.committedStep, figures, weightsSha256 },
      ...(skipped.length > 0 && { skipped }),
    },
    true,
  );
  state.phase = RunPhase.FINISHED;
  state.results = undefined;
  for (const ballot of results.ballots)
    turn.effects.push({ type: 'answer', callId: ballot.callId, response: {} });
  turn.effects.push({ type: 'over' });
}

/** The held-out clips that did not decode for some member, each once. */
function skippedIn(requests: readonly ReportResultRequest[]): Omit<JournaledSkip, 'place'>[] {
  const all = requests.flatMap(({ skipped }) => skipped).sort((a, b) => a.sample - b.sample);
  return all
    .filter(({ sample }, i) => sample !== all[i - 1]?.sample)
    .map(({ sample, substitute, reason, message }) => ({ sample, substitute, reason, message }));
}

function stop(turn: Turn): void {
  const { state } = turn;
  if (isOver(state) || state.isStopRequested) return;
  state.isStopRequested = true;
  journal(turn, { type: 'stop-requested' });
  if (state.generation === undefined) openGeneration(turn);
}

/**
 * Nobody who is here holds more than the checkpoint, and no further step comes. Of a coordinator that was started again
 * those who do may be on their way. Who has just left may still be writing its share of a checkpoint.
 */
function stopUnlessHeld(turn: Turn): void {
  const { state, nowMs } = turn;
  const mayBeHeld = !state.hasStarted && state.committedStep > state.restoreStep;
  if (mayBeHeld && nowMs - state.lastProgressMs <= PATIENCE_MS.goingOn) return;
  state.isStopping = true;
  endStopIfIdle(turn);
}

function endStopIfIdle(turn: Turn): void {
  const { state } = turn;
  if (state.isStopping && state.checkpoint === undefined && state.completing.size === 0)
    endStopped(turn);
}

function endStopped(turn: Turn): void {
  if (isOver(turn.state)) return;
  for (const worker of turn.state.workers) journalTime(turn, worker);
  journal(turn, { type: 'stopped', step: turn.state.committedStep }, true);
  turn.state.phase = RunPhase.STOPPED;
  turn.effects.push({ type: 'over' });
}

function fail(turn: Turn, error: VideoloomError): void {
  const { state } = turn;
  if (isOver(state)) return;
  // Where the journal itself cannot be written, or is another's, there is nowhere to say so.
  if (!['JOURNAL_WRITE_FAILED', 'RUN_FENCED', 'RUN_LOCK_LOST'].includes(error.code)) {
    journal(turn, { type: 'failed', code: error.code, message: error.message }, true);
  }
  state.phase = RunPhase.FAILED;
  state.failure = error;
  disperse(turn, error);
  turn.effects.push({ type: 'over' });
}

// Time

function tick(turn: Turn): void {
  const { state, nowMs } = turn;
  const { limits } = state;
  const gapMs = nowMs - state.lastTickMs;
  state.lastTickMs = nowMs;
  if (isOver(state)) return;
  // This process itself stood still (suspended, starved): what was sent meanwhile is still to be read.
  if (gapMs > limits.silenceMs / 4) {
    state.workers = state.workers.map((worker) => ({
      ...worker,
      lastBeatMs: worker.lastBeatMs + gapMs,
    }));
  }
  for (const worker of state.workers) {
    const silentMs = nowMs - worker.lastBeatMs;
    // Between joining and its first beat a worker has time: its stream is still being opened.
    if (silentMs > (worker.isAttending ? limits.silenceMs : limits.callMs))
      lose(turn, worker, 'heartbeat', heartbeatLost(worker, silentMs));
  }
  for (const worker of membersOf(state)) {
    const stillMs = stillnessOf(worker, nowMs);
    const limitMs = stillnessLimitMs(worker.vitals, state.gaps, limits);
    if (stillMs > limitMs)
      lose(turn, worker, 'stalled', stalled(worker, rankOf(state, worker), stillMs));
  }
  for (const poll of [state.votes, state.results]) {
    if (poll !== undefined && nowMs - poll.sinceMs > limits.barrierMs) loseLate(turn, poll);
  }
  closeRanks(turn);
  breakStall(turn);
  if (state.isStopRequested && state.generation === undefined && !state.isStopping)
    stopUnlessHeld(turn);
  const isWaiting = !turn.state.hasStarted && chosenOf(turn).length > 0;
  turn.state.waitingSinceMs = isWaiting ? (turn.state.waitingSinceMs ?? nowMs) : undefined;
  if (isWaiting && fewestMembers(turn) === 1) openGeneration(turn);
}

function stillnessOf({ vitals, lastBeatMs }: Worker, nowMs: number): number {
  return vitals.stillMs + Math.max(0, nowMs - lastBeatMs);
}

function membersOf({ workers, memberSessions }: RunState): Worker[] {
  return workers.filter(({ session }) => memberSessions.includes(session));
}

function rankOf({ memberSessions }: RunState, { session }: Worker): number {
  return memberSessions.indexOf(session);
}

/** Strikes off who has not had its say, and names all of them in each one's error. */
function loseLate(turn: Turn, poll: Poll<unknown>): void {
  const { state } = turn;
  const late = silentIn(state, poll);
  const ranks = late.map((worker) => ({ worker, rank: rankOf(state, worker) }));
  for (const worker of late)
    lose(turn, worker, 'late', tooLate(worker, ranks, state.limits.barrierMs));
}

/** The members that have not had their say. */
function silentIn(state: RunState, { ballots }: Poll<unknown>): Worker[] {
  return membersOf(state).filter(
    (worker) => !ballots.some(({ session }) => session === worker.session),
  );
}

/**
 * When all members wait for each other, nobody is to blame by what it does itself: a connection between two of them is
 * dead, or a message was lost. It is told; then all connect anew; then some sit out: those known for it, else who has not
 * voted, else the last rank.
 */
function breakStall(turn: Turn): void {
  const { state, nowMs } = turn;
  const { stallReportMs, firstStillMs } = state.limits;
  const members = membersOf(state);
  if (state.generation === undefined || members.length === 0 || isOver(state)) return;
  const stillMs = Math.min(
    nowMs - state.lastProgressMs,
    ...members.map((worker) => stillnessOf(worker, nowMs)),
  );
  const areWaiting = members.every(({ vitals }) => isWaiting(vitals.phase));
  const isOneBusy = members.some(({ vitals }) => isBusyFor(vitals, stillMs));
  // Only to tell many of a generation takes its time: each hears of all.
  const reportMs = isOneBusy ? firstStillMs : stallReportMs * (1 + members.length / CROWD);
  if (!areWaiting || stillMs <= reportMs) return;
  if (!state.stall.isTold) {
    const doing = members.map(({ workerId, vitals }) => `"${workerId}" in phase ${vitals.phase}`);
    const message =
      `all members of generation ${state.generationNumber} have waited for each other for ` +
      `${Math.round(stillMs)} ms at step ${state.committedStep + 1}: ${doing.join(', ')}. ` +
      'Can each of their hosts reach the tensor addresses of the others?';
    state.stall = { ...state.stall, isTold: true };
    turn.effects.push({ type: 'stalled', message });
  }
  if (stillMs <= 2 * reportMs) return;
  const known = members.filter(({ workerId }) => state.rests.has(workerId));
  if (!state.stall.isRetried && known.length === 0) {
    state.stall = { ...state.stall, isRetried: true };
    openGeneration(turn);
    return;
  }
  const poll = state.votes ?? state.results;
  const silent = poll === undefined ? [] : silentIn(state, poll);
  // Somebody has to stay.
  const suspects = [known, silent].find((some) => some.length > 0 && some.length < members.length);
  for (const worker of suspects ?? members.slice(-1)) sitOut(turn, worker);
  closeRanks(turn);
}

/** So many members double the time in which a stall is told. */
const CROWD = 64;

function sitOut(turn: Turn, worker: Worker): void {
  const { state, nowMs } = turn;
  const { workerId } = worker;
  const { leastRestMs, mostRestMs } = state.limits;
  const lengthMs = Math.min(
    2 * (state.rests.get(workerId)?.lengthMs ?? leastRestMs / 2),
    mostRestMs,
  );
  // Who has not come back for so long is forgotten.
  const others = [...state.rests].filter(([, { untilMs }]) => nowMs < untilMs + mostRestMs);
  const rest = { lengthMs, untilMs: nowMs + lengthMs };
  const rank = rankOf(state, worker);
  state.rests = new Map([...others, [workerId, rest]]);
  lose(turn, worker, 'unreachable', unreachable(worker, rank, lengthMs));
}

// Small parts

function journal(turn: Turn, event: JournalEvent, sync = false): void {
  turn.effects.push({ type: 'journal', event, sync });
}

function journalTime(turn: Turn, { process, time }: Worker): void {
  if (time === UNTOLD) return;
  journal(turn, { type: 'time', process, spent: closingTime(time) });
}

/** `poll` with one more ballot. A worker that says it again takes back its first call. */
function withBallot<Request>(
  turn: Turn,
  poll: Poll<Request> | undefined,
  said: Omit<Ballot<Request>, 'atMs'>,
): Poll<Request> {
  const ballot = { ...said, atMs: turn.nowMs };
  const repeated = poll?.ballots.find(({ session }) => session === ballot.session);
  if (repeated !== undefined)
    turn.effects.push({ type: 'refuse', callId: repeated.callId, error: repeatedCall() });
  const others = (poll?.ballots ?? []).filter((other) => other !== repeated);
  return { sinceMs: poll?.sinceMs ?? turn.nowMs, ballots: [...others, ballot] };
}

function inRankOrder<Request>(state: RunState, { ballots }: Poll<Request>): Request[] {
  return state.memberSessions.map(
    (session) => ballots.find((ballot) => ballot.session === session)!.request,
  );
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
