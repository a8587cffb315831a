import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { describe, it } from 'node:test';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { status } from '@grpc/grpc-js';
import type { MethodDefinition } from '@grpc/grpc-js';

import { UsageError, VideoloomError } from './errors.ts';
import {
  bidi,
  call,
  callBidi,
  callStream,
  dial,
  RpcError,
  serve,
  serverStream,
  unary,
} from './grpc.ts';
import type { CallContext, Channel, RpcServer } from './grpc.ts';

function method(
  path: string,
  requestStream: boolean,
  responseStream: boolean,
): MethodDefinition<string, string> {
  const [serialize, deserialize] = [
    (text: string) => Buffer.from(text),
    (bytes: Buffer) => bytes.toString(),
  ];
  return {
    path,
    requestStream,
    responseStream,
    requestSerialize: serialize,
    requestDeserialize: deserialize,
    responseSerialize: serialize,
    responseDeserialize: deserialize,
  };
}

const definition = {
  ask: method('/test.Test/Ask', false, false),
  list: method('/test.Test/List', false, true),
  talk: method('/test.Test/Talk', true, true),
};

interface Handlers {
  ask?: (request: string, context: CallContext) => string | Promise<string>;
  list?: (request: string, context: CallContext) => AsyncIterable<string>;
  talk?: (requests: AsyncIterable<string>, context: CallContext) => AsyncIterable<string>;
}

async function connect(
  t: TestContext,
  handlers: Handlers,
): Promise<{ channel: Channel; server: RpcServer }> {
  const served = {
    ...(handlers.ask && { ask: unary(handlers.ask) }),
    ...(handlers.list && { list: serverStream(handlers.list) }),
    ...(handlers.talk && { talk: bidi(handlers.talk) }),
  };
  const server = await serve([{ definition, handlers: served }], '127.0.0.1:0');
  const channel = dial(server.address);
  t.after(async () => {
    channel.close();
    await server.close();
  });
  return { channel, server };
}

const LIMIT = { timeoutMs: 10_000 };

