import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { test, type TestContext } from 'node:test';
import { connect as connectTls, createServer as createTlsServer } from 'node:tls';
import { makeTlsFolder } from '../../deploy/test/tls-folder.ts';
import { openRng } from '../../proto/random.ts';
import { encodeHeader, FRAME_KIND } from './frame.ts';
import { FrameReader } from './frame-reader.ts';

const SEED = 5;
const LENGTHS = [300_000, 0, 5, 300, 1 << 20, 64, 40, 16_384, 70_000, 1];
const tls = await makeTlsFolder(1);

const payloads = LENGTHS.map((length, frame) => {
  const rng = openRng(SEED, 'payload', frame);
  return Uint8Array.from({ length }, () => rng.integer(256));
});

/** All frames at once. */
const stream = Buffer.concat(
  payloads.flatMap((payload, chunk) => [
    encodeHeader({
      ...{ generation: 1, step: 1, sequence: 1, tag: 1, kind: FRAME_KIND.values, chunk },
      ...{ length: payload.length, checksum: undefined },
    }),
    Buffer.from(payload),
  ]),
);

/** Reads the stream; `hasPlace` says at each look whether a frame has a place, and time passes between two looks. */
async function read(
  t: TestContext,
  isSecure: boolean,
  hasPlace: (frame: number, look: number) => boolean,
): Promise<Uint8Array[]> {
  const { ca, cert, key } = (await tls.as({ role: 'worker', workerId: 'worker-0' })).tls!;
  const serve = (socket: Socket): void => {
    socket.on('error', () => undefined);
    socket.end(stream);
  };
  const server = isSecure ? createTlsServer({ cert, key }, serve) : createServer(serve);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  const { port } = server.address() as { port: number };

  const received: Uint8Array[] = [];
  const looks = LENGTHS.map(() => 0);
  let [waiting, reader] = [0, undefined as FrameReader | undefined];
  const resume = (): void => {
    waiting = 0;
    reader!.resume();
  };
  await new Promise<void>((resolve, reject) => {
    reader = new FrameReader(
      { host: '127.0.0.1', port },
      {
        place({ chunk, length }) {
          if (hasPlace(chunk, looks[chunk]!++)) return new Uint8Array(length);
          waiting ||= Number(setTimeout(resume, 5));
          return undefined;
        },
        received: (_, payload) => {
          received.push(payload);
        },
        ended: (error, inFrame) => {
          if (error === undefined && !inFrame) resolve();
          else reject(error ?? new Error('in the middle of a frame'));
        },
      },
      (options) =>
        isSecure
          ? connectTls({ ...options, ca, checkServerIdentity: () => undefined })
          : connect(options),
    );
  });
  return received;
}

for (const isSecure of [false, true]) {
  for (const [name, hasPlace] of Object.entries({
    'each has a place': () => true,
    'each waits for its place': (_: number, look: number) => look > 0,
    'some wait long': (frame: number, look: number) => frame % 3 !== 1 || look > 3,
  })) {
    test(`frames over ${isSecure ? 'TLS' : 'TCP'}, seed ${SEED}: ${name}`, async (t) => {
      const received = await read(t, isSecure, hasPlace);
      assert.deepEqual(
        received.map(({ length }) => length),
        LENGTHS,
      );
      assert.ok(received.every((payload, frame) => Buffer.from(payload).equals(payloads[frame]!)));
    });
  }
}
