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

/** @internal What a plugin's thread asks for. */
export interface KeyValueRequest {
  readonly id: number;
  readonly call: KeyValueCall;
  readonly key: string;
  readonly value: Uint8Array | undefined;
  readonly timeoutMs: number;
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

async function answer(
  store: KeyValueStore,
  { id, call, key, value, timeoutMs }: KeyValueRequest,
): Promise<KeyValueAnswer> {
  try {
    switch (call) {
      case 'put':
        await store.put(key, value!);
        return { id };
      case 'get':
        return { id, value: await store.get(key, timeoutMs) };
      case 'tryGet': {
        const found = await store.tryGet(key);
        if (found !== undefined) return { id, value: found };
        return { id, error: { status: NOT_FOUND, message: `nobody has put the key ${key}` } };
      }
    }
  } catch (error) {
    const isLate = error instanceof VideoloomError && error.code === 'KEY_VALUE_TIMEOUT';
    const status = isLate ? DEADLINE_EXCEEDED : UNAVAILABLE;
    return { id, error: { status, message: messageOf(error) } };
  }
}

// Source: PJRT_Error_Code in pjrt_c_api.h.
const [DEADLINE_EXCEEDED, NOT_FOUND, UNAVAILABLE] = [4, 5, 14];
