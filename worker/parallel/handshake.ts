/** How two workers make sure that they belong together before any gradient flows. */
import type { Socket } from 'node:net';
import * as z from 'zod';
import { nameOfIdentity, type PeerIdentity } from '../../proto/identity.ts';
import { isSameToken, TOKEN_REFUSED } from '../../proto/join-token.ts';
import { PROTOCOL_VERSION } from '../../proto/protocol.ts';
import type { Security } from '../../proto/security.ts';
import {
  decodeHeader,
  encodeHeader,
  FRAME_KIND,
  FrameCorrupt,
  HEADER_BYTES,
  MAX_HANDSHAKE_BYTES,
  type FrameKind,
} from './frame.ts';

const HELLO_TIMEOUT_MS = 5000;

const Hello = z.object({
  protocolVersion: z.int(),
  runId: z.string(),
  workerId: z.string(),
  /** Whom the caller means to reach: an address may have gone to another worker meanwhile. */
  toWorkerId: z.string(),
  /** The join token of the run, where it has one. */
  token: z.string().optional(),
});

/** What the side that dials says first, and the generation it is in. */
export type Hello = z.infer<typeof Hello> & { readonly generation: number };

const Refusal = z.object({ stale: z.boolean(), message: z.string() });

/** Why a caller is turned away; `stale`: its generation is over. */
export type Refusal = z.infer<typeof Refusal>;

export function sendHello(socket: Socket, { generation, ...hello }: Hello): void {
  socket.write(handshakeFrame(FRAME_KIND.hello, generation, hello));
}

export function sendWelcome(socket: Socket, generation: number): void {
  socket.write(handshakeFrame(FRAME_KIND.welcome, generation, {}));
}

export function sendRefusal(socket: Socket, generation: number, refusal: Refusal): void {
  socket.end(handshakeFrame(FRAME_KIND.refused, generation, refusal));
}

/** @throws FrameCorrupt */
export function parseRefusal(payload: Uint8Array): Refusal {
  return parseAs(Refusal, payload);
}

/**
 * The first words on an accepted connection.
 * @throws FrameCorrupt when they are no hello, too long, or do not come within five seconds
 */
export async function receiveHello(socket: Socket): Promise<Hello> {
  let received = Buffer.alloc(0);
  return new Promise((resolve, reject) => {
    const settle = (outcome: Hello | FrameCorrupt): void => {
      clearTimeout(timer);
      socket.removeListener('data', read).removeListener('close', closed);
      if (outcome instanceof FrameCorrupt) reject(outcome);
      else resolve(outcome);
    };
    const closed = (): void => {
      settle(new FrameCorrupt('the connection closed before a hello'));
    };
    const read = (data: Buffer): void => {
      received = Buffer.concat([received, data]);
      try {
        const hello = parseHello(received);
        if (hello !== undefined) settle(hello);
      } catch (error) {
        if (!(error instanceof FrameCorrupt)) throw error;
        settle(error);
      }
    };
    const timer = setTimeout(() => {
      settle(new FrameCorrupt(`no hello within ${HELLO_TIMEOUT_MS} ms`));
    }, HELLO_TIMEOUT_MS);
    socket.on('data', read).on('close', closed);
  });
}

function parseHello(received: Buffer): Hello | undefined {
  if (received.length > HEADER_BYTES + MAX_HANDSHAKE_BYTES)
    throw new FrameCorrupt('hello too long');
  if (received.length < HEADER_BYTES) return undefined;
  const header = decodeHeader(received.subarray(0, HEADER_BYTES));
  if (header.kind !== FRAME_KIND.hello) throw new FrameCorrupt('the first frame is no hello');
  if (received.length < HEADER_BYTES + header.length) return undefined;
  return { ...parseAs(Hello, received.subarray(HEADER_BYTES)), generation: header.generation };
}

/**
 * Why the caller may not speak here at all; undefined when it may.
 * @param caller whom its certificate names; undefined without TLS and on a Unix socket, which this user's processes alone reach
 */
export function credentialsRefusal(
  { workerId, token }: Hello,
  caller: PeerIdentity | undefined,
  { token: expected }: Security,
): string | undefined {
  if (expected !== undefined && !isSameToken(expected, token)) return TOKEN_REFUSED;
  if (caller === undefined || (caller.role === 'worker' && caller.workerId === workerId))
    return undefined;
  return (
    `the certificate is of ${nameOfIdentity(caller)}, the process says that it is worker "${workerId}": ` +
    'give each worker the certificate that bears its id'
  );
}

/** Why a hello for `us` cannot be from a peer at all, whatever the generation; undefined when it can. */
export function refusalOf(
  hello: Hello,
  us: { readonly runId: string; readonly workerId: string },
): string | undefined {
  if (hello.protocolVersion !== PROTOCOL_VERSION) {
    const newer = hello.protocolVersion < PROTOCOL_VERSION ? us.workerId : hello.workerId;
    return (
      `worker ${hello.workerId} speaks protocol version ${hello.protocolVersion}, worker ${us.workerId} ` +
      `${PROTOCOL_VERSION}: install the release of worker ${newer} on both`
    );
  }
  if (hello.runId !== us.runId || hello.toWorkerId !== us.workerId) {
    return (
      `this is worker ${us.workerId} of run ${us.runId}, not worker ${hello.toWorkerId} of run ${hello.runId}: ` +
      'the address belongs to another process now'
    );
  }
  return undefined;
}

function parseAs<T>(schema: z.ZodType<T>, payload: Uint8Array): T {
  try {
    return schema.parse(JSON.parse(Buffer.from(payload).toString('utf8')));
  } catch {
    throw new FrameCorrupt('its handshake cannot be read');
  }
}

function handshakeFrame(kind: FrameKind, generation: number, content: object): Buffer {
  const payload = Buffer.from(JSON.stringify(content));
  const header = encodeHeader({
    ...{ generation, kind, length: payload.length },
    ...{ step: 0, sequence: 0, tag: 0, chunk: 0, checksum: undefined },
  });
  return Buffer.concat([header, payload]);
}
