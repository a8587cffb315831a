import { setTimeout as sleep } from 'node:timers/promises';

import { status } from '@grpc/grpc-js';

import type { RendezvousServiceServer } from '../proto/gen/videoloom/v1/rendezvous.ts';
import { demandRole, RpcError, unary } from '../proto/grpc.ts';

/** What the workers of one generation may leave here at most, and wait for. */
export interface KeyValueLimits {
  readonly maxKeys: number;
  readonly maxValueBytes: number;
  readonly maxTotalBytes: number;
  readonly maxWaiting: number;
  readonly maxWaitMs: number;
}

const LIMITS: KeyValueLimits = {
  maxKeys: 16_384,
  maxValueBytes: 2 ** 20,
  maxTotalBytes: 64 * 2 ** 20,
  maxWaiting: 4096,
  maxWaitMs: 15 * 60_000,
};

interface Scope {
  readonly runId: string;
  readonly generation: number;
}

/** The values of the newest generation. Waiting ends with the generation. */
export class KeyValues {
  readonly #runId: string;
  readonly #newest: () => number;
  readonly #limits: KeyValueLimits;
  readonly #values = new Map<string, Uint8Array>();
  readonly #waiting = new Map<string, Set<(value: Uint8Array) => void>>();
  #generation = 0;
  #totalBytes = 0;
  #numWaiting = 0;
  #over = new AbortController();

  /** `newest` gives the number of the run's newest generation; older ones are refused. */
  constructor(runId: string, newest: () => number, limits: KeyValueLimits = LIMITS) {
    this.#runId = runId;
    this.#newest = newest;
    this.#limits = limits;
  }

  /** @throws RpcError `KEY_VALUE_TAKEN`, `KEY_VALUES_FULL`, `STALE_GENERATION`, `OTHER_RUN` */
  put(scope: Scope, key: string, value: Uint8Array): void {
    this.#enter(scope);
    const known = this.#values.get(key);
    if (known !== undefined) {
      if (Buffer.compare(known, value) === 0) return;
      throw new RpcError(
        status.ALREADY_EXISTS,
        'KEY_VALUE_TAKEN',
        `the key ${key} has another value in generation ${scope.generation} already: two workers take themselves for one`,
      );
    }
    const { maxKeys, maxValueBytes, maxTotalBytes } = this.#limits;
    const total = this.#totalBytes + value.length;
    if (this.#values.size >= maxKeys || value.length > maxValueBytes || total > maxTotalBytes) {
      throw full(
        `the key ${key} with ${value.length} bytes goes beyond ${maxKeys} keys, ${maxValueBytes} bytes a value or ` +
          `${maxTotalBytes} bytes in all`,
      );
    }
    this.#values.set(key, value);
    this.#totalBytes = total;
    for (const give of this.#waiting.get(key) ?? []) give(value);
    this.#waiting.delete(key);
  }

  /** undefined where nobody has put it. @throws RpcError `STALE_GENERATION`, `OTHER_RUN` */
  tryGet(scope: Scope, key: string): Uint8Array | undefined {
    this.#enter(scope);
    return this.#values.get(key);
  }

  /** @throws RpcError as `tryGet`; `KEY_VALUE_TIMEOUT` when nobody has put it in time, `KEY_VALUES_FULL` */
  async get(
    scope: Scope,
    key: string,
    timeoutMs: number,
    signal: AbortSignal,
  ): Promise<Uint8Array> {
    const known = this.tryGet(scope, key);
    if (known !== undefined) return known;
    const { maxWaiting, maxWaitMs } = this.#limits;
    if (this.#numWaiting >= maxWaiting) throw full(`${maxWaiting} calls wait for values already`);
    const ended = new AbortController();
    const any = AbortSignal.any([signal, this.#over.signal, ended.signal]);
    const waiting = this.#waiting.get(key) ?? new Set();
    this.#waiting.set(key, waiting);
    this.#numWaiting++;
    let give: ((value: Uint8Array) => void) | undefined;
    try {
      const value = new Promise<Uint8Array>((resolve) => {
        give = resolve;
        waiting.add(resolve);
      });
      const late = sleep(Math.min(timeoutMs, maxWaitMs), undefined, { signal: any, ref: false });
      const found = await Promise.race([value, late]);
      if (found !== undefined) return found;
      throw new RpcError(
        status.DEADLINE_EXCEEDED,
        'KEY_VALUE_TIMEOUT',
        `nobody has put the key ${key} in generation ${scope.generation} within ${timeoutMs} ms`,
      );
    } catch (error) {
      if (this.#over.signal.aborted || scope.generation < this.#generation)
        throw stale(scope.generation, this.#generation);
      throw error;
    } finally {
      ended.abort();
      this.#numWaiting--;
      if (give !== undefined) waiting.delete(give);
      if (waiting.size === 0 && this.#waiting.get(key) === waiting) this.#waiting.delete(key);
    }
  }

  /** Checks the scope; at the first call of a newer generation the values of the older go. */
  #enter({ runId, generation }: Scope): void {
    if (runId !== this.#runId) {
      throw new RpcError(
        status.FAILED_PRECONDITION,
        'OTHER_RUN',
        `this coordinator leads run ${this.#runId}, not ${runId}`,
      );
    }
    const newest = this.#newest();
    if (generation !== newest) throw stale(generation, newest);
    if (generation === this.#generation) return;
    this.#generation = generation;
    this.#values.clear();
    this.#totalBytes = 0;
    this.#over.abort();
    this.#over = new AbortController();
    this.#waiting.clear();
  }
}

/** The RPCs over `values`. */
export function rendezvousService(values: KeyValues): RendezvousServiceServer {
  return {
    putValue: unary((request, context) => {
      demandRole(context, 'worker');
      values.put(request, request.key, request.value);
      return {};
    }),
    getValue: unary(async (request, context) => {
      demandRole(context, 'worker');
      const { key, timeoutMs } = request;
      return { value: Buffer.from(await values.get(request, key, timeoutMs, context.signal)) };
    }),
    tryGetValue: unary((request, context) => {
      demandRole(context, 'worker');
      const value = values.tryGet(request, request.key);
      return { value: value === undefined ? undefined : Buffer.from(value) };
    }),
  };
}

function stale(theirs: number, newest: number): RpcError {
  return new RpcError(
    status.FAILED_PRECONDITION,
    'STALE_GENERATION',
    `generation ${theirs} is not the newest, which is ${newest}: its values are gone`,
  );
}

function full(what: string): RpcError {
  return new RpcError(status.RESOURCE_EXHAUSTED, 'KEY_VALUES_FULL', what);
}
