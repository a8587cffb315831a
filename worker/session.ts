import { setMaxListeners } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { messageOf, VideoloomError } from '../proto/errors.ts';
import {
  CoordinatorServiceService as Rpc,
  type AttendRequest,
  type CommitStepRequest,
  type CommitStepResponse,
  type JoinRequest,
  type ReportCheckpointPartRequest,
  type ReportDamagedCheckpointRequest,
  type ReportResultRequest,
  type StepLease,
} from '../proto/gen/videoloom/v1/coordinator.ts';
import type { Generation } from '../proto/gen/videoloom/v1/run.ts';
import { call, callBidi, dial } from '../proto/grpc.ts';
import type { Log } from '../proto/log.ts';
import { LOOPBACK_ONLY, type Security } from '../proto/security.ts';

const CALL_TIMEOUT_MS = 20_000;
/** In which the coordinator reads a checkpoint whole. */
const VERIFY_TIMEOUT_MS = 600_000;

/** A worker's membership in a run: joined, attending, and joined again when the coordinator comes back. */
export interface Session {
  /** The first generation with a number above `number` that has this worker in it. */
  generationAfter(number: number, signal?: AbortSignal): Promise<Generation>;
  /** Aborts when `generation` is over: another one is open, or the coordinator is gone. */
  scopeOf(generation: Generation): AbortSignal;
  lease(
    generation: Generation,
    firstStep: number,
    numSteps: number,
    signal: AbortSignal,
  ): Promise<StepLease[]>;
  /** Answers when every member has voted, which takes as long as the slowest. */
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
  close(): void;
}

export interface SessionOptions {
  readonly coordinatorAddress: string;
  /** What protects the connection to it; plain text on the loopback when left out. */
  readonly security?: Security;
  /** What the worker says of itself at each joining. */
  readonly describe: () => Omit<JoinRequest, 'session'>;
  /** What it is doing, for the beats. */
  readonly activity: () => Omit<AttendRequest, 'session'>;
  /** How long a lost coordinator is waited for. */
  readonly reconnectTimeoutMs: number;
  readonly log: Log;
}

/**
 * Joins the run and stays in it.
 *
 * @throws VideoloomError what `Join` refuses with, or `COORDINATOR_LOST` when it cannot be reached in time.
 */
export async function openSession(options: SessionOptions): Promise<Session> {
  const { coordinatorAddress, describe, activity, reconnectTimeoutMs, log } = options;
  const { security = LOOPBACK_ONLY } = options;
  const channel = dial(coordinatorAddress, { security, peer: { role: 'coordinator' } });
  const closing = new AbortController();
  let sessionId = '';
  let latest: Generation | undefined;
  let failure: Error | undefined;
  let connected = false;
  let attending: AbortController | undefined;
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

  const join = async (): Promise<{ intervalMs: number }> => {
    const joined = await call(channel, Rpc.join, describe(), {
      timeoutMs: CALL_TIMEOUT_MS,
      signal: closing.signal,
    });
    sessionId = joined.session;
    return { intervalMs: joined.heartbeatIntervalMs };
  };

  /** Beats until the stream ends. */
  const attend = async (intervalMs: number): Promise<void> => {
    const ended = new AbortController();
    attending = ended;
    const beats = async function* (): AsyncGenerator<AttendRequest> {
      while (!ended.signal.aborted) {
        yield { session: sessionId, ...activity() };
        await delay(intervalMs, undefined, { signal: ended.signal, ref: false }).catch(
          () => undefined,
        );
      }
    };
    try {
      const stream = callBidi(channel, Rpc.attend, beats(), {
        timeoutMs: Infinity,
        signal: AbortSignal.any([closing.signal, ended.signal]),
      });
      for await (const { generation } of stream) {
        if (generation === undefined) continue;
        latest = generation;
        endScopes(`generation ${generation.number} is open`, generation.number);
        wake();
      }
    } finally {
      ended.abort();
    }
  };

  const isClosed = (): boolean => closing.signal.aborted;

  const stay = async (intervalMs: number): Promise<void> => {
    for (let beatMs = intervalMs; !isClosed();) {
      connected = true;
      await attend(beatMs).catch((error: unknown) => {
        // Another process took this worker's name: joining again would only fence that one in turn.
        if (error instanceof VideoloomError && error.code === 'FENCED') throw error;
        if (!isClosed()) log.warn(`lost the coordinator: ${messageOf(error)}`);
      });
      connected = false;
      if (isClosed()) return;
      endScopes('the coordinator is gone');
      beatMs = (await rejoin()).intervalMs;
    }
  };

  const rejoin = async (): Promise<{ intervalMs: number }> => {
    const startMs = performance.now();
    for (let waitMs = 100; ; waitMs = Math.min(2000, waitMs * 2)) {
      try {
        return await join();
      } catch (error) {
        const lasted = performance.now() - startMs;
        if (!(error instanceof VideoloomError) || !error.retryable) throw error;
        if (lasted > reconnectTimeoutMs) {
          throw new VideoloomError(
            'COORDINATOR_LOST',
            `no coordinator at ${coordinatorAddress} for ${Math.round(lasted / 1000)} s (${error.message}); ` +
              'start it again on the same address and run folder, then this worker',
            { cause: error },
          );
        }
        await delay(waitMs, undefined, { signal: closing.signal });
      }
    }
  };

  const { intervalMs } = await rejoin();
  const staying = stay(intervalMs).catch((error: unknown) => {
    failure = error instanceof Error ? error : new Error(String(error));
    endScopes('the session is over');
    wake();
  });
  void staying;

  return {
    async generationAfter(number, signal) {
      for (;;) {
        if (failure !== undefined) throw failure;
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
      if (latest !== generation || !connected) endScopes('another generation is open');
      return scope.signal;
    },
    async lease(generation, firstStep, numSteps, signal) {
      const request = { session: sessionId, generation: generation.number, firstStep, numSteps };
      const { steps } = await call(channel, Rpc.leaseMicrobatches, request, {
        timeoutMs: CALL_TIMEOUT_MS,
        signal,
      });
      return steps;
    },
    commit: (vote, signal) =>
      // The coordinator ends a step that takes too long; the scope ends the call with it.
      call(
        channel,
        Rpc.commitStep,
        { ...vote, session: sessionId },
        { timeoutMs: Infinity, signal },
      ),
    async reportCheckpointPart(part) {
      const request = { ...part, session: sessionId };
      const { complete } = await call(channel, Rpc.reportCheckpointPart, request, {
        timeoutMs: CALL_TIMEOUT_MS,
        signal: closing.signal,
      });
      return complete;
    },
    async reportDamagedCheckpoint(damage, signal) {
      const request = { ...damage, session: sessionId };
      const { isWhole } = await call(channel, Rpc.reportDamagedCheckpoint, request, {
        timeoutMs: VERIFY_TIMEOUT_MS,
        signal,
      });
      return isWhole;
    },
    async reportResult(result, signal) {
      const request = { ...result, session: sessionId };
      await call(channel, Rpc.reportResult, request, { timeoutMs: Infinity, signal });
    },
    renew() {
      attending?.abort();
    },
    close() {
      closing.abort();
      channel.close();
    },
  };
}
