import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { test, type TestContext } from 'node:test';
import { crc32c } from '@node-rs/crc32';
import { parseAddress } from '../../proto/address.ts';
import { PROTOCOL_VERSION } from '../../proto/protocol.ts';
import type { MeshGeneration } from './collectives.ts';
import { encodeHeader, FRAME_KIND, tagOf, type FrameHeader } from './frame.ts';
import { GatherExchange } from './gather.ts';
import { sendHello, sendWelcome, type Hello } from './handshake.ts';
import { openMesh, type Exchange, type Mesh, type MeshOptions } from './mesh.ts';

async function meshOf(t: TestContext, options: Partial<MeshOptions> = {}): Promise<Mesh> {
  const mesh = await openMesh({
    ...{ listenAddress: '127.0.0.1:0', runId: 'run', workerId: 'w0', timeoutMs: 5000 },
    ...options,
  });
  t.after(() => mesh.close());
  return mesh;
}

/** The other worker, w1, as bytes on sockets: it does what a sound worker never does. */
interface RawPeer {
  readonly address: string;
  /** On which the mesh reads. */
  readonly outgoing: Promise<Socket>;
  /** Dials the mesh as the reader of what it sends. */
  dial(mesh: Mesh, hello?: Partial<Hello>): Socket;
}

async function rawPeer(t: TestContext, generation = 1): Promise<RawPeer> {
  const server: Server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const sockets: Socket[] = [];
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const outgoing = (once(server, 'connection') as Promise<[Socket]>).then(([socket]) => {
    sockets.push(socket);
    socket.on('error', () => undefined);
    sendWelcome(socket, generation);
    return socket;
  });
  const { port } = server.address() as { port: number };
  return {
    address: `127.0.0.1:${port}`,
    outgoing,
    dial(mesh, hello) {
      const socket = connect(parseAddress(mesh.address));
      sockets.push(socket);
      socket.on('error', () => undefined);
      sendHello(socket, {
        ...{
          protocolVersion: PROTOCOL_VERSION,
          runId: 'run',
          workerId: 'w1',
          toWorkerId: 'w0',
          generation,
        },
        ...hello,
      });
      return socket;
    },
  };
}

function generationOf(number: number, mesh: Mesh, peer: { address: string }): MeshGeneration {
  return {
    number,
    members: [
      {
        rank: 0,
        workerId: 'w0',
        tensorAddress: mesh.address,
        firstMicrobatch: 0,
        numMicrobatches: 1,
      },
      {
        rank: 1,
        workerId: 'w1',
        tensorAddress: peer.address,
        firstMicrobatch: 1,
        numMicrobatches: 1,
      },
    ],
  };
}

/** A mesh connected to a raw peer, whose reader throws away what comes. */
async function connected(
  t: TestContext,
  options: Partial<MeshOptions> = {},
): Promise<{ mesh: Mesh; outgoing: Socket; incoming: Socket }> {
  const [mesh, peer] = await Promise.all([meshOf(t, options), rawPeer(t)]);
  const configured = mesh.configure(generationOf(1, mesh, peer));
  const incoming = peer.dial(mesh);
  incoming.resume();
  const outgoing = await peer.outgoing;
  await configured;
  return { mesh, outgoing, incoming };
}

const gather = (name: string): GatherExchange =>
  new GatherExchange(name, 1, { rank: 0, own: Float64Array.of(1) });

/** The frame with which w1 answers {@link gather}. */
function valuesFrame(name: string, values: number[], header: Partial<FrameHeader> = {}): Buffer {
  const payload = Buffer.from(Float64Array.from(values).buffer);
  const fields = { generation: 1, step: 1, sequence: 1, tag: tagOf(name), chunk: 0 };
  return Buffer.concat([
    encodeHeader({
      ...{ ...fields, kind: FRAME_KIND.values, length: payload.length, checksum: crc32c(payload) },
      ...header,
    }),
    payload,
  ]);
}

/** Not `once`, which rejects for the errors that these sockets expect. */
async function closed(socket: Socket): Promise<void> {
  if (socket.closed) return;
  await new Promise<void>((resolve) => {
    socket.on('close', () => {
      resolve();
    });
  });
}

test('a frame is read however it is cut', async (t) => {
  const { mesh, outgoing } = await connected(t);
  outgoing.setNoDelay(true);
  const exchange = gather('counts');
  const done = mesh.run(exchange);
  for (const byte of valuesFrame('counts', [2, 3])) {
    outgoing.write(Uint8Array.of(byte));
    await new Promise(setImmediate);
  }
  await done;
  assert.deepEqual(exchange.values, [Float64Array.of(1), Float64Array.of(2, 3)]);
});

