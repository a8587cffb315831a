import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { TestContext } from 'node:test';

import { VideoloomError } from '../proto/errors.ts';
import { RendezvousServiceService as Rpc } from '../proto/gen/videoloom/v1/rendezvous.ts';
import { call, dial, serve } from '../proto/grpc.ts';
import { KeyValues, rendezvousService } from './key-values.ts';

const LIMITS = {
  maxKeys: 4,
  maxValueBytes: 16,
  maxTotalBytes: 40,
  maxWaiting: 2,
  maxWaitMs: 60_000,
};

const hasCode = (code: string) => (error: unknown) => {
  assert.ok(error instanceof VideoloomError, String(error));
  assert.equal(error.code, code);
  return true;
};

async function open(t: TestContext) {
  let newest = 1;
  const values = new KeyValues('run-1', () => newest, LIMITS);
  const service = { definition: Rpc, handlers: rendezvousService(values) };
  const server = await serve([service], '127.0.0.1:0');
  const channel = dial(server.address);
  t.after(async () => {
    channel.close();
    await server.close();
  });
  const options = { timeoutMs: 20_000 };
  const scope = (generation: number) => ({ runId: 'run-1', generation });
  return {
    values,
    openGeneration: (number: number): void => {
      newest = number;
    },
    put: (generation: number, key: string, ...bytes: number[]) =>
      call(
        channel,
        Rpc.putValue,
        { ...scope(generation), key, value: Buffer.from(bytes) },
        options,
      ),
    get: async (generation: number, key: string, timeoutMs: number) => [
      ...(await call(channel, Rpc.getValue, { ...scope(generation), key, timeoutMs }, options))
        .value,
    ],
    tryGet: async (generation: number, key: string) =>
      (await call(channel, Rpc.tryGetValue, { ...scope(generation), key }, options)).value,
    putOf: (runId: string) =>
      call(
        channel,
        Rpc.putValue,
        { runId, generation: 1, key: 'x', value: Buffer.alloc(0) },
        options,
      ),
  };
}

describe('values that workers leave for each other', () => {
  it('are given to who asks, also to who asked before they were there', async (t) => {
    const { put, get, tryGet } = await open(t);
    assert.equal(await tryGet(1, 'id'), undefined);
    const early = [get(1, 'id', 20_000), get(1, 'id', 20_000)];
    await put(1, 'id', 1, 2, 3);
    assert.deepEqual(await Promise.all(early), [
      [1, 2, 3],
      [1, 2, 3],
    ]);
    assert.deepEqual(await get(1, 'id', 0), [1, 2, 3]);
    assert.deepEqual([...(await tryGet(1, 'id'))!], [1, 2, 3]);
    await put(1, 'empty');
    assert.deepEqual([...(await tryGet(1, 'empty'))!], []);
  });

  it('are put once: the same again is no error, another one is', async (t) => {
    const { put, get } = await open(t);
    await put(1, 'id', 1);
    await put(1, 'id', 1);
    await assert.rejects(put(1, 'id', 2), hasCode('KEY_VALUE_TAKEN'));
    assert.deepEqual(await get(1, 'id', 0), [1]);
  });

  it('are waited for no longer than asked, by no more callers than allowed', async (t) => {
    const { put, get } = await open(t);
    await assert.rejects(get(1, 'never', 20), hasCode('KEY_VALUE_TIMEOUT'));
    const waiting = [get(1, 'a', 20_000), get(1, 'a', 20_000)];
    // A third one in between is refused; until it is, the two may still be under way.
    let refusal: unknown;
    while (refusal === undefined) {
      refusal = await get(1, 'b', 1).then(
        () => undefined,
        (error: unknown) =>
          error instanceof VideoloomError && error.code === 'KEY_VALUE_TIMEOUT' ? undefined : error,
      );
    }
    hasCode('KEY_VALUES_FULL')(refusal);
    await put(1, 'a', 9);
    assert.deepEqual(await Promise.all(waiting), [[9], [9]]);
  });

  it('go with their generation, and so do those who wait', async (t) => {
    const { put, get, tryGet, openGeneration } = await open(t);
    await put(1, 'id', 1);
    const waiting = get(1, 'other', 20_000);
    const ended = assert.rejects(waiting, hasCode('STALE_GENERATION'));
    await tryGet(1, 'id');
    openGeneration(2);
    await assert.rejects(put(1, 'id', 1), hasCode('STALE_GENERATION'));
    assert.equal(await tryGet(2, 'id'), undefined);
    await ended;
    await put(2, 'id', 2);
    assert.deepEqual(await get(2, 'id', 0), [2]);
    await assert.rejects(get(3, 'id', 0), hasCode('STALE_GENERATION'));
  });

  it('are limited in number and size', async (t) => {
    const { put, putOf } = await open(t);
    await assert.rejects(
      put(1, 'big', ...new Array<number>(17).fill(0)),
      hasCode('KEY_VALUES_FULL'),
    );
    for (let i = 0; i < 2; i++) await put(1, `key-${i}`, ...new Array<number>(16).fill(0));
    await assert.rejects(
      put(1, 'more', ...new Array<number>(16).fill(0)),
      hasCode('KEY_VALUES_FULL'),
    );
    for (let i = 0; i < 2; i++) await put(1, `small-${i}`, i);
    await assert.rejects(put(1, 'fifth', 1), hasCode('KEY_VALUES_FULL'));
    await assert.rejects(putOf('run-2'), hasCode('OTHER_RUN'));
  });
});
