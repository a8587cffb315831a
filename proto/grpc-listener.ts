/** Accepts connections for a gRPC server: who shakes no hands in time, speaks no HTTP/2 or comes too often gets none. */
import type { Server as NetServer, Socket } from 'node:net';
import { identityUri, type PeerIdentity } from './identity.ts';
import { createSocketServer, HANDSHAKE_TIMEOUT_MS } from './secure-socket.ts';
import type { Security } from './security.ts';

/** Most connections of one server. */
export const MAX_CONNECTIONS = 4096;
/** Most connections of one certificate's identity; a process needs one or two. */
export const MAX_CONNECTIONS_PER_IDENTITY = 64;

/** With which every HTTP/2 client begins. Source: RFC 9113, section 3.4. */
const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');

export interface RpcListener {
  readonly server: NetServer;
  /** Ends connections that no HTTP/2 session has taken. */
  endStrangers(): void;
}

/** A server, not listening yet, that hands `inject` the connections that begin as HTTP/2 does. */
export function createRpcListener(
  security: Security,
  inject: (socket: Socket) => void,
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
      socket.destroy();
      return;
    }
    strangers.add(socket);
    const late = setTimeout(() => socket.destroy(), HANDSHAKE_TIMEOUT_MS);
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
  });
  return {
    server,
    endStrangers() {
      for (const socket of strangers) socket.destroy();
    },
  };
}