describe('gRPC helpers', () => {
  it('bring a thrown error to the caller: status, code, message and whether to try again', async (t) => {
    const errors: Record<string, [VideoloomError, status]> = {
      plain: [
        new VideoloomError('DISK_FULL', 'no room on "/ä": 3 % left\nmake some'),
        status.FAILED_PRECONDITION,
      ],
      retry: [new VideoloomError('BUSY', 'later', { retryable: true }), status.UNAVAILABLE],
      usage: [new UsageError('BAD_FLAG', 'wrong'), status.INVALID_ARGUMENT],
      chosen: [new RpcError(status.NOT_FOUND, 'NO_RUN', 'not here'), status.NOT_FOUND],
    };
    const { channel } = await connect(t, {
      ask(name) {
        throw errors[name]![0];
      },
      // eslint-disable-next-line @typescript-eslint/require-await
      async *list(name) {
        yield 'before';
        throw errors[name]![0];
      },
    });
    for (const [name, [thrown, expected]] of Object.entries(errors)) {
      const isSame = (error: unknown): boolean => {
        assert.ok(error instanceof RpcError);
        assert.deepEqual(
          [error.code, error.message, error.retryable, error.status],
          [thrown.code, thrown.message, thrown.retryable, expected],
        );
        return true;
      };
      await assert.rejects(call(channel, definition.ask, name, LIMIT), isSame);
      const seen: string[] = [];
      await assert.rejects(async () => {
        for await (const item of callStream(channel, definition.list, name, LIMIT)) seen.push(item);
      }, isSame);
      assert.deepEqual(seen, ['before']);
    }
  });

  it('end a call at its deadline, and tell the handler', async (t) => {
    let aborted: (() => void) | undefined;
    const told = new Promise<void>((resolve) => (aborted = resolve));
    const { channel } = await connect(t, {
      ask: (_, { signal }) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener('abort', () => {
            aborted?.();
            reject(signal.reason as Error);
          });
        }),
    });
    // The deadline is for the call: on a busy machine a connection alone may take as long.
    await new Promise<void>((resolve, reject) => {
      channel.waitForReady(Date.now() + 30_000, (error) => {
        if (error) reject(error);
        else resolve();
      });
    });
    await assert.rejects(call(channel, definition.ask, 'x', { timeoutMs: 1000 }), {
      code: 'DEADLINE_EXCEEDED',
      retryable: true,
    });
    await told;
  });

  it('end a call when its signal aborts, with the reason of that', async (t) => {
    const { channel } = await connect(t, { ask: () => sleep(60_000, '', { ref: false }) });
    const controller = new AbortController();
    const asked = call(channel, definition.ask, 'x', {
      timeoutMs: 60_000,
      signal: controller.signal,
    });
    controller.abort(new Error('changed my mind'));
    await assert.rejects(asked, /changed my mind/);
    await assert.rejects(
      call(channel, definition.ask, 'x', { ...LIMIT, signal: controller.signal }),
      /changed my mind/,
    );
  });

  it('say who cannot be reached', async (t) => {
    const free = createServer().listen(0, '127.0.0.1');
    await new Promise((resolve) => free.once('listening', resolve));
    const { port } = free.address() as AddressInfo;
    await new Promise((resolve) => free.close(resolve));
    const channel = dial(`127.0.0.1:${port}`);
    t.after(() => {
      channel.close();
    });
    await assert.rejects(call(channel, definition.ask, 'x', LIMIT), (error: RpcError) => {
      assert.deepEqual([error.code, error.retryable], ['UNAVAILABLE', true]);
      assert.ok(error.message.includes(`127.0.0.1:${port}`));
      return true;
    });
  });

  it('may be made again where a tunnel ends connections while the server is away', async (t) => {
    const { channel, server } = await connect(t, { ask: () => 'here' });
    await call(channel, definition.ask, 'x', LIMIT);
    await server.close();
    const tunnel = createServer((socket) => socket.destroy()).listen(server.port, '127.0.0.1');
    t.after(() => tunnel.close());
    const isRetryable = { retryable: true };
    await assert.rejects(call(channel, definition.ask, 'x', LIMIT), isRetryable);
    await assert.rejects(call(channel, definition.ask, 'x', LIMIT), isRetryable);
  });

  it('produce no faster than the caller reads', async (t) => {
    let numProduced = 0;
    const block = 'x'.repeat(2 ** 20);
    const { channel } = await connect(t, {
      // eslint-disable-next-line @typescript-eslint/require-await
      async *list() {
        for (; numProduced < 400; numProduced++) yield block;
      },
    });
    const stream = callStream(channel, definition.list, 'x', { timeoutMs: 60_000 });
    await stream.next();
    await sleep(500);
    assert.ok(numProduced < 100, `${numProduced} MiB were produced for a caller that has read one`);
    let numRead = 1;
    for await (const item of stream) numRead += item.length / 2 ** 20;
    assert.equal(numRead, 400);
  });

  it('end the generator of a caller that has left', async (t) => {
    let ended: (() => void) | undefined;
    const told = new Promise<void>((resolve) => (ended = resolve));
    const { channel } = await connect(t, {
      async *list(_, { signal }) {
        try {
          for (;;) {
            yield 'again';
            await sleep(5, undefined, { signal });
          }
        } finally {
          ended?.();
        }
      },
    });
    for await (const item of callStream(channel, definition.list, 'x', LIMIT)) {
      assert.equal(item, 'again');
      break;
    }
    await told;
  });

  it('talk both ways, and end either way', async (t) => {
    const { channel } = await connect(t, {
      async *talk(requests) {
        for await (const request of requests) {
          if (request === 'stop') return;
          if (request === 'fail') throw new VideoloomError('TOLD_TO', 'as asked');
          yield `${request}!`;
        }
        yield 'bye';
      },
    });
    const say = async (...words: string[]): Promise<string[]> => {
      const answers: string[] = [];
      // eslint-disable-next-line @typescript-eslint/require-await
      const requests = (async function* () {
        yield* words;
      })();
      for await (const answer of callBidi(channel, definition.talk, requests, LIMIT))
        answers.push(answer);
      return answers;
    };
    assert.deepEqual(await say('a', 'b'), ['a!', 'b!', 'bye']);
    assert.deepEqual(await say('a', 'stop', 'b'), ['a!']);
    await assert.rejects(say('a', 'fail'), { code: 'TOLD_TO' });
    const broken = (async function* () {
      yield 'a';
      await sleep(1);
      throw new Error('source broke');
    })();
    await assert.rejects(async () => {
      for await (const answer of callBidi(channel, definition.talk, broken, LIMIT))
        assert.equal(answer, 'a!');
    }, /source broke/);
  });

  it('refuse messages beyond the limit instead of buffering them', async (t) => {
    const { channel } = await connect(t, { ask: (request) => String(request.length) });
    assert.equal(await call(channel, definition.ask, 'x'.repeat(4_000_000), LIMIT), '4000000');
    await assert.rejects(call(channel, definition.ask, 'x'.repeat(5_000_000), LIMIT), {
      code: 'RESOURCE_EXHAUSTED',
    });
  });

  it('name a taken port, and close with a caller still connected', async (t) => {
    const { channel, server } = await connect(t, { ask: () => 'here' });
    await call(channel, definition.ask, 'x', LIMIT);
    await assert.rejects(
      serve([{ definition, handlers: {} }], server.address),
      (error: VideoloomError) => {
        assert.equal(error.code, 'PORT_IN_USE');
        assert.ok(error.message.includes(server.address));
        return true;
      },
    );
    await assert.rejects(serve([], 'nonsense'), { code: 'BAD_ADDRESS' });
    await Promise.all([server.close(), server.close()]);
    await assert.rejects(call(channel, definition.ask, 'x', { timeoutMs: 300 }), {
      retryable: true,
    });
  });
});
