import assert from 'node:assert/strict';
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { connect as connectTcp, type Socket } from 'node:net';
import { join } from 'node:path';
import { before, describe, test, type TestContext } from 'node:test';
import { connect as connectTls } from 'node:tls';
import type { MethodDefinition } from '@grpc/grpc-js';
import { makeTlsFolder, type TlsFolder } from '../deploy/test/tls-folder.ts';
import { issueCertificate } from '../deploy/certificates.ts';
import { parseAddress } from './address.ts';
import { VideoloomError } from './errors.ts';
import { MAX_CONNECTIONS_PER_IDENTITY } from './grpc-listener.ts';
import {
  call,
  demandRole,
  demandWorker,
  dial,
  serve,
  unary,
  type CallContext,
  type DialOptions,
  type RpcServer,
} from './grpc.ts';
import type { PeerIdentity } from './identity.ts';
import { newJoinToken } from './join-token.ts';
import { LOOPBACK_ONLY, type Security } from './security.ts';

const COORDINATOR: PeerIdentity = { role: 'coordinator' };
const OPERATOR: PeerIdentity = { role: 'operator' };
const WORKER: PeerIdentity = { role: 'worker', workerId: 'worker-0' };
const HOUR_MS = 3_600_000;

const ask: MethodDefinition<string, string> = {
  ...{ path: '/test.Test/Ask', requestStream: false, responseStream: false },
  requestSerialize: (text) => Buffer.from(text),
  requestDeserialize: (bytes) => bytes.toString(),
  responseSerialize: (text) => Buffer.from(text),
  responseDeserialize: (bytes) => bytes.toString(),
};

/** A server that answers as `handler` does, and how often anybody got through to it. */
async function serverOf(
  t: TestContext,
  security: Security,
  handler: (request: string, context: CallContext) => string = (request) => request,
): Promise<RpcServer & { numCalls(): number }> {
  let calls = 0;
  const counted = (request: string, context: CallContext): string => {
    calls++;
    return handler(request, context);
  };
  const service = { definition: { ask }, handlers: { ask: unary(counted) } };
  const server = await serve([service], '127.0.0.1:0', security);
  t.after(() => server.close());
  return { ...server, numCalls: () => calls };
}

/** One call over a channel of its own, which the time limit of the test bounds. */
async function askOver(address: string, options: DialOptions, text = 'hello'): Promise<string> {
  const channel = dial(address, options);
  try {
    return await call(channel, ask, text, { timeoutMs: 8000 });
  } finally {
    channel.close();
  }
}

const refused =
  (code: string, pattern: RegExp) =>
  (error: unknown): boolean => {
    assert.ok(error instanceof VideoloomError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, pattern);
    assert.equal(error.retryable, false, 'trying again does not mend it');
    return true;
  };

describe('without --tls', () => {
  const offLoopback = ['0.0.0.0:0', '10.1.2.3:7077', '[::]:0', 'example.com:7077', '[fe80::1]:1'];

  test('plain text off the loopback is refused before a port is opened or a name is looked up', async () => {
    for (const address of offLoopback) {
      const isRefused = refused('PLAIN_TEXT_OFF_LOOPBACK', /videoloom init --tls/);
      await assert.rejects(serve([], address), isRefused);
      assert.throws(() => dial(address), isRefused);
      // A token travels readable: it opens no way.
      const security = { ...LOOPBACK_ONLY, token: newJoinToken() };
      await assert.rejects(serve([], address, security), isRefused);
      assert.throws(() => dial(address, { security, peer: COORDINATOR }), isRefused);
    }
  });

  test('--insecure allows it, and the loopback needs nothing', async () => {
    const insecure = { ...LOOPBACK_ONLY, insecure: true };
    const server = await serve([], '0.0.0.0:0', insecure);
    await server.close();
    dial('10.1.2.3:7077', { security: insecure, peer: COORDINATOR }).close();
    for (const address of ['127.0.0.1:0', '[::1]:0', 'localhost:0', '127.8.9.10:0'])
      await (await serve([], address)).close();
  });
});

