import { randomUUID } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import type { Registry } from 'prom-client';

import { meansOwnMachine, parseAddress } from '../proto/address.ts';
import { CHECKPOINTS_FOLDER, readManifest, verifyStep } from '../proto/checkpoint-manifest.ts';
import { writeFileDurably } from '../proto/durable-file.ts';
import { messageOf, VideoloomError } from '../proto/errors.ts';
import type {
  AttendRequest,
  AttendResponse,
  CheckpointFile,
  CommitStepRequest,
  CommitStepResponse,
  LeaseMicrobatchesRequest,
  ReportCheckpointPartRequest,
  ReportCheckpointPartResponse,
  ReportDamagedCheckpointRequest,
  ReportDamagedCheckpointResponse,
  ReportResultRequest,
  ReportResultResponse,
  StepLease,
} from '../proto/gen/videoloom/v1/coordinator.ts';
import { RunPhase } from '../proto/gen/videoloom/v1/run.ts';
import type { RunStatus, TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import type { Log } from '../proto/log.ts';
import type { ScrapeTarget } from '../proto/metrics.ts';
import { forgetLeaderFailure } from '../proto/leader-failure.ts';
import { lockRun, type LockOptions, type RunLock } from '../proto/run-lock.ts';
import { isOver } from '../proto/run-phase.ts';
import { SUMMARY_FILE, type RunPlan } from '../proto/run-plan.ts';
import { positionOf } from '../proto/sample-order.ts';
import { openStepOrder, type StepOrder } from '../proto/step-order.ts';
import { NO_TIME } from '../proto/time-ledger.ts';
import {
  completeCheckpoint,
  findCheckpoint,
  missingCheckpoints,
  removeCheckpoint,
  removeLeftovers,
  removeUnfinished,
  setAside,
  surplusCheckpoints,
} from './checkpoints.ts';
import { checkEngine } from './engine-check.ts';
import { emptyHistory, extendHistory, numSkipped } from './history.ts';
import type { RunHistory } from './history.ts';
import type { JournalEvent } from './journal-events.ts';
import { JOURNAL_FILE, openJournal, renewJournal } from './journal.ts';
import type { Journal } from './journal.ts';
import { Latest } from './latest.ts';
import { leaseMicrobatches } from './leases.ts';
import { sessionOf } from './membership.ts';
import { openRunMetrics } from './metrics.ts';
import type { RunMetrics } from './metrics.ts';
import { checkSamePlan } from './plan-check.ts';
import { runOver } from './refusals.ts';
import { initialRunState, memberOf, transition } from './run-state.ts';
import type { Joiner, RunEffect, RunEvent, RunResponse, RunState } from './run-state.ts';
import { RateWindow, statusOf } from './status.ts';
import { totalTime } from './time-book.ts';

const WATCH_INTERVAL_MS = 100;

/** What a run needs from its surroundings. */
export interface RunSurroundings {
  readonly log: Log;
  readonly registry: Registry;
  /** Milliseconds on a clock that never goes back. */
  readonly nowMs: () => number;
  readonly wallTime: () => Date;
  /** Told the number of each record of the journal. */
  readonly onJournaled?: ((seq: number) => void) | undefined;
}

/**
 * Takes over the run in `folder`: locks it, reads journal and checkpoints, and stands ready for workers.
 * @throws VideoloomError RUN_LOCKED, RUN_PLAN_CHANGED, JOURNAL_WRITE_FAILED, RUN_FENCED
 */
export async function openRun(
  folder: string,
  plan: RunPlan,
  surroundings: RunSurroundings,
  options: LockOptions = {},
): Promise<Run> {
  const { log, nowMs } = surroundings;
  const lock = lockRun(folder, options);
  // Somebody leads it.
  await forgetLeaderFailure(folder);
  let journal: Journal | undefined;
  let order: StepOrder | undefined;
  try {
    const checkpoints = join(folder, CHECKPOINTS_FOLDER);
    const failures: VideoloomError[] = [];
    let run: Run | undefined = undefined as Run | undefined;
    const onFailure = (error: VideoloomError): void => {
      if (run === undefined) failures.push(error);
      else run.fail(error);
    };
    const taken = await takeJournal(folder, plan, { ...surroundings, lock, onFailure });
    const { history, warnings, completed, hasDied } = taken;
    ({ journal } = taken);
    order = await openStepOrder(folder, plan);
    const damaged: DamagedCheckpoint[] = [];
    for (const { step, kept } of await removeUnfinished(checkpoints, history.checkpoints)) {
      if (kept === undefined) log.warn({ step }, 'removed a checkpoint that was never completed');
      else damaged.push(checkpointDamaged(step, kept, 'it has no manifest'));
    }
    const onInvalid = async (step: number, error: VideoloomError): Promise<void> => {
      damaged.push(checkpointDamaged(step, await setAside(checkpoints, step), error.message));
    };
    // Workers that outlived the coordinator before hold what is newer, and look for this one for so long only: gigabytes
    // are read when they train again.
    let newest =
      hasDied && history.finished === undefined
        ? await findCheckpoint(checkpoints, plan.runId, onInvalid, readManifest)
        : undefined;
    const isReadLater = newest !== undefined && newest.step <= history.committedStep;
    if (!isReadLater) newest = await findCheckpoint(checkpoints, plan.runId, onInvalid);
    for (const step of await missingCheckpoints(checkpoints, history.checkpoints)) {
      const isSetAside = damaged.some((event) => event.step === step);
      if (!isSetAside) damaged.push(checkpointDamaged(step, '', 'its folder is gone.'));
    }
    const restoreStep = newest?.step ?? 0;
    // A finished run whose weights are damaged is computed again from what is whole.
    const finishedStep = history.finished?.step ?? 0;
    const isFinished = finishedStep >= plan.totalSteps && restoreStep >= finishedStep;
    // What tells how the run ended is not to be read while it is being computed again.
    if (!isFinished) await rm(join(folder, SUMMARY_FILE), { force: true });
    for (const event of damaged) {
      extendHistory(history, journal.append(event, { sync: true }));
      logEvent(log, event);
      warnings.push(damageOf(event));
    }
    if (history.committedStep < restoreStep) {
      const restored: JournalEvent = { type: 'restored', step: restoreStep, from: 'checkpoint' };
      extendHistory(history, journal.append(restored, { sync: true }));
    }
    const { committedStep, lastCommit, generationNumber, highestStep } = history;
    const committedIn = lastCommit?.generation ?? 0;
    const state = initialRunState(
      plan,
      {
        ...{ committedStep, committedIn, restoreStep, generationNumber, highestStep, isFinished },
        uncheckedStep: isReadLater ? restoreStep : undefined,
      },
      nowMs(),
    );
    run = new Run(folder, { lock, journal, history, order, state, surroundings, warnings });
    const last = completed.get(restoreStep);
    if (last !== undefined) run.metrics.showCheckpoint(last.sizeBytes, new Date(last.time));
    if (failures[0] !== undefined) run.fail(failures[0]);
    if (isFinished) await run.writeSummary();
    return run;
  } catch (error) {
    order?.close();
    journal?.close();
    lock.release();
    throw error;
  }
}

/** A journal that this process writes, and what stood in it. */
interface TakenJournal {
  readonly journal: Journal;
  readonly history: RunHistory;
  /** The checkpoints that it tells of, by step. */
  readonly completed: ReadonlyMap<number, { readonly sizeBytes: number; readonly time: string }>;
  /** What was found damaged. */
  readonly warnings: string[];
  /** Whether who led the run before has not said how it ended: its workers may still be there. */
  readonly hasDied: boolean;
}

/** A coordinator that was taken over from writes on until it looks at its lock, or at the journal for its next record. */
const MAX_TAKES = 20;
const TAKE_AGAIN_MS = 50;

/**
 * Reads the journal and at once writes a record into it: from then on a coordinator that was taken over from can write
 * no more, whatever else this one has to look at first.
 * @throws VideoloomError RUN_PLAN_CHANGED, JOURNAL_WRITE_FAILED, RUN_FENCED
 */
async function takeJournal(
  folder: string,
  plan: RunPlan,
  {
    lock,
    log,
    wallTime,
    onJournaled,
    onFailure,
  }: RunSurroundings & {
    readonly lock: RunLock;
    readonly onFailure: (error: VideoloomError) => void;
  },
): Promise<TakenJournal> {
  const path = join(folder, JOURNAL_FILE);
  if (lock.isContested) await renewJournal(path, () => lock.isHeld());
  for (let takes = 1; ; takes++) {
    const history = emptyHistory();
    const completed = new Map<number, { readonly sizeBytes: number; readonly time: string }>();
    const warnings: string[] = [];
    let hasDied = false;
    const journal = openJournal(
      path,
      (record) => {
        extendHistory(history, record);
        if (record.type === 'opened') hasDied = true;
        if (['stopped', 'failed', 'finished'].includes(record.type)) hasDied = false;
        if (record.type === 'checkpoint') completed.set(record.step, record);
      },
      {
        wallTime,
        onAppended: onJournaled,
        onCut: (keptAs) => {
          const { committedStep: step } = history;
          const cut = `a record of the journal is damaged: those behind step ${step} count no more; they are kept as ${keptAs}`;
          log.warn({ step }, cut);
          warnings.push(cut);
        },
        onFailure,
      },
    );
    try {
      if (history.plan !== undefined) checkSamePlan(history.plan, plan, folder);
      journal.append({ type: 'opened', pid: process.pid, plan }, { sync: true });
      return { journal, history, completed, warnings, hasDied };
    } catch (error) {
      journal.close();
      const isFenced = error instanceof VideoloomError && error.code === 'RUN_FENCED';
      // The one before has been quicker by a record: who holds the lock is this one.
      if (!isFenced || takes === MAX_TAKES || !lock.isHeld()) throw error;
      await sleep(TAKE_AGAIN_MS);
    }
  }
}

interface RunParts {
  readonly lock: RunLock;
  readonly journal: Journal;
  readonly history: RunHistory;
  readonly order: StepOrder;
  readonly state: RunState;
  readonly surroundings: RunSurroundings;
  readonly warnings: readonly string[];
}

interface WaitingCall {
  readonly resolve: (response: RunResponse) => void;
  readonly reject: (error: Error) => void;
}

/** A run in the hands of this process: plays what happens to the state machine and does what that asks for. */
export class Run {
  readonly plan: RunPlan;
  readonly metrics: RunMetrics;
  /** What was found damaged when the run was taken over, and what became of it. */
  readonly warnings: readonly string[];
  /** Settles when the run is finished, stopped or failed, and all that belongs to it is on disk. */
  readonly over: Promise<void>;
  readonly #folder: string;
  readonly #parts: RunParts;
  readonly #log: Log;
  #state: RunState;
  readonly #calls = new Map<number, WaitingCall>();
  readonly #streams = new Map<string, Latest<AttendResponse>>();
  readonly #watchers = new Set<Latest<true>>();
  readonly #rates = new RateWindow();
  readonly #ticker: NodeJS.Timeout;
  readonly #lockChecker: NodeJS.Timeout;
  #lockSeenMs: number;
  #lastCallId = 0;
  #isClosed = false;
  #diskWork: Promise<void> = Promise.resolve();
  #declareOver: () => void = () => undefined;

  constructor(folder: string, parts: RunParts) {
    const { state, surroundings } = parts;
    this.plan = state.plan;
    this.warnings = parts.warnings;
    this.#folder = folder;
    this.#parts = parts;
    this.#state = state;
    this.#log = surroundings.log;
    this.#lockSeenMs = surroundings.nowMs();
    this.metrics = openRunMetrics(
      surroundings.registry,
      () => this.#state,
      () => this.#time(false),
    );
    this.over = new Promise((resolve) => {
      this.#declareOver = resolve;
    });
    this.#ticker = setInterval(
      () => {
        this.#dispatch({ type: 'tick' });
      },
      Math.min(250, Math.max(10, state.limits.tickMs)),
    );
    this.#lockChecker = setInterval(() => {
      this.#checkLock();
    }, state.limits.lockCheckMs);
    if (isOver(state)) this.#declareOver();
    if (state.uncheckedStep !== undefined) void this.#checkRestorePoint(state.uncheckedStep);
  }

  // What workers ask

  /** Registers a worker process; gives its session. @throws RpcError RUN_FINISHED, RUN_STOPPED, RUN_FAILED, OTHER_ENGINE */
  join(joiner: Omit<Joiner, 'session'>): string {
    if (this.#isClosed) throw coordinatorClosed();
    if (!isOver(this.#state)) checkEngine(this.#state, this.#parts.history, joiner);
    const session = sessionOf(joiner.workerId, randomUUID());
    this.#dispatch({ type: 'join', worker: { ...joiner, session } });
    return session;
  }

  /**
   * A worker's session: takes its beats, gives the generations and, to one that leaves, its release. Ends with the run; throws when the worker is dropped.
   * @throws RpcError FENCED, UNKNOWN_SESSION, HEARTBEAT_LOST, WORKER_STALLED, BARRIER_TIMEOUT
   */
  async *attend(
    session: string,
    beats: AsyncIterable<AttendRequest>,
    signal: AbortSignal,
  ): AsyncGenerator<AttendResponse, void, undefined> {
    if (this.#isClosed) throw coordinatorClosed();
    const stream = new Latest<AttendResponse>();
    const predecessor = this.#streams.get(session);
    this.#streams.set(session, stream);
    predecessor?.end(new VideoloomError('REPEATED_CALL', 'the same session attends a second time'));
    let reason = 'its connection ended';
    const listen = async (): Promise<void> => {
      for await (const beat of beats) this.#takeBeat(session, beat);
      // Of a connection that is cut the beats end too.
      if (!signal.aborted) reason = 'it ended its session';
    };
    try {
      this.#dispatch({ type: 'attend', session });
      listen().then(
        () => {
          stream.end();
        },
        () => {
          stream.end();
        },
      );
      yield* stream.values(signal);
    } finally {
      if (this.#streams.get(session) === stream) {
        this.#streams.delete(session);
        this.#dispatch({ type: 'detach', session, message: reason });
      }
    }
  }

  /** The samples of the caller's microbatches. @throws RpcError STALE_GENERATION, LEASE_OUT_OF_WINDOW */
  lease({ session, generation, firstStep, numSteps }: LeaseMicrobatchesRequest): StepLease[] {
    const member = memberOf(this.#state, session, generation);
    const { order, history } = this.#parts;
    return leaseMicrobatches({ plan: this.plan, order }, history, member, { firstStep, numSteps });
  }

  /** Settles when the step is committed or cannot be in this generation. */
  async commitStep(request: CommitStepRequest): Promise<CommitStepResponse> {
    return (await this.#ask((callId) => ({ type: 'vote', callId, request }))) as CommitStepResponse;
  }

  /** Settles at once, the last part's call when the manifest is on disk. */
  async reportCheckpointPart(
    request: ReportCheckpointPartRequest,
  ): Promise<ReportCheckpointPartResponse> {
    const response = await this.#ask((callId) => ({ type: 'part', callId, request }));
    return response as ReportCheckpointPartResponse;
  }

  /**
   * A member cannot read the checkpoint that its generation goes on from. Where it is damaged, the run goes on from
   * another one.
   * @throws RpcError as `memberOf`
   */
  async reportDamagedCheckpoint(
    request: ReportDamagedCheckpointRequest,
  ): Promise<ReportDamagedCheckpointResponse> {
    const { session, generation, step, message } = request;
    const { workerId } = memberOf(this.#state, session, generation);
    this.#log.warn({ worker_id: workerId, step }, `a checkpoint cannot be read: ${message}`);
    return { isWhole: await this.#lookAgain(step) };
  }

  /** Settles when all members have reported. */
  async reportResult(request: ReportResultRequest): Promise<ReportResultResponse> {
    return await this.#ask((callId) => ({ type: 'result', callId, request }));
  }

  // What operators ask

  status(): RunStatus {
    return statusOf(this.#state, this.#parts.history, this.#rates.rates(), this.#time(true));
  }

  /** Where the workers serve their metrics, those left out that serve them to another machine alone. */
  scrapeTargets(): ScrapeTarget[] {
    const { workers, plan } = this.#state;
    return workers
      .filter(
        ({ host, metricsAddress }) =>
          host === hostname() || !meansOwnMachine(parseAddress(metricsAddress).host),
      )
      .map(({ workerId, metricsAddress }) => ({
        targets: [metricsAddress],
        labels: { run: plan.runId, role: 'worker', worker: workerId },
      }));
  }

  /** The status now and after changes, at most ten a second; ends with the run. */
  async *watchStatus(signal: AbortSignal): AsyncGenerator<RunStatus, void, undefined> {
    const changes = new Latest<true>();
    changes.set(true);
    this.#watchers.add(changes);
    try {
      const turns = changes.values(signal);
      while ((await turns.next()).done !== true) {
        const status = this.status();
        yield status;
        if (isOver(status)) return;
        await sleep(WATCH_INTERVAL_MS, undefined, { signal });
      }
    } finally {
      this.#watchers.delete(changes);
    }
  }

  /** Lets the run checkpoint after the step in progress and end. */
  stop(): void {
    if (!this.#isClosed) this.#dispatch({ type: 'stop' });
  }

  /** Ends the run because it cannot go on. */
  fail(error: VideoloomError): void {
    this.#dispatch({ type: 'fail', error });
  }

  /** Waits until no worker attends, for at most `limitMs`. */
  async abandoned(limitMs: number): Promise<void> {
    for (
      let waitedMs = 0;
      this.#streams.size > 0 && waitedMs < limitMs;
      waitedMs += WATCH_INTERVAL_MS
    ) {
      await sleep(WATCH_INTERVAL_MS);
    }
  }

  /** Lets go of the folder; calls that still wait are refused. May be called twice. */
  async close(): Promise<void> {
    clearInterval(this.#ticker);
    clearInterval(this.#lockChecker);
    this.#isClosed = true;
    const error = coordinatorClosed();
    this.#refuseAll(error);
    for (const stream of this.#streams.values())
      stream.end(isOver(this.#state) ? undefined : error);
    // Workers that go now go because of us: they are not lost.
    this.#streams.clear();
    for (const watcher of this.#watchers) watcher.end();
    await this.#diskWork;
    this.#parts.order.close();
    this.#parts.journal.close();
    this.#parts.lock.release();
  }

  /** Writes the figures of a finished run beside its journal. */
  async writeSummary(): Promise<void> {
    const { finished } = this.#parts.history;
    if (finished === undefined) return;
    const { step, figures, weightsSha256 } = finished;
    const summary = {
      runId: this.plan.runId,
      step,
      figures,
      weightsSha256,
      skippedSamples: numSkipped(this.#parts.history),
      configDigest: this.plan.configDigest,
      datasetDigest: this.plan.datasetDigest,
      seed: this.plan.seed,
    };
    await writeFileDurably(
      join(this.#folder, SUMMARY_FILE),
      `${JSON.stringify(summary, undefined, 2)}\n`,
    );
  }

  // How it works

  async #ask(toEvent: (callId: number) => RunEvent): Promise<RunResponse> {
    if (this.#isClosed) throw coordinatorClosed();
    const callId = ++this.#lastCallId;
    return new Promise((resolve, reject) => {
      this.#calls.set(callId, { resolve, reject });
      try {
        this.#dispatch(toEvent(callId));
      } catch (error) {
        this.#calls.delete(callId);
        throw error;
      }
    });
  }

  #takeBeat(session: string, beat: AttendRequest): void {
    const { step, stateIn, phase, progress, stillMs, cpuMs, leaving: isLeaving } = beat;
    const time = { settled: beat.time ?? NO_TIME, step: beat.stepTime ?? NO_TIME };
    const told = { phase, progress, stillMs, cpuMs };
    this.#dispatch({ type: 'beat', session, step, stateIn, beat: told, isLeaving, time });
  }

  /** Where the time of all worker processes went, that of the steps under way included or not. */
  #time(withStep: boolean): TimeLedger {
    return totalTime(this.#state.workers, this.#parts.history.times, { withStep });
  }

  #dispatch(event: RunEvent): void {
    const { state, effects } = transition(this.#state, event, this.#parts.surroundings.nowMs());
    this.#state = state;
    try {
      for (const effect of effects) this.#perform(effect);
    } catch (error) {
      // What could not be journaled is not told to anybody: the effects after it are dropped.
      this.#endFailed(error);
    }
    if (event.type === 'tick' && effects.length === 0) return;
    if (event.type === 'beat') return;
    for (const watcher of this.#watchers) watcher.set(true);
  }

  #perform(effect: RunEffect): void {
    switch (effect.type) {
      case 'journal':
        this.#record(effect.event, effect.sync);
        return;
      case 'announce':
        for (const session of effect.sessions)
          this.#streams.get(session)?.set({ generation: effect.generation, released: false });
        return;
      case 'release':
        this.#streams.get(effect.session)?.set({ generation: undefined, released: true });
        return;
      case 'answer':
        this.#calls.get(effect.callId)?.resolve(effect.response);
        this.#calls.delete(effect.callId);
        return;
      case 'refuse':
        this.#calls.get(effect.callId)?.reject(effect.error);
        this.#calls.delete(effect.callId);
        return;
      case 'dismiss':
        this.#streams.get(effect.session)?.end(effect.error);
        this.#streams.delete(effect.session);
        return;
      case 'write-manifest':
        this.#diskWork = this.#diskWork.then(() => this.#writeManifest(effect));
        return;
      case 'stalled':
        this.#log.warn({ step: this.#state.committedStep + 1 }, effect.message);
        return;
      case 'over':
        this.#settle();
        return;
    }
  }

  #record(event: JournalEvent, sync: boolean): void {
    const { journal, history, surroundings } = this.#parts;
    extendHistory(history, journal.append(event, { sync }));
    this.metrics.observe(event, surroundings.nowMs());
    if (event.type === 'commit') this.#rates.add(surroundings.nowMs(), event.clips, event.tokens);
    logEvent(this.#log, event);
  }

  async #writeManifest(effect: RunEffect & { type: 'write-manifest' }): Promise<void> {
    const { step, generation, files } = effect;
    const folder = join(this.#folder, CHECKPOINTS_FOLDER);
    const { nowMs } = this.#parts.surroundings;
    let startMs = nowMs();
    let sizeBytes = 0;
    let failure: string | undefined;
    try {
      this.#checkLock();
      if (this.#state.failure !== undefined) throw this.#state.failure;
      sizeBytes = await completeCheckpoint(folder, this.#manifest(step, generation, files));
      this.metrics.observeCheckpointStage('manifest', (nowMs() - startMs) / 1000);
    } catch (error) {
      failure = messageOf(error);
    }
    this.#dispatch({ type: 'checkpoint-settled', step, generation, sizeBytes, failure });
    if (failure !== undefined) return;
    startMs = nowMs();
    try {
      await removeLeftovers(folder, step);
      const { keepCheckpoints: keep, keepCheckpointHours: hours } = this.plan;
      const maxAgeMs = hours === undefined ? undefined : hours * 3_600_000;
      const now = this.#parts.surroundings.wallTime();
      const surplus = await surplusCheckpoints(folder, this.plan.runId, { keep, maxAgeMs, now });
      if (surplus.length > 0)
        this.metrics.observeCheckpointStage('verify', (nowMs() - startMs) / 1000);
      for (const old of surplus) {
        // Said first: a checkpoint that is known and has no manifest counts as damaged.
        this.#record({ type: 'checkpoint-pruned', step: old }, true);
        const left = await removeCheckpoint(folder, old);
        if (left.length > 0)
          this.#log.warn({ step: old, left }, 'files that are not ours stay of a checkpoint');
      }
    } catch (error) {
      this.#log.error({ step }, `older checkpoints are kept: ${messageOf(error)}`);
    }
  }

  /** Reads the checkpoint of `step` while the run goes on, and says when it may be gone on from. */
  async #checkRestorePoint(step: number): Promise<void> {
    const { renewMs, reconnectMs } = this.#state.limits;
    const startMs = performance.now();
    for (;;) {
      try {
        // Not among the work on the disk: checkpoints are completed meanwhile, and this one may be pruned.
        await verifyStep(this.#folder, { step, runId: this.plan.runId }).catch(async () =>
          this.#lookAgain(step),
        );
        if (!this.#isClosed) this.#dispatch({ type: 'restore-point-checked' });
        return;
      } catch (error) {
        // A file system that is away for a moment ends no run whose members hold what is newer.
        const isAway = error instanceof VideoloomError && error.code === 'CHECKPOINT_UNREADABLE';
        if (!isAway || performance.now() - startMs > reconnectMs) {
          this.#endFailed(error);
          return;
        }
        this.#log.warn({ step, code: error.code }, error.message);
        await sleep(renewMs);
        if (this.#isClosed) return;
      }
    }
  }

  /** {@link Run.#lookAtRestorePoint}, after what is being done on the disk. */
  async #lookAgain(step: number): Promise<boolean> {
    const look = this.#diskWork.then(() => this.#lookAtRestorePoint(step));
    this.#diskWork = look.then(
      () => undefined,
      () => undefined,
    );
    return look;
  }

  /** Whether the checkpoint of `step`, which the run goes on from, is whole; the run leaves one that is not. */
  async #lookAtRestorePoint(step: number): Promise<boolean> {
    if (step !== this.#state.restoreStep || isOver(this.#state)) return false;
    const folder = join(this.#folder, CHECKPOINTS_FOLDER);
    const newest = await findCheckpoint(folder, this.plan.runId, async (damaged, { message }) => {
      const keptAs = await setAside(folder, damaged).catch(() => '');
      this.#record(checkpointDamaged(damaged, keptAs, message), true);
    });
    if (newest?.step === step) return true;
    this.#dispatch({ type: 'restore-point-lost', step: newest?.step ?? 0 });
    return false;
  }

  #manifest(step: number, generation: number, files: readonly CheckpointFile[]) {
    const { runId, seed, configDigest, datasetDigest } = this.plan;
    return {
      formatVersion: 1 as const,
      runId,
      step,
      generation,
      dataPosition: positionOf(this.plan, step + 1, 0, 0),
      seed,
      configDigest,
      datasetDigest,
      files: [...files],
      time: this.#parts.surroundings.wallTime().toISOString(),
    };
  }

  #settle(): void {
    const { failure, phase } = this.#state;
    // After a good end workers still have calls under way, and leave by themselves.
    if (failure !== undefined) {
      for (const stream of this.#streams.values()) stream.end(failure);
      this.#refuseAll(failure);
    } else {
      // Spares have none, and wait for a generation that does not come.
      const { memberSessions } = this.#state;
      for (const [session, stream] of this.#streams)
        if (!memberSessions.includes(session)) stream.end(runOver(this.#state));
    }
    const summary = phase === RunPhase.FINISHED ? this.writeSummary() : Promise.resolve();
    this.#diskWork = Promise.all([this.#diskWork, summary]).then(
      () => undefined,
      (error: unknown) => {
        this.#log.error(
          `cannot write ${SUMMARY_FILE}: ${messageOf(error)}; its content is in the journal`,
        );
      },
    );
    void this.#diskWork.then(this.#declareOver);
  }

  /** Something that the state machine asked for could not be done. */
  #endFailed(error: unknown): void {
    if (!(error instanceof VideoloomError)) throw error;
    this.#log.error({ code: error.code }, error.message);
    this.#refuseAll(error);
    if (!isOver(this.#state)) this.#dispatch({ type: 'fail', error });
    else this.#settle();
  }

  #refuseAll(error: VideoloomError): void {
    for (const { reject } of this.#calls.values()) reject(error);
    this.#calls.clear();
  }

  #checkLock(): void {
    if (isOver(this.#state) || this.#holdsLock()) return;
    const error = new VideoloomError(
      'RUN_LOCK_LOST',
      `the lock of run folder ${this.#folder} was removed or taken by another coordinator, or cannot be read any more; ` +
        'this one stops writing to it.',
    );
    // The journal is not this one's any more.
    this.#log.error({ code: error.code }, error.message);
    this.fail(error);
  }

  /** A lock that cannot be read counts as held for a while: the file system may be away for a moment. */
  #holdsLock(): boolean {
    const { lock, surroundings } = this.#parts;
    const nowMs = surroundings.nowMs();
    try {
      const isHeld = lock.isHeld();
      this.#lockSeenMs = nowMs;
      return isHeld;
    } catch (error) {
      this.#log.warn(`the lock of the run folder cannot be read: ${messageOf(error)}`);
      return nowMs - this.#lockSeenMs <= this.#state.limits.reconnectMs;
    }
  }
}

type DamagedCheckpoint = JournalEvent & { readonly type: 'checkpoint-damaged' };

function checkpointDamaged(step: number, keptAs: string, message: string): DamagedCheckpoint {
  return { type: 'checkpoint-damaged', step, keptAs, message };
}

function damageOf({ step, keptAs, message }: DamagedCheckpoint): string {
  return keptAs === ''
    ? `the checkpoint of step ${step} cannot be used: ${message}`
    : `${message} It is kept as ${keptAs}, to be looked at or removed.`;
}

function coordinatorClosed(): VideoloomError {
  return new VideoloomError('COORDINATOR_CLOSED', 'the coordinator is being ended', {
    retryable: true,
  });
}

function logEvent(log: Log, event: JournalEvent): void {
  switch (event.type) {
    case 'commit': {
      const { step, generation, objectives, gradientNorm, checkpoint, last } = event;
      const losses = Object.fromEntries(
        objectives.map(({ name, lossSum, count }) => [name, count === 0 ? 0 : lossSum / count]),
      );
      log.debug({ step, generation, losses, gradientNorm, checkpoint, last }, 'committed');
      for (const { sample, substitute, reason, message } of event.skipped) {
        log.warn({ step, sample, substitute, reason }, `sample substituted: ${message}`);
      }
      return;
    }
    case 'worker-lost':
      log.warn({ worker_id: event.workerId, reason: event.reason }, event.message);
      return;
    case 'checkpoint-failed':
      log.error(
        { step: event.step, reason: event.reason },
        `checkpoint given up: ${event.message}`,
      );
      return;
    case 'checkpoint-damaged':
      log.warn({ step: event.step, code: 'CHECKPOINT_INVALID' }, damageOf(event));
      return;
    case 'failed':
      log.error({ code: event.code }, event.message);
      return;
    case 'generation': {
      const { generation, committedStep, restoreStep, members } = event;
      const workers = members.map(({ workerId }) => workerId);
      log.info({ generation, step: committedStep, restoreStep, workers }, 'generation opened');
      return;
    }
    case 'time':
      return;
    default: {
      const { type, ...fields } = event;
      log.info(fields, type);
    }
  }
}