test('frames that come before their operation wait, those after it too', async (t) => {
  const { mesh, outgoing } = await connected(t);
  const first = valuesFrame('a', [1, 2, 3]);
  const empty = valuesFrame('b', [], { sequence: 2 });
  const third = valuesFrame(
    'c',
    Array.from({ length: 1000 }, (_, i) => i),
    { sequence: 3 },
  );
  outgoing.write(Buffer.concat([first, empty, third]));
  await new Promise((resolve) => setTimeout(resolve, 50));
  const exchanges = ['a', 'b', 'c'].map(gather);
  for (const exchange of exchanges) await mesh.run(exchange);
  assert.deepEqual(exchanges[0]!.values[1], Float64Array.of(1, 2, 3));
  assert.deepEqual(exchanges[1]!.values[1], new Float64Array(0));
  assert.deepEqual(
    exchanges[2]!.values[1],
    Float64Array.from({ length: 1000 }, (_, i) => i),
  );
});

test('a frame of an older generation is dropped and counted', async (t) => {
  const [mesh, peer] = await Promise.all([meshOf(t), rawPeer(t, 7)]);
  const configured = mesh.configure(generationOf(7, mesh, peer));
  peer.dial(mesh).resume();
  const outgoing = await peer.outgoing;
  await configured;
  const exchange = gather('counts');
  const done = mesh.run(exchange);
  outgoing.write(valuesFrame('counts', [666], { generation: 6 }));
  outgoing.write(valuesFrame('counts', [2], { generation: 7 }));
  await done;
  assert.deepEqual(exchange.values[1], Float64Array.of(2));
  assert.equal(mesh.stats.staleFrames, 1);
});

test('a connection of an older generation is refused and counted, one of the next waits', async (t) => {
  const [mesh, peer] = await Promise.all([meshOf(t), rawPeer(t, 5)]);
  const early = peer.dial(mesh);
  let welcomed = false;
  early.on('data', () => (welcomed = true));
  const old = peer.dial(mesh, { generation: 3 });
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(welcomed, false);
  await mesh.configure(generationOf(5, mesh, peer)); // `early` is let in by this, no other connection was made
  const stale = peer.dial(mesh, { generation: 4 });
  const [answer] = (await once(stale, 'data')) as [Buffer];
  assert.match(
    answer.toString('latin1'),
    /"stale":true,"message":"generation 4 is over, the worker is in 5"/,
  );
  await closed(stale.resume());
  assert.equal(mesh.stats.staleConnections, 2, 'that of generation 3 was looked at again');
  await closed(old.resume());
});

test('a connection that ends in the middle of a frame is a lost peer', async (t) => {
  const { mesh, outgoing } = await connected(t);
  const done = mesh.run(gather('counts'));
  const frame = valuesFrame(
    'counts',
    Array.from({ length: 1000 }, () => 1),
  );
  outgoing.end(frame.subarray(0, frame.length - 5));
  await assert.rejects(done, (error: Error & { code?: string; rank?: number }) => {
    assert.deepEqual([error.name, error.code, error.rank], ['PeerLost', 'PEER_LOST', 1]);
    assert.match(error.message, /in the middle of a frame/);
    return true;
  });
  await assert.rejects(mesh.run(gather('next')), { code: 'PEER_LOST' });
});

test('what a peer sent before it left still counts', async (t) => {
  const { mesh, outgoing, incoming } = await connected(t);
  outgoing.end(valuesFrame('counts', [2]));
  await closed(incoming.end());
  await new Promise((resolve) => setTimeout(resolve, 20));
  const exchange = gather('counts');
  exchange.numOutgoing = () => 0; // to a peer that is gone nothing can be sent
  await mesh.run(exchange);
  assert.deepEqual(exchange.values[1], Float64Array.of(2));
  await assert.rejects(mesh.run(gather('next')), { code: 'PEER_LOST', rank: 1 });
});

test('who waits for one that gave up names the peer that is gone, not the one that gave up', async (t) => {
  const mesh = await meshOf(t, { timeoutMs: 500 });
  const [gone, silent] = [await rawPeer(t), await rawPeer(t)];
  const { members } = generationOf(1, mesh, gone);
  const third = { ...members[1]!, rank: 2, workerId: 'w2', tensorAddress: silent.address };
  const configured = mesh.configure({ number: 1, members: [...members, third] });
  gone.dial(mesh).resume();
  silent.dial(mesh, { workerId: 'w2' }).resume();
  await configured;
  const done = mesh.run(gather('counts'));
  (await gone.outgoing).end(valuesFrame('counts', [2]));
  await assert.rejects(done, { code: 'PEER_LOST', rank: 1 });
});

const BAD_FRAMES: readonly (readonly [what: string, frame: Buffer, message: RegExp])[] = [
  ['a flipped bit in its payload', flip(valuesFrame('x', [2]), 42), /checksum of its payload/],
  ['a flipped bit in its length', flip(valuesFrame('x', [2]), 29), /checksum of its header/],
  ['another beginning', flip(valuesFrame('x', [2]), 0), /does not begin like one/],
  ['a kind from the future', valuesFrame('x', [2], { kind: 9 as never }), /kind 9 is unknown/],
  [
    'more than a frame may carry',
    valuesFrame('x', [2], { length: 2 << 20 }),
    /announces 2097152 bytes/,
  ],
  ['a generation to come', valuesFrame('x', [2], { generation: 2 }), /a generation to come/],
  [
    'an operation that is over',
    valuesFrame('x', [2], { sequence: 0 }),
    /an operation that is over/,
  ],
];