describe('over TLS', { timeout: 120_000 }, () => {
  let tls: TlsFolder;
  let other: TlsFolder;
  before(async () => {
    [tls, other] = await Promise.all([makeTlsFolder(), makeTlsFolder()]);
  });

  const coordinator = (t: TestContext, handler?: Parameters<typeof serverOf>[2]) =>
    tls.as(COORDINATOR).then((security) => serverOf(t, security, handler));

  test('a call tells whose certificate the caller has', async (t) => {
    const server = await coordinator(t, (_, { caller }) => JSON.stringify(caller));
    for (const identity of [OPERATOR, WORKER]) {
      const answer = await askOver(server.address, {
        security: await tls.as(identity),
        peer: COORDINATOR,
      });
      assert.deepEqual(JSON.parse(answer), identity);
    }
  });

  test('another authority, no certificate, an expired one, plain text: one error each, no call gets through', async (t) => {
    const server = await coordinator(t);
    const own = await tls.as(WORKER);
    const stranger = await other.as(WORKER);
    const withTls = (credentials: Partial<NonNullable<Security['tls']>>): Security => ({
      ...own,
      tls: { ...own.tls!, ...credentials },
    });
    const authority = {
      cert: new X509Certificate(own.tls!.ca),
      key: createPrivateKey(own.tls!.key),
    };
    const past = { notBefore: new Date(0), notAfter: new Date(Date.now() - HOUR_MS) };
    const present = { ...past, notAfter: new Date(Date.now() + HOUR_MS) };
    const impostor = issueCertificate(WORKER, authority, present);

    const worker1: PeerIdentity = { role: 'worker', workerId: 'worker-1' };
    await tls.reissue(worker1, past);
    // As it is for a process that was started before its end.
    const [cert, key] = await Promise.all(
      ['pem', 'key'].map((kind) => readFile(join(tls.folder, `workers/worker-1.${kind}`), 'utf8')),
    );
    const foreign = /it says: the certificate is not from this run's authority/;
    const cases: [string, Security, RegExp][] = [
      // Neither side believes the other.
      ['another authority', stranger, /self-signed certificate/],
      // It believes the server, which does not believe it.
      ['the certificate of another run', withTls({ ...stranger.tls, ca: own.tls!.ca }), foreign],
      ['a certificate that a worker signed', withTls(impostor), foreign],
      ['no certificate', withTls({ cert: '', key: '' }), /it says: there is no certificate/],
      [
        'an expired certificate',
        withTls({ cert: cert!, key: key! }),
        /it says: .* expired: it was valid until/,
      ],
      ['plain text', { ...own, tls: undefined, insecure: true }, /ends connections in plain text/],
    ];
    for (const [name, security, why] of cases) {
      const startMs = performance.now();
      const calling = askOver(server.address, { security, peer: COORDINATOR });
      await assert.rejects(calling, refused('CONNECTION_REFUSED', why), name);
      assert.ok(performance.now() - startMs < 7000, `${name} has an end`);
    }
    assert.equal(server.numCalls(), 0);
    assert.equal(await askOver(server.address, { security: own, peer: COORDINATOR }), 'hello');
  });

  test('a server in plain text is not spoken to', async (t) => {
    const server = await serverOf(t, LOOPBACK_ONLY);
    const options = { security: await tls.as(OPERATOR), peer: COORDINATOR };
    await assert.rejects(
      askOver(server.address, options),
      refused('CONNECTION_REFUSED', /disconnected before secure TLS connection/),
    );
  });

  test('a server that is not there may come back: that is another error', async () => {
    const security = await tls.as(OPERATOR);
    const server = await serve([], '127.0.0.1:0', security);
    await server.close();
    await assert.rejects(
      askOver(server.address, { security, peer: COORDINATOR }),
      (error: unknown) => error instanceof VideoloomError && error.retryable,
    );
  });

  test('a server that is somebody else is not spoken to', async (t) => {
    const server = await serverOf(t, await tls.as(WORKER));
    const security = await tls.as(OPERATOR);
    for (const [peer, found] of [
      [COORDINATOR, /of worker "worker-0", not of the coordinator/],
      [{ role: 'worker', workerId: 'worker-1' }, /of worker "worker-0", not of worker "worker-1"/],
    ] as const)
      await assert.rejects(
        askOver(server.address, { security, peer }),
        refused('CONNECTION_REFUSED', found),
      );
    assert.equal(server.numCalls(), 0);
    assert.equal(await askOver(server.address, { security, peer: WORKER }), 'hello');
  });

  test('a missing or wrong token: the call ends before its handler, and says why', async (t) => {
    const server = await coordinator(t);
    const own = await tls.as(WORKER);
    for (const token of [
      undefined,
      newJoinToken(),
      '',
      own.token!.slice(0, -1),
      `${own.token!}x`,
    ]) {
      await assert.rejects(
        askOver(server.address, { security: { ...own, token }, peer: COORDINATOR }),
        refused('TOKEN_REFUSED', /join token is missing or is not the one of this run/),
      );
    }
    assert.equal(server.numCalls(), 0);
  });

  test('roles and worker ids are what the certificate says, whatever the request says', async (t) => {
    const server = await coordinator(t, (request, context) => {
      if (request === 'stop') demandRole(context, 'operator');
      else demandWorker(context, request);
      return 'done';
    });
    const options = (security: Security): DialOptions => ({ security, peer: COORDINATOR });
    const worker = options(await tls.as(WORKER));
    const operator = options(await tls.as(OPERATOR));
    assert.equal(await askOver(server.address, worker, 'worker-0'), 'done');
    assert.equal(await askOver(server.address, operator, 'stop'), 'done');
    const denied = (pattern: RegExp) => refused('PERMISSION_DENIED', pattern);
    await assert.rejects(
      askOver(server.address, worker, 'worker-1'),
      denied(/of worker "worker-0": it may not speak for worker "worker-1"/),
    );
    await assert.rejects(askOver(server.address, worker, 'stop'), denied(/operator certificates/));
    await assert.rejects(askOver(server.address, operator, 'worker-0'), denied(/an operator/));
  });

  test('connections that never become one are ended, and bounded for each identity', async (t) => {
    const server = await coordinator(t);
    const { host, port } = parseAddress(server.address);
    const ended = async (socket: Socket): Promise<number> => {
      const startMs = performance.now();
      socket.on('error', () => undefined).resume();
      if (!socket.closed) await new Promise((resolve) => socket.once('close', resolve));
      return performance.now() - startMs;
    };
    const silent = connectTcp({ host, port });
    const rubbish = connectTcp({ host, port });
    rubbish.end('GET / HTTP/1.1\r\n\r\n');
    const [silentMs, rubbishMs] = await Promise.all([ended(silent), ended(rubbish)]);
    assert.ok(silentMs > 4000 && silentMs < 15_000, `silent: ${silentMs} ms`);
    assert.ok(rubbishMs < 4000, `rubbish: ${rubbishMs} ms`);

    const { ca, cert, key } = (await tls.as(OPERATOR)).tls!;
    const open = async (): Promise<Socket> => {
      const options = { ca, cert, key, host, port, ALPNProtocols: ['h2'] };
      const socket = connectTls({ ...options, checkServerIdentity: () => undefined });
      socket.on('error', () => undefined);
      await once(socket, 'secureConnect');
      return socket;
    };
    const sockets: Socket[] = [];
    t.after(() => {
      for (const socket of sockets) socket.destroy();
    });
    for (let i = 0; i < MAX_CONNECTIONS_PER_IDENTITY; i++) sockets.push(await open());
    const late = ended(connectTcp({ host, port })).then(() => 'one that says nothing');
    const surplus = ended(await open()).then(() => 'one too many');
    assert.equal(await Promise.race([late, surplus]), 'one too many', 'is ended at once');
    const worker = { security: await tls.as(WORKER), peer: COORDINATOR };
    assert.equal(await askOver(server.address, worker), 'hello', 'others are not kept out');
  });
});
