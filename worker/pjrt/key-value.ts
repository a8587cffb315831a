import { once } from 'node:events';
import { MessageChannel, Worker } from 'node:worker_threads';
import { compiled } from '../../proto/compiled.mjs';
import { messageOf, VideoloomError } from '../../proto/errors.ts';

/** Where the processes of one job leave small values for each other, such as NCCL's ids. */
export interface KeyValueStore {
  put(key: string, value: Uint8Array): Promise<void>;
  /** Waits for the key. @throws VideoloomError `KEY_VALUE_TIMEOUT` when it is not there after `timeoutMs` */
  get(key: string, timeoutMs: number): Promise<Uint8Array>;
  /** undefined where nobody has put it yet. */
  tryGet(key: string): Promise<Uint8Array | undefined>;
}

/** Addresses of the C functions `PJRT_Error *callback(PJRT_KeyValue*Callback_Args *)`. */
export interface KeyValueCallbacks {
  readonly get: bigint;
  readonly put: bigint;
  readonly tryGet: bigint;
  /** Ends their threads; nobody may call them any more. */
  close(): Promise<void>;
}

export type KeyValueCall = 'get' | 'put' | 'tryGet';

/** @internal What a plugin asks for, from where its store is not at hand. */
export interface KeyValueQuestion {
  readonly call: KeyValueCall;
  readonly key: string;
  readonly value: Uint8Array | undefined;
  readonly timeoutMs: number;
}

/** @internal Of a plugin's thread. */
export interface KeyValueRequest extends KeyValueQuestion {
  readonly id: number;
}

/** @internal */
export interface KeyValueAnswer {
  readonly id: number;
  readonly value?: Uint8Array;
  readonly error?: { readonly status: number; readonly message: string };
}

/**
 * `store` as C functions that a plugin may call from its own threads. A call holds the thread that answers it, until a
 * value comes in the case of `get`: so `get` has a thread of its own, and what other calls of this process give is
 * taken meanwhile. This thread must stay free to serve the store.
 */
export async function openKeyValueCallbacks(store: KeyValueStore): Promise<KeyValueCallbacks> {
  const threads = await Promise.all([
    startThread(store, ['get']),
    startThread(store, ['put', 'tryGet']),
  ]);
  const addresses = Object.assign({}, ...threads.map((thread) => thread.addresses)) as Record<
    KeyValueCall,
    bigint
  >;
  return {
    ...addresses,
    async close() {
      await Promise.all(threads.map(({ worker }) => worker.terminate()));
    },
  };
}

async function startThread(store: KeyValueStore, calls: readonly KeyValueCall[]) {
  const { port1: toThread, port2: answers } = new MessageChannel();
  const isAnswered = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(compiled(new URL('./key-value-thread.ts', import.meta.url)), {
    ...{ execArgv: [], workerData: { calls, answers, isAnswered } },
    transferList: [answers],
  });
  const [{ addresses }] = (await once(worker, 'message')) as [
    { addresses: Partial<Record<KeyValueCall, bigint>> },
  ];
  worker.on('message', ({ request }: { request: KeyValueRequest }) => {
    void answer(store, request).then((answered) => {
      toThread.postMessage(answered);
      Atomics.store(isAnswered, 0, 1);
      Atomics.notify(isAnswered, 0);
    });
  });
  worker.unref();
  toThread.unref();
  return { worker, addresses };
}

/** @internal What a store says to a question: the value of `get`, and of `tryGet` where there is one. */
export async function askStore(
  store: KeyValueStore,
  { call, key, value, timeoutMs }: KeyValueQuestion,
): Promise<Uint8Array | undefined> {
  if (call === 'put') await store.put(key, value!);
  else if (call === 'get') return store.get(key, timeoutMs);
  else return store.tryGet(key);
  return undefined;
}

async function answer(store: KeyValueStore, request: KeyValueRequest): Promise<KeyValueAnswer> {
  const { id, call, key } = request;
  try {
    const value = await askStore(store, request);
    if (call === 'tryGet' && value === undefined)
      return { id, error: { status: NOT_FOUND, message: `nobody has put the key ${key}` } };
    return value === undefined ? { id } : { id, value };
  } catch (error) {
    const isLate = error instanceof VideoloomError && error.code === 'KEY_VALUE_TIMEOUT';
    const status = isLate ? DEADLINE_EXCEEDED : UNAVAILABLE;
    return { id, error: { status, message: messageOf(error) } };
  }
}

// Source: PJRT_Error_Code in pjrt_c_api.h.
const [DEADLINE_EXCEEDED, NOT_FOUND, UNAVAILABLE] = [4, 5, 14];
