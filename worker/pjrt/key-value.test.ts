import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { after, before, test } from 'node:test';
import { koffi } from '../../proto/koffi.ts';
import { VideoloomError } from '../../proto/errors.ts';
import { openKeyValueCallbacks, type KeyValueCallbacks, type KeyValueStore } from './key-value.ts';
import { loadPjrtApi } from './c-api.ts';
import { openPjrtClient } from './client.ts';
import { addressOf, bytesAt, callDeleter } from './structs.ts';
import { cpuPlugin } from './test/client.ts';

/** The callbacks as a plugin calls them: by pointer, with structs of pjrt_c_api.h, from threads that are not Node's. */
const CALLBACK = koffi.proto('void *', ['void *']);
const MAKE_ERROR = koffi.pointer(
  koffi.proto('void *TestMakeError(int code, void *text, size_t size)'),
);

const values = new Map<string, Uint8Array>();
const waiting: { key: string; give: (value: Uint8Array) => void }[] = [];
const store: KeyValueStore = {
  put(key, value) {
    if (key === 'forbidden') return Promise.reject(new Error('the store is full'));
    values.set(key, value);
    for (const { key: wanted, give } of waiting) if (wanted === key) give(value);
    return Promise.resolve();
  },
  get(key, timeoutMs) {
    const known = values.get(key);
    if (known !== undefined) return Promise.resolve(known);
    return new Promise((give, fail) => {
      waiting.push({ key, give });
      setTimeout(() => {
        fail(new VideoloomError('KEY_VALUE_TIMEOUT', `${key} did not come`));
      }, timeoutMs);
    });
  },
  tryGet: (key) => Promise.resolve(values.get(key)),
};

let callbacks: KeyValueCallbacks;
const errors: { code: number; text: string }[] = [];
/** `PJRT_CallbackError *`: the address of a pointer to the function that makes a PJRT_Error. */
const maker = new BigUint64Array(16);
before(async () => {
  loadPjrtApi(await cpuPlugin()); // as before every use
  callbacks = await openKeyValueCallbacks(store);
  maker[0] = koffi.register((code: number, text: bigint, size: number) => {
    errors.push({ code, text: Buffer.from(bytesAt(text, size)).toString() });
    return 77n;
  }, MAKE_ERROR);
});
after(() => callbacks.close());

/** Calls a callback on a thread of the pool; gives the error and the struct as it left it. */
async function call(callback: bigint, fields: readonly bigint[]) {
  const words = new BigUint64Array(16);
  words.set(fields, 2);
  const native = koffi.decode(callback, CALLBACK) as {
    async(args: BigUint64Array, done: (thrown: Error | null, error: bigint | null) => void): void;
  };
  const error = await new Promise<bigint | null>((done, fail) => {
    native.async(words, (thrown, result) => {
      if (thrown === null) done(result);
      else fail(thrown);
    });
  });
  return { error, words };
}

function text(value: string): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(Math.max(64, value.length));
  bytes.set(Buffer.from(value));
  return bytes;
}

const put = (key: string, value: Uint8Array) => {
  const [keyBytes, held] = [text(key), new Uint8Array(Math.max(64, value.length))];
  held.set(value);
  const sizes = [BigInt(key.length), BigInt(value.length)] as const;
  const fields = [addressOf(keyBytes), sizes[0], addressOf(held), sizes[1], addressOf(maker), 0n];
  return call(callbacks.put, fields).finally(() => [keyBytes, held]);
};

const get = (key: string, timeoutMs: number) => {
  const keyBytes = text(key);
  const fields = [addressOf(keyBytes), BigInt(key.length), BigInt(timeoutMs), addressOf(maker), 0n];
  return call(callbacks.get, fields).finally(() => keyBytes);
};

const tryGet = (key: string) => {
  const keyBytes = text(key);
  const fields = [addressOf(keyBytes), BigInt(key.length), addressOf(maker), 0n];
  return call(callbacks.tryGet, fields).finally(() => keyBytes);
};

/** Reads the value as a plugin does, and frees it. */
function valueOf(words: BigUint64Array, at: number): Uint8Array {
  const value = bytesAt(words[at]!, words[at + 1]!);
  callDeleter(words[at + 2]!, words[at]!);
  return value;
}

test('what one thread puts, another gets, byte for byte', async () => {
  const value = Uint8Array.from({ length: 300 }, (_, i) => i);
  assert.equal((await put('nccl/0', value)).error, null);
  const { error, words } = await get('nccl/0', 1000);
  assert.equal(error, null);
  assert.deepEqual(valueOf(words, 7), value);
  const tried = await tryGet('nccl/0');
  assert.equal(tried.error, null);
  assert.deepEqual(valueOf(tried.words, 6), value);
});

test('an empty value is a value', async () => {
  assert.equal((await put('empty', new Uint8Array())).error, null);
  const { error, words } = await get('empty', 1000);
  assert.equal(error, null);
  assert.deepEqual(valueOf(words, 7), new Uint8Array());
});

test('a get waits for the put of another thread of the same process', async () => {
  const first = get('late', 20_000);
  let isDone = false;
  void first.then(() => {
    isDone = true;
  });
  await delay(50);
  assert.equal(isDone, false);
  assert.equal((await put('late', Uint8Array.of(7))).error, null);
  assert.deepEqual(valueOf((await first).words, 7), Uint8Array.of(7));
});

test('many threads call at once', async () => {
  const gets = Array.from({ length: 3 }, (_, i) => get(`many/${i}`, 20_000));
  for (let i = 2; i >= 0; i--) await put(`many/${i}`, Uint8Array.of(i));
  const got = await Promise.all(gets);
  assert.deepEqual(
    got.map(({ words }) => [...valueOf(words, 7)]),
    [[0], [1], [2]],
  );
});

test('what fails comes back as an error of the plugin, with a status and a reason', async () => {
  const cases = [
    [() => get('never', 20), 4, /never did not come/],
    [() => tryGet('never'), 5, /nobody has put the key never/],
    [() => put('forbidden', Uint8Array.of(1)), 14, /the store is full/],
  ] as const;
  for (const [attempt, status, message] of cases) {
    errors.length = 0;
    assert.equal((await attempt()).error, 77n);
    assert.equal(errors[0]!.code, status);
    assert.match(errors[0]!.text, message);
  }
});

test('a client is opened with them, and closes them', async () => {
  const client = await openPjrtClient({ pluginPath: await cpuPlugin(), keyValues: store });
  assert.ok(client.devices.length >= 1);
  client.close();
});
