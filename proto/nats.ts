/** Connections to NATS servers. */
import { readFile } from 'node:fs/promises';
import { checkServerIdentity } from 'node:tls';
import {
  connect,
  credsAuthenticator,
  tokenAuthenticator,
  usernamePasswordAuthenticator,
  type Authenticator,
  type ConnectionOptions,
  type NatsConnection,
  type TlsOptions,
} from '@nats-io/transport-node';
import { messageOf, UsageError, VideoloomError } from './errors.ts';
import type { NatsServer } from './nats-servers.ts';
import { checkSecretMode } from './security-folder.ts';
import type { Security } from './security.ts';

/** Names the file with what a server wants to know beside a certificate. */
export const NATS_CREDENTIALS_VARIABLE = 'VIDEOLOOM_NATS_CREDENTIALS';

/** Until a server has shaken hands. */
const CONNECT_MS = 5000;
/** A request that was not answered by then has failed. */
export const NATS_REQUEST_MS = 5000;
/** Two pings without an answer end a connection. */
const PING_EVERY_MS = 10_000;

export interface NatsOptions {
  readonly security: Security;
  /** Path of {@link NATS_CREDENTIALS_VARIABLE}; undefined: the server asks for nothing, or for certificates alone. */
  readonly credentialsFile: string | undefined;
  /** How the server's own lists call this connection. */
  readonly name: string;
}

/**
 * One connection to one server, which does not come back by itself: the client's own reconnecting gives up, buffers
 * without bound what is published meanwhile, and keeps to itself why it does not succeed.
 * @throws VideoloomError EVENTS_NOT_CONNECTED; UsageError SECRET_EXPOSED, EVENTS_CREDENTIALS_UNREADABLE
 */
export async function connectNats(
  { host, port, url }: NatsServer,
  { security, credentialsFile, name }: NatsOptions,
): Promise<NatsConnection> {
  // Read each time, so that it can be renewed while a run goes on.
  const authenticator = await natsAuthenticator(credentialsFile);
  const options: ConnectionOptions = {
    servers: `${host.includes(':') ? `[${host}]` : host}:${port}`,
    ...{ name, reconnect: false, timeout: CONNECT_MS },
    ...{ pingInterval: PING_EVERY_MS, maxPingOut: 2 },
    // A server would name others, of which nobody has said that they may be spoken to.
    ignoreClusterUpdates: true,
    // Null, unlike undefined, is plain text also where the server offers TLS.
    tls: tlsOptions(host, security),
    ...(authenticator === undefined ? {} : { authenticator }),
  };
  try {
    return await connect(options);
  } catch (error) {
    throw new VideoloomError(
      'EVENTS_NOT_CONNECTED',
      `no connection to ${url}: ${reasonOf(error)}${hintFor(error, host)}`,
      { cause: error, retryable: true },
    );
  }
}

function tlsOptions(host: string, { tls }: Security): (TlsOptions & object) | null {
  if (tls === undefined) return null;
  const options: TlsOptions & { minVersion: string; checkServerIdentity: unknown } = {
    ...{ ca: tls.ca, cert: tls.cert, key: tls.key, minVersion: 'TLSv1.3' },
    // The client asks for the name localhost where a server is named by its address.
    checkServerIdentity: (_: string, certificate: Parameters<typeof checkServerIdentity>[1]) =>
      checkServerIdentity(host, certificate),
  };
  return options;
}

function hintFor(error: unknown, host: string): string {
  return /certificate/i.test(messageOf(error))
    ? ` (a server gets a certificate of this authority with \`videoloom init --tls DIR --nats ${host}\`)`
    : '';
}

/** The client wraps what happened, at times more than once; the innermost says most. */
function reasonOf(error: unknown): string {
  const { cause } = error as { cause?: unknown };
  const message = messageOf(error);
  if (!(cause instanceof Error) || cause.message === '') return message;
  return message.includes(cause.message) ? message : `${message} (${cause.message})`;
}

/**
 * What the file holds: the credentials of `nsc` (a JWT and its seed), `user:password`, or a token.
 * @throws UsageError SECRET_EXPOSED, EVENTS_CREDENTIALS_UNREADABLE
 */
export async function natsAuthenticator(
  file: string | undefined,
): Promise<Authenticator | undefined> {
  if (file === undefined || file === '') return undefined;
  let content: Buffer;
  try {
    content = await readFile(file);
  } catch (error) {
    throw new UsageError(
      'EVENTS_CREDENTIALS_UNREADABLE',
      `the credentials for NATS cannot be read: ${messageOf(error)}. ${NATS_CREDENTIALS_VARIABLE} has to be the path of a ` +
        'file that holds those of nsc, user:password, or a token.',
    );
  }
  await checkSecretMode(file);
  const text = content.toString('utf8').trim();
  if (text.startsWith('-----BEGIN')) return credsAuthenticator(content);
  const [, user, password] = /^([^:\s]+):(\S+)$/.exec(text) ?? [];
  return user === undefined
    ? tokenAuthenticator(text)
    : usernamePasswordAuthenticator(user, password);
}
