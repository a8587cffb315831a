/**
 * A thread whose JavaScript a plugin's threads run: it waits there, with its event loop held, until the main thread has
 * the answer. `key-value.ts` starts it.
 */
import {
  parentPort,
  receiveMessageOnPort,
  workerData,
  type MessagePort,
} from 'node:worker_threads';
import { koffi } from '../../proto/koffi.ts';
import { messageOf } from '../../proto/errors.ts';
import type { KeyValueAnswer, KeyValueCall, KeyValueRequest } from './key-value.ts';
import { bytesAt, wordsAt } from './structs.ts';

const { calls, answers, isAnswered } = workerData as {
  readonly calls: readonly KeyValueCall[];
  readonly answers: MessagePort;
  /** Shared with the main thread: 1 when an answer is in `answers`. */
  readonly isAnswered: Int32Array;
};

const libc = koffi.load(null);
const malloc = libc.func('void *malloc(size_t size)') as (size: number) => bigint | null;
const dlsym = libc.func('void *dlsym(void *handle, const char *name)') as (
  handle: null,
  name: string,
) => bigint | null;
/** What the plugin calls on a value that it has read. */
const FREE = dlsym(null, 'free')!;
const CALLBACK = koffi.proto('void *VideoloomKeyValueCallback(void *args)');
const MAKE_ERROR = koffi.proto('void *', ['int', 'void *', 'size_t']);

/** Positions of the words of each call's struct. Source: PJRT_KeyValue*Callback_Args in pjrt_c_api.h. */
const LAYOUTS = {
  get: { key: 2, timeout: 4, makeError: 5, result: 7, numWords: 10 },
  tryGet: { key: 2, timeout: undefined, makeError: 4, result: 6, numWords: 9 },
  put: { key: 2, timeout: undefined, makeError: 6, result: undefined, numWords: 8 },
} as const;
const PUT_VALUE = 4;
// Source: PJRT_Error_Code in pjrt_c_api.h.
const UNKNOWN = 2;
/** How long after a call's own time limit the main thread may answer. */
const GRACE_MS = 30_000;

let numAsked = 0;
const addresses = calls.map((call) => [
  call,
  koffi.register((args: bigint) => answerCall(call, args), koffi.pointer(CALLBACK)),
]);
parentPort!.postMessage({ addresses: Object.fromEntries(addresses) as object });
// Keeps the event loop, through which the plugin's threads come in.
parentPort!.on('message', () => undefined);

/** Gives the PJRT_Error of a call that failed. */
function answerCall(call: KeyValueCall, args: bigint): bigint | null {
  const layout = LAYOUTS[call];
  const words = new BigUint64Array(koffi.view(args, layout.numWords * 8));
  try {
    const answer = ask({
      call,
      // XLA's keys are text; whatever the bytes, they stay apart.
      key: latin1(bytesAt(words[layout.key]!, words[layout.key + 1]!)),
      value: call === 'put' ? bytesAt(words[PUT_VALUE]!, words[PUT_VALUE + 1]!) : undefined,
      timeoutMs:
        layout.timeout === undefined ? 0 : Number(BigInt.asIntN(32, words[layout.timeout]!)),
    });
    if (answer.error !== undefined) {
      return makeError(words[layout.makeError]!, answer.error.status, answer.error.message);
    }
    if (layout.result !== undefined) giveValue(words, layout.result, answer.value!);
    return null;
  } catch (error) {
    return makeError(words[layout.makeError]!, UNKNOWN, messageOf(error));
  }
}

/** Holds this thread until the main thread answers. */
function ask(request: Omit<KeyValueRequest, 'id'>): KeyValueAnswer {
  const id = ++numAsked;
  Atomics.store(isAnswered, 0, 0);
  parentPort!.postMessage({ request: { ...request, id } });
  const endMs = performance.now() + request.timeoutMs + GRACE_MS;
  for (;;) {
    const received = receiveMessageOnPort(answers) as { message: KeyValueAnswer } | undefined;
    if (received?.message.id === id) return received.message;
    const restMs = endMs - performance.now();
    if (restMs <= 0) throw new Error(`no answer about the key ${request.key}`);
    if (received === undefined) Atomics.wait(isAnswered, 0, 0, restMs);
    Atomics.store(isAnswered, 0, 0);
  }
}

function giveValue(words: BigUint64Array, at: number, value: Uint8Array): void {
  const memory = malloc(Math.max(1, value.length));
  if (memory === null) throw new Error(`no memory for a value of ${value.length} bytes`);
  if (value.length > 0) new Uint8Array(koffi.view(memory, value.length)).set(value);
  words[at] = memory;
  words[at + 1] = BigInt(value.length);
  words[at + 2] = FREE;
}

function makeError(makerAddress: bigint, status: number, message: string): bigint | null {
  const text = Buffer.from(message);
  const [maker] = wordsAt(makerAddress, 1);
  return koffi.call(maker!, MAKE_ERROR, status, text, text.length) as bigint | null;
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('latin1');
}
