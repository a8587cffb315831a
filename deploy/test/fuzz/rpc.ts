/** gRPC as nobody sane speaks it: bytes that are no HTTP/2, frames that are no gRPC, messages that are no protobuf. */
import { connect, type ClientHttp2Session } from 'node:http2';
import type { Socket } from 'node:net';
import type { MethodDefinition } from '@grpc/grpc-js';
import { CoordinatorServiceService } from '../../../proto/gen/videoloom/v1/coordinator.ts';
import { RendezvousServiceService } from '../../../proto/gen/videoloom/v1/rendezvous.ts';
import { WorkerServiceService } from '../../../proto/gen/videoloom/v1/worker.ts';
import type { Rng } from '../../../proto/random.ts';
import { open, send } from './connections.ts';
import { mutate, randomBytes } from './mutate.ts';

const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
const SETTINGS = Buffer.from('000000040000000000', 'hex');

/** Requests that a server takes, as the seed of what it does not. StopRun is left out: it is obeyed. */
function requests(runId: string): readonly { readonly path: string; readonly bytes: Buffer }[] {
  const text = 'fuzz-'.padEnd(40, 'x');
  const fields = {
    ...{ runId, workerId: 'fuzz-worker', host: text, tensorAddress: '127.0.0.1:1', key: 'k' },
    ...{
      serviceAddress: '127.0.0.1:1',
      metricsAddress: '127.0.0.1:1',
      engine: text,
      protocolVersion: 1,
      session: 'fuzz-worker/1',
    },
    ...{ generation: 1, step: 3, firstStep: 1, numSteps: 4, timeoutMs: 5, value: Buffer.alloc(99) },
    ...{ objectives: [], skipped: [], files: [], figures: [], microbatches: [], phase: text },
    ...{ message: text, failure: '', weightsSha256: text, gradientNorm: 1, learningRate: 1 },
    ...{
      stateStep: 0,
      stateIn: 0,
      numClips: 1,
      numTokens: 1,
      progress: 1,
      stillMs: 1,
      phaseMs: 1,
      cpuMs: 1,
    },
  };
  const services: Record<string, MethodDefinition<object, object>> = {
    ...(CoordinatorServiceService as object),
    ...(WorkerServiceService as object),
    ...(RendezvousServiceService as object),
  };
  return Object.entries(services)
    .filter(([name]) => name !== 'stopRun')
    .map(([, { path, requestSerialize }]) => ({ path, bytes: requestSerialize(fields) }));
}

/** Sends `count` messages to gRPC servers and forgets the answers. Gives how many of each form. */
export async function fuzzRpc(
  addresses: readonly string[],
  { runId, rng, count }: { readonly runId: string; readonly rng: Rng; readonly count: number },
): Promise<Record<string, number>> {
  const known = requests(runId);
  const counts: Record<string, number> = {};
  const slow: Socket[] = [];
  let session: ClientHttp2Session | undefined;
  for (let sent = 0; sent < count; sent++) {
    const address = addresses[rng.integer(addresses.length)]!;
    const form = FORMS[rng.integer(FORMS.length)]!;
    counts[form] = (counts[form] ?? 0) + 1;
    switch (form) {
      case 'message':
      case 'method': {
        if (session === undefined || session.destroyed || rng.integer(50) === 0) {
          session?.destroy();
          session = openSession(address);
        }
        const { path, bytes } = known[rng.integer(known.length)]!;
        const wrong = `/${randomBytes(rng, 20).toString('hex')}/${path.slice(1)}`;
        await request(session, form === 'message' ? path : wrong, framed(rng, mutate(rng, bytes)));
        break;
      }
      case 'frames': {
        const socket = await open(address);
        if (socket === undefined) break;
        await send(socket, Buffer.concat([PREFACE, SETTINGS, frame(rng), frame(rng), frame(rng)]));
        socket.destroy();
        break;
      }
      case 'bytes': {
        const socket = await open(address);
        if (socket === undefined) break;
        const begun = rng.integer(2) === 0 ? PREFACE.subarray(0, rng.integer(24)) : Buffer.alloc(0);
        await send(socket, Buffer.concat([begun, randomBytes(rng, 300)]));
        socket.destroy();
        break;
      }
      default: {
        // Holds its connection and says a byte now and then.
        const socket = await open(address);
        if (socket === undefined) break;
        await send(socket, PREFACE.subarray(0, 1 + rng.integer(23)));
        slow.push(socket);
        if (slow.length > 50) slow.shift()!.destroy();
      }
    }
  }
  session?.destroy();
  for (const socket of slow) socket.destroy();
  return counts;
}

const FORMS = ['message', 'message', 'message', 'message', 'method', 'frames', 'bytes', 'slow'];

function openSession(address: string): ClientHttp2Session {
  const session = connect(`http://${address}`);
  session.on('error', () => undefined);
  return session;
}

/** A gRPC message with its five bytes before it, which may announce anything. */
function framed(rng: Rng, message: Buffer): Buffer {
  const head = Buffer.alloc(5);
  const length = [message.length, message.length, rng.uint32(), 0xffffffff][rng.integer(4)]!;
  head.writeUInt8(rng.integer(8) === 0 ? rng.integer(256) : 0, 0);
  head.writeUInt32BE(length >>> 0, 1);
  return Buffer.concat([head, message]);
}

/** One HTTP/2 frame of any type, flags, stream and announced length. */
function frame(rng: Rng): Buffer {
  const payload = randomBytes(rng, 100);
  const head = Buffer.alloc(9);
  head.writeUIntBE(rng.integer(4) === 0 ? rng.integer(2 ** 24) : payload.length, 0, 3);
  head.writeUInt8(rng.integer(12), 3);
  head.writeUInt8(rng.integer(256), 4);
  head.writeUInt32BE(rng.integer(2) === 0 ? rng.integer(16) : rng.uint32(), 5);
  return Buffer.concat([head, payload]);
}

async function request(session: ClientHttp2Session, path: string, body: Buffer): Promise<void> {
  if (session.destroyed || session.closed) return;
  await new Promise<void>((resolve) => {
    const timer = setTimeout(() => {
      stream.close();
      resolve();
    }, 200);
    const stream = session.request({
      ...{ ':method': 'POST', ':path': path, te: 'trailers' },
      'content-type': 'application/grpc',
    });
    stream.on('error', () => undefined);
    stream.on('close', () => {
      clearTimeout(timer);
      resolve();
    });
    stream.resume();
    stream.end(body);
  });
}