for (const [what, frame, message] of BAD_FRAMES) {
  test(`a frame with ${what} ends the generation`, async (t) => {
    const { mesh, outgoing } = await connected(t);
    const done = mesh.run(gather('x'));
    outgoing.write(frame);
    await assert.rejects(done, (error: Error & { code?: string; rank?: number }) => {
      assert.deepEqual([error.code, error.rank], ['FRAME_CORRUPT', 1]);
      assert.match(error.message, message);
      return true;
    });
  });
}

function flip(frame: Buffer, at: number): Buffer {
  frame[at]! ^= 4;
  return frame;
}

test('strangers are turned away and disturb nobody', async (t) => {
  const { mesh, outgoing } = await connected(t);
  const stranger = (): Socket => connect(parseAddress(mesh.address)).on('error', () => undefined);
  const [http, flood, hasty, half] = [stranger(), stranger(), stranger(), stranger()];
  http.write('GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nUser-Agent: something\r\n\r\n');
  flood.write(Buffer.alloc(8 << 20, 1));
  hasty.end(valuesFrame('counts', [666]));
  half.end(valuesFrame('counts', [666]).subarray(0, 20));
  await Promise.all([http, flood, hasty, half].map((socket) => closed(socket.resume())));
  assert.equal(mesh.stats.refusedConnections, 4);
  const done = mesh.run(gather('counts'));
  outgoing.write(valuesFrame('counts', [2]));
  await done;
});

for (const [what, hello, message] of [
  ['another run', { runId: 'other' }, /this is worker w0 of run run, not worker w0 of run other/],
  [
    'another protocol',
    { protocolVersion: 999 },
    /speaks protocol version 999.*release of worker w1 on both/,
  ],
  ['an unknown worker', { workerId: 'w9' }, /worker w9 is no member of generation 1/],
  [
    'a worker that seeks another',
    { toWorkerId: 'w5' },
    /this is worker w0 of run run, not worker w5/,
  ],
] as const) {
  test(`a hello from ${what} is refused with the reason`, async (t) => {
    const { mesh } = await connected(t);
    const peer = await rawPeer(t);
    const [answer] = (await once(peer.dial(mesh, hello), 'data')) as [Buffer];
    assert.match(answer.toString('latin1'), message);
    assert.equal(mesh.stats.refusedConnections, 1);
  });
}

test('a worker that is refused says by whom and why', async (t) => {
  const [ours, theirs] = await Promise.all([
    meshOf(t),
    meshOf(t, { workerId: 'w1', runId: 'other' }),
  ]);
  theirs.configure(generationOf(1, ours, theirs)).catch(() => undefined);
  await assert.rejects(
    ours.configure(generationOf(1, ours, theirs)),
    (error: Error & { code?: string }) => {
      assert.equal(error.code, 'PEER_REFUSED');
      assert.match(
        error.message,
        /rank 1 \(worker w1 at .*refuses: this is worker w1 of run other/,
      );
      return true;
    },
  );
});

test('a member that never connects is named with the reason', async (t) => {
  const mesh = await meshOf(t, { timeoutMs: 1000 });
  const nobody = { address: '127.0.0.1:1' };
  await assert.rejects(
    mesh.configure(generationOf(1, mesh, nobody)),
    (error: Error & { code?: string; rank?: number }) => {
      assert.deepEqual([error.code, error.rank], ['PEER_TIMEOUT', 1]);
      assert.match(error.message, /not connected within 1000 ms: rank 1 .*ECONNREFUSED/);
      return true;
    },
  );
});

test('a peer that does not read is sent only what the kernel takes, and is named', async (t) => {
  const { mesh, incoming } = await connected(t, { timeoutMs: 2000 });
  incoming.pause();
  const payload = new Uint8Array(1 << 20);
  let handedOut = 0;
  const endless: Exchange = {
    ...{ name: 'endless', step: 1, numIncoming: () => 0, numOutgoing: () => 4096 },
    next: () => {
      handedOut++;
      return { kind: FRAME_KIND.values, chunk: 0, payload };
    },
    place: () => undefined,
    received: () => undefined,
  };
  await assert.rejects(mesh.run(endless), { code: 'PEER_TIMEOUT', rank: 1 });
  // 4 GiB were asked for. The kernel's buffers take tens of MiB, two frames wait behind them.
  assert.ok(handedOut < 256, `${handedOut} MiB were handed out`);
  assert.ok(handedOut - mesh.stats.sentBytes / (1 << 20) <= 2);
});

test('what comes faster than it is wanted stays with the sender', async (t) => {
  const { mesh, outgoing } = await connected(t);
  const frame = valuesFrame(
    'later',
    Array.from({ length: 1 << 17 }, () => 1),
  );
  const before = process.memoryUsage().arrayBuffers;
  let taken = 0;
  const feed = (): void => {
    while (taken < 1024 && outgoing.write(frame)) taken++;
  };
  outgoing.on('drain', feed);
  feed();
  await new Promise((resolve) => setTimeout(resolve, 300));
  assert.ok(taken < 1024, 'the sender was held back');
  assert.ok(process.memoryUsage().arrayBuffers - before < 32 << 20);
  mesh.abort('enough');
});
