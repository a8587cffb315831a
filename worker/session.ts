import { setMaxListeners } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { messageOf, VideoloomError } from '../proto/errors.ts';
import {
  CoordinatorServiceService as Rpc,
  type CommitStepRequest,
  type CommitStepResponse,
  type JoinRequest,
  type ReportCheckpointPartRequest,
  type ReportDamagedCheckpointRequest,
  type ReportResultRequest,
  type StepLease,
} from '../proto/gen/videoloom/v1/coordinator.ts';
import type { Generation } from '../proto/gen/videoloom/v1/run.ts';
import { call, dial } from '../proto/grpc.ts';
import { Line } from '../proto/line.ts';
import type { Log } from '../proto/log.ts';
import { LOOPBACK_ONLY, type Security } from '../proto/security.ts';
import type { TimeLimits } from '../proto/time-limits.ts';
import { BEATS_LOST, openAttendance } from './attendance.ts';
import type { Ledger } from './ledger.ts';

/** A worker's membership in a run: joined, attending, and joined again when the coordinator comes back. */
export interface Session {
  /**
   * The first generation with a number above `number`; this worker may be no member of it.
   * @throws VideoloomError LEFT once this worker may leave, as it wanted
   */
  generationAfter(number: number, signal?: AbortSignal): Promise<Generation>;
  /** Aborts when `generation` is over: another one is open, or the coordinator is gone. */
  scopeOf(generation: Generation): AbortSignal;
  lease(
    generation: Generation,
    firstStep: number,
    numSteps: number,
    signal: AbortSignal,
  ): Promise<StepLease[]>;
  /**
   * Answers when every member has voted, which takes as long as the slowest. An answer that is on its way when `signal`
   * aborts still counts.
   */
  commit(
    vote: Omit<CommitStepRequest, 'session'>,
    signal: AbortSignal,
  ): Promise<CommitStepResponse>;
  reportCheckpointPart(part: Omit<ReportCheckpointPartRequest, 'session'>): Promise<boolean>;
  /** Gives whether the coordinator finds the checkpoint whole; where it does not, another generation follows. */
  reportDamagedCheckpoint(
    damage: Omit<ReportDamagedCheckpointRequest, 'session'>,
    signal: AbortSignal,
  ): Promise<boolean>;
  reportResult(result: Omit<ReportResultRequest, 'session'>, signal: AbortSignal): Promise<void>;
  /** Leaves and joins again, which opens another generation: for when the workers cannot reach each other. */
  renew(): void;
  /** Says good-bye and ends the session. */
  close(): Promise<void>;
}

export interface SessionOptions {
  readonly coordinatorAddress: string;
  /** What protects the connection to it; plain text on the loopback when left out. */
  readonly security?: Security;
  /** What has to be done before it joins. */
  readonly prepared?: Promise<void>;
  /** What the worker says of itself at each joining. */
  readonly describe: () => Omit<JoinRequest, 'session'>;
  /**
   * When it aborts, the worker leaves in order: as soon as the others can do without it, the scope ends and
   * `generationAfter` says LEFT. Before the first joining, nothing is prepared or joined any more.
   */
  readonly leaving?: AbortSignal;
  /**
   * Called when the coordinator is lost. What it gives tells whether the run has come to its end, as far as can be seen
   * without a coordinator, and throws a VideoloomError where nobody will lead it again.
   */
  readonly watchForEnd: () => () => Promise<boolean>;
  /** What it is doing, for the beats. */
  readonly ledger: Ledger;
  readonly limits: TimeLimits;
  readonly log: Log;
}

/** Code of the error of one that came, or came again, when the run was over. */
export const RUN_FINISHED = 'RUN_FINISHED';

/** How long a worker that has never joined looks for its coordinator before it says so. */
const FIRST_WORD_MS = 5000;

/**
 * Joins the run and stays in it.
 *
 * @throws VideoloomError what `Join` refuses with, `COORDINATOR_LOST` when it cannot be reached in time, or `LEFT`.
 */
