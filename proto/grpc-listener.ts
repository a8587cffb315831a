/** Accepts connections for a gRPC server: who shakes no hands in time, speaks no HTTP/2 or comes too often gets none. */
import type { Server as NetServer, Socket } from 'node:net';
import { identityUri, nameOfIdentity, type PeerIdentity } from './identity.ts';
import { createSocketServer, HANDSHAKE_TIMEOUT_MS } from './secure-socket.ts';
import type { Security } from './security.ts';

/** Most connections of one server. */
export const MAX_CONNECTIONS = 4096;
/** Most connections of one certificate's identity; a process needs one or two. */
export const MAX_CONNECTIONS_PER_IDENTITY = 64;

/** With which every HTTP/2 client begins. Source: RFC 9113, section 3.4. */
export const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
/** With which TLS begins. Source: RFC 8446, section 5.1. */
const TLS_HANDSHAKE = 0x16;

export interface RpcListener {
  readonly server: NetServer;
  /** Ends connections that no HTTP/2 session has taken. */
  endStrangers(): void;
}

/**
 * A server, not listening yet, that hands `inject` the connections that begin as HTTP/2 does, and tells `refused` why
 * others do not get so far.
 */
export function createRpcListener(
  security: Security,
  inject: (socket: Socket) => void,
  refused: (reason: string) => void = () => undefined,
): RpcListener {
  const strangers = new Set<Socket>();
  const counts = new Map<string, number>();

  const admit = (socket: Socket, caller: PeerIdentity | undefined): boolean => {
    if (caller === undefined) return true;
    const name = identityUri(caller);
    const count = (counts.get(name) ?? 0) + 1;
    if (count > MAX_CONNECTIONS_PER_IDENTITY) return false;
    counts.set(name, count);
    socket.once('close', () => {
      const left = counts.get(name)! - 1;
      if (left === 0) counts.delete(name);
      else counts.set(name, left);
    });
    return true;
  };

  const accept = (socket: Socket, caller: PeerIdentity | undefined): void => {
    socket.on('error', () => undefined); // `close` follows
    if (!admit(socket, caller)) {
      refused(
        `${nameOfIdentity(caller!)} has more than ${MAX_CONNECTIONS_PER_IDENTITY} connections`,
      );
      socket.destroy();
      return;
    }
    strangers.add(socket);
    const late = setTimeout(() => {
      refused(`nothing was said within ${HANDSHAKE_TIMEOUT_MS} ms`);
      socket.destroy();
    }, HANDSHAKE_TIMEOUT_MS);
    socket.once('close', () => {
      clearTimeout(late);
      strangers.delete(socket);
    });
    let begun = Buffer.alloc(0);
    socket.on('readable', function read() {
      const chunk = socket.read() as Buffer | null;
      if (chunk === null) return;
      begun = Buffer.concat([begun, chunk]);
      const length = Math.min(begun.length, PREFACE.length);
      if (!begun.subarray(0, length).equals(PREFACE.subarray(0, length))) {
        refused(
          begun[0] === TLS_HANDSHAKE
            ? 'it speaks TLS, this side plain text'
            : 'it speaks no HTTP/2',
        );
        socket.destroy();
        return;
      }
      if (length < PREFACE.length) return;
      socket.off('readable', read);
      clearTimeout(late);
      strangers.delete(socket);
      socket.unshift(begun);
      inject(socket);
    });
  };

  const server = createSocketServer({
    ...{ security, accept, maxConnections: MAX_CONNECTIONS, alpnProtocol: 'h2' },
    refused(reason, farewell) {
      refused(reason);
      farewell(goAway(reason));
    },
  });
  return {
    server,
    endStrangers() {
      for (const socket of strangers) socket.destroy();
    },
  };
}

const [FRAME_HEADER_BYTES, GOAWAY, INADEQUATE_SECURITY] = [9, 7, 0xc];

/** The frame that ends an HTTP/2 connection, with the reason as its debug data. Source: RFC 9113, section 6.8. */
function goAway(reason: string): Buffer {
  const text = Buffer.from(reason);
  const head = Buffer.alloc(FRAME_HEADER_BYTES + 8);
  head.writeUIntBE(8 + text.length, 0, 3);
  head.writeUInt8(GOAWAY, 3);
  head.writeUInt32BE(INADEQUATE_SECURITY, FRAME_HEADER_BYTES + 4);
  return Buffer.concat([head, text]);
}

/** Whether an HTTP/2 server has begun to answer as to a caller that it takes. */
export function isAnswer(received: Buffer): boolean {
  return received.length >= FRAME_HEADER_BYTES && received[3] !== GOAWAY;
}

/** The reason in a frame of {@link goAway}; undefined for any other beginning. */
export function reasonOfGoAway(received: Buffer): string | undefined {
  if (received.length < FRAME_HEADER_BYTES || received[3] !== GOAWAY) return undefined;
  const end = FRAME_HEADER_BYTES + received.readUIntBE(0, 3);
  if (received.length < end || end > 1000) return undefined;
  return received.toString('utf8', FRAME_HEADER_BYTES + 8, end);
}
