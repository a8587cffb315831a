import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { VideoloomError } from './errors.ts';
import { CoordinatorServiceService as Rpc } from './gen/videoloom/v1/coordinator.ts';
import { call, dial, serve } from './grpc.ts';
import { Line } from './line.ts';

const LIMITS = { first: 200, most: 400 };

test('where nobody answers, the name is dialled anew, and the next attempt reaches whoever is there then', async (context) => {
  // As an address that nobody has any more: TCP is not refused, and nothing comes of it.
  const sockets: Socket[] = [];
  const silent = createServer((socket) => sockets.push(socket));
  silent.listen(0, '127.0.0.1');
  await once(silent, 'listening');
  const answers = await serve(
    [
      {
        definition: Rpc,
        handlers: {
          getStatus: (_: unknown, done: (error: null, status: object) => void) => {
            done(null, {});
          },
        },
      },
    ],
    '127.0.0.1:0',
  );
  let address = `127.0.0.1:${(silent.address() as AddressInfo).port}`;
  const line = new Line(() => dial(address), LIMITS);
  context.after(async () => {
    line.close();
    // gRPC does not end an attempt that it has given up.
    for (const socket of sockets) socket.destroy();
    silent.close();
    await answers.close();
  });
  const ask = async () => {
    const { channel, signal, end } = line.attempt();
    return call(channel, Rpc.getStatus, {}, { timeoutMs: 60_000, signal }).finally(end);
  };
  const first = line.channel;
  const startMs = performance.now();
  address = answers.address;
  await assert.rejects(
    ask(),
    (error) => error instanceof VideoloomError && error.code === 'UNAVAILABLE' && error.retryable,
  );
  assert.ok(performance.now() - startMs < 30_000, 'long before the call would have ended');
  assert.notEqual(line.channel, first);
  assert.deepEqual(await ask(), { status: undefined });
  // A call that takes its time is left alone once it is connected.
  const connected = line.channel;
  const { signal, end } = line.attempt();
  await delay(2 * LIMITS.most);
  end();
  assert.equal(signal.aborted, false);
  assert.equal(line.channel, connected);
});