export async function openSession(options: SessionOptions): Promise<Session> {
  const { coordinatorAddress, describe, ledger, limits, log } = options;
  const { security = LOOPBACK_ONLY } = options;
  const peer = { role: 'coordinator' } as const;
  // An attempt to join ends with its call, before which the connection is to be tried anew.
  const connectMs = { first: Math.min(5000, limits.callMs / 4), most: limits.callMs / 2 };
  const line = new Line(
    () => dial(coordinatorAddress, { security, peer, keepalive: limits.patience }),
    connectMs,
  );
  const closing = new AbortController();
  let sessionId = '';
  let latest: Generation | undefined;
  let failure: Error | undefined;
  let connected = false;
  let wantsToLeave = false;
  let isReleased = false;
  const waiters = new Set<() => void>();
  const scopes = new Map<number, AbortController>();
  const wake = (): void => {
    for (const waiter of [...waiters]) waiter();
  };
  const endScopes = (reason: string, except?: number): void => {
    for (const [number, scope] of scopes) {
      if (number === except) continue;
      scopes.delete(number);
      scope.abort(new VideoloomError('GENERATION_CHANGED', reason, { retryable: true }));
    }
  };

  const release = (): void => {
    isReleased = true;
    endScopes('this worker leaves');
    wake();
  };
  const attendance = openAttendance({
    coordinatorAddress,
    security,
    limits,
    cells: ledger.cells,
    onGeneration: (generation) => {
      latest = generation;
      endScopes(`generation ${generation.number} is open`, generation.number);
      wake();
    },
    onReleased: release,
  });

  const join = async (): Promise<{ beatMs: number }> => {
    const { channel, signal, end } = line.attempt(closing.signal);
    const joined = await call(channel, Rpc.join, describe(), {
      timeoutMs: limits.callMs,
      signal,
    }).finally(end);
    if (joined.detectWithinMs !== limits.detectWithinMs)
      throw otherSetting(limits.detectWithinMs, joined.detectWithinMs);
    sessionId = joined.session;
    // Else one that was dropped for standing still would be dropped again at its first beat.
    ledger.progress();
    return { beatMs: joined.heartbeatIntervalMs };
  };

  const isClosed = (): boolean => closing.signal.aborted;

  const stay = async (firstBeatMs: number): Promise<void> => {
    for (let beatMs = firstBeatMs; !isClosed();) {
      connected = true;
      await attendance.attend(sessionId, beatMs).catch((error: unknown) => {
        // Another process took this worker's name: joining again would only fence that one in turn. Without beats it
        // would be joining for ever.
        const isFinal =
          error instanceof VideoloomError && ['FENCED', BEATS_LOST].includes(error.code);
        if (isFinal && !isClosed()) throw error;
        if (!isClosed()) log.warn(`lost the coordinator: ${messageOf(error)}`);
      });
      connected = false;
      if (isClosed()) return;
      // Nobody is left who could say so.
      if (wantsToLeave) {
        release();
        return;
      }
      endScopes('the coordinator is gone');
      ({ beatMs } = await rejoin());
    }
  };

  /** Whoever started this worker sees nothing of its log, and may have mistyped the address. */
  let isToldOf = false;
  const rejoin = async (leaving?: AbortSignal): Promise<{ beatMs: number }> => {
    const startMs = performance.now();
    const isFinished = options.watchForEnd();
    const ended = AbortSignal.any([closing.signal, ...(leaving === undefined ? [] : [leaving])]);
    for (let waitMs = limits.beatMs / 4; ; waitMs = Math.min(limits.renewMs, waitMs * 2)) {
      if (leaving?.aborted === true) throw hasLeft();
      try {
        return await join();
      } catch (error) {
        const lasted = performance.now() - startMs;
        if (!(error instanceof VideoloomError) || !error.retryable) throw error;
        // Nobody leads it any more.
        if (await isFinished())
          throw new VideoloomError(RUN_FINISHED, 'the run has come to its end');
        if (sessionId === '' && !isToldOf && lasted > FIRST_WORD_MS) {
          isToldOf = true;
          const seconds = Math.round((limits.reconnectMs - lasted) / 1000);
          const waiting = `no coordinator at ${coordinatorAddress} yet; trying for ${seconds} s more`;
          process.stderr.write(`${waiting}\n`);
        }
        if (lasted > limits.reconnectMs) {
          throw new VideoloomError(
            'COORDINATOR_LOST',
            `no coordinator at ${coordinatorAddress} for ${Math.round(lasted / 1000)} s (${error.message}); ` +
              'start it again on the same address and run folder, then this worker',
            // Whoever starts both again, as their launcher does, does what this says.
            { cause: error, retryable: true },
          );
        }
        await delay(waitMs, undefined, { signal: ended }).catch((reason: unknown) => {
          if (isClosed()) throw reason;
        });
      }
    }
  };

  let staying: Promise<void>;
  try {
    const prepared = Promise.all([options.prepared, attendance.ready]);
    await Promise.race([prepared, aborted(options.leaving)]);
    const { beatMs } = await rejoin(options.leaving);
    staying = stay(beatMs);
  } catch (error) {
    await attendance.close();
    line.close();
    throw error;
  }
  staying = staying.catch((error: unknown) => {
    failure = error instanceof Error ? error : new Error(String(error));
    endScopes('the session is over');
    wake();
  });

  const leave = (): void => {
    log.info('asked to leave: the step in progress is ended first');
    wantsToLeave = true;
    ledger.sayLeaving();
    attendance.beat();
    if (!connected) release();
  };
  if (options.leaving?.aborted === true) leave();
  else options.leaving?.addEventListener('abort', leave, { once: true });

  return {
    async generationAfter(number, signal) {
      for (;;) {
        if (failure !== undefined) throw failure;
        if (isReleased) throw hasLeft();
        signal?.throwIfAborted();
        if (connected && latest !== undefined && latest.number > number) return latest;
        await new Promise<void>((resolve) => {
          const done = (): void => {
            waiters.delete(done);
            signal?.removeEventListener('abort', done);
            resolve();
          };
          waiters.add(done);
          signal?.addEventListener('abort', done);
        });
      }
    },
    scopeOf(generation) {
      const known = scopes.get(generation.number);
      if (known !== undefined) return known.signal;
      const scope = new AbortController();
      // Every clip that is decoded ahead listens to it.
      setMaxListeners(0, scope.signal);
      scopes.set(generation.number, scope);
      if (latest !== generation || !connected || isReleased) endScopes('the generation is over');
      return scope.signal;
    },
    async lease(generation, firstStep, numSteps, signal) {
      const request = { session: sessionId, generation: generation.number, firstStep, numSteps };
      const { steps } = await call(line.channel, Rpc.leaseMicrobatches, request, {
        timeoutMs: limits.callMs,
        signal,
      });
      return steps;
    },
    async commit(vote, signal) {
      signal.throwIfAborted();
      // The scope's end comes over another connection. It may overtake the answer, which tells of a checkpoint that this
      // worker has a share of. The coordinator answers every vote of a generation that ends, so this wait is short.
      const ended = new AbortController();
      let timer: NodeJS.Timeout | undefined;
      const end = (): void => {
        timer = setTimeout(() => {
          ended.abort(signal.reason);
        }, limits.detectWithinMs);
      };
      signal.addEventListener('abort', end, { once: true });
      try {
        const request = { ...vote, session: sessionId };
        // The coordinator ends a step that takes too long.
        const options = { timeoutMs: Infinity, signal: ended.signal };
        return await call(line.channel, Rpc.commitStep, request, options);
      } finally {
        signal.removeEventListener('abort', end);
        clearTimeout(timer);
      }
    },
    async reportCheckpointPart(part) {
      const request = { ...part, session: sessionId };
      const { complete } = await call(line.channel, Rpc.reportCheckpointPart, request, {
        timeoutMs: limits.callMs,
        signal: closing.signal,
      });
      return complete;
    },
    async reportDamagedCheckpoint(damage, signal) {
      const request = { ...damage, session: sessionId };
      const { isWhole } = await call(line.channel, Rpc.reportDamagedCheckpoint, request, {
        timeoutMs: limits.firstStillMs,
        signal,
      });
      return isWhole;
    },
    async reportResult(result, signal) {
      const request = { ...result, session: sessionId };
      await call(line.channel, Rpc.reportResult, request, { timeoutMs: Infinity, signal });
    },
    renew() {
      attendance.cut();
    },
    async close() {
      options.leaving?.removeEventListener('abort', leave);
      ledger.sayLeaving();
      const isAttending = connected;
      closing.abort();
      if (isAttending) {
        attendance.finish();
        // Whoever does not hear it notices that the connection ends.
        await Promise.race([staying, delay(limits.detectWithinMs, undefined, { ref: false })]);
      }
      await attendance.close();
      line.close();
    },
  };
}

/** Resolves when `signal` aborts. */
function aborted(signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted === true) resolve();
    signal?.addEventListener(
      'abort',
      () => {
        resolve();
      },
      { once: true },
    );
  });
}

function hasLeft(): VideoloomError {
  return new VideoloomError('LEFT', 'this worker has left', { retryable: true });
}

function otherSetting(ours: number, theirs: number): VideoloomError {
  return new VideoloomError(
    'SETTING_DIFFERS',
    `the coordinator was started with cluster.detectWithin ${theirs / 1000} s, this worker with ${ours / 1000} s: ` +
      'they have to read the same run folder',
  );
}
