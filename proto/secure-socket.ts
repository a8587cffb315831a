/** TCP connections of a run, wrapped in TLS 1.3 where there are credentials: servers know their callers, dialers their servers. */
import { connect, createServer, type Server, type Socket, type TcpNetConnectOpts } from 'node:net';
import {
  connect as connectTls,
  createSecureContext,
  createServer as createTlsServer,
  TLSSocket,
  type PeerCertificate,
  type SecureContext,
  type SecureContextOptions,
} from 'node:tls';
import { messageOf, VideoloomError } from './errors.ts';
import { identityOf, isSameIdentity, nameOfIdentity, type PeerIdentity } from './identity.ts';
import type { Security, TlsCredentials } from './security.ts';

/** How long an accepted connection may take over its handshake. */
export const HANDSHAKE_TIMEOUT_MS = 5000;

const FAREWELL_MS = 1000;

// AES-128 first: on gradients it costs a quarter less than AES-256, and P-256 certificates are worth 128 bits anyway.
const CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256';

function contextOptions(tls: TlsCredentials): SecureContextOptions {
  return { ...tls, minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3', ciphers: CIPHERS };
}

/** The credentials as Node's TLS takes them. */
export function secureContextOf(tls: TlsCredentials): SecureContext {
  return createSecureContext(contextOptions(tls));
}

export interface AcceptOptions {
  readonly security: Security;
  readonly maxConnections: number;
  readonly alpnProtocol?: string;
  /** A caller, whose identity the certificate proves; undefined in plain text. */
  readonly accept: (socket: Socket, caller: PeerIdentity | undefined) => void;
  /**
   * A connection that did not get so far, and why; `farewell` sends a last word to whoever can read one, which is all
   * that a caller with a wrong certificate learns: TLS 1.3 lets it believe that all is well.
   */
  readonly refused?: (reason: string, farewell: (text: Buffer) => void) => void;
}

/** A server, not listening yet, that hands over connections once they are what `security` asks for. */
export function createSocketServer(options: AcceptOptions): Server {
  const { security, accept, alpnProtocol } = options;
  const refused = options.refused ?? (() => undefined);
  const sockets = { noDelay: true, keepAlive: true };
  if (security.tls === undefined) {
    const server = createServer(sockets, (socket) => {
      accept(socket, undefined);
    });
    server.maxConnections = options.maxConnections;
    return server;
  }
  const server = createTlsServer({
    ...contextOptions(security.tls),
    ...sockets,
    ...(alpnProtocol === undefined ? {} : { ALPNProtocols: [alpnProtocol] }),
    requestCert: true,
    // Looked at below instead: Node would end the connection without a word to either side.
    rejectUnauthorized: false,
    handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
  });
  server.maxConnections = options.maxConnections;
  server.on('tlsClientError', (error, socket) => {
    refused(messageOf(error), () => undefined);
    socket.destroy();
  });
  server.on('secureConnection', (socket) => {
    const caller = socket.authorized ? identityOf(socket.getPeerCertificate()) : undefined;
    if (caller !== undefined) {
      accept(socket, caller);
      return;
    }
    socket.on('error', () => undefined);
    refused(whyUnauthorized(socket), (text) => socket.write(text));
    // What the caller has sent is taken and thrown away: closing before would reset the connection and the last word.
    socket.resume().end();
    setTimeout(() => socket.destroy(), FAREWELL_MS).unref();
  });
  return server;
}

/** What is wrong with a caller's certificate. */
function whyUnauthorized(socket: TLSSocket): string {
  const certificate = socket.getPeerCertificate() as Partial<PeerCertificate>;
  if (certificate.subject === undefined) return 'there is no certificate';
  if (socket.authorized) return 'the certificate bears no identity of a run';
  const reason = String(socket.authorizationError);
  if (reason === 'CERT_HAS_EXPIRED')
    return `the certificate has expired: it was valid until ${certificate.valid_to ?? '?'}`;
  return `the certificate is not from this run's authority (${reason})`;
}

/** `net.connect`, over TLS when there are credentials; wait for {@link connectedEvent}. */
export function connectSocket(
  options: TcpNetConnectOpts,
  security: Security,
  peer: PeerIdentity,
): Socket {
  if (security.tls === undefined) return connect(options);
  const socket = connectTls({
    ...options,
    ...contextOptions(security.tls),
    servername: SERVER_NAME,
    checkServerIdentity: serverIdentityCheck(peer),
  });
  return socket;
}

/** The event by which a socket of {@link connectSocket} tells that it may be written to. */
export function connectedEvent(socket: Socket): 'connect' | 'secureConnect' {
  return socket instanceof TLSSocket ? 'secureConnect' : 'connect';
}

/** Sent to servers as the name that is meant; they have one identity each, so it chooses nothing. */
export const SERVER_NAME = 'videoloom';

/**
 * Checks whom a certificate is of instead of where it is used: processes have identities, their hosts come and go.
 */
export function serverIdentityCheck(
  expected: PeerIdentity,
): (host: string, certificate: PeerCertificate) => Error | undefined {
  return (_, certificate) => {
    const found = identityOf(certificate);
    if (found !== undefined && isSameIdentity(found, expected)) return undefined;
    return new VideoloomError(
      'WRONG_PEER',
      `the certificate there is of ${found === undefined ? 'nobody in a run' : nameOfIdentity(found)}, not of ${nameOfIdentity(expected)}`,
    );
  };
}
