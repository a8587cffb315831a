/** Addresses of NATS servers as a config names them. */
import { parseAddress } from './address.ts';
import { UsageError } from './errors.ts';
import { checkReach, type Security } from './security.ts';

/** Where a NATS server is. */
export interface NatsServer {
  readonly host: string;
  readonly port: number;
  /** As people write it, for messages: `nats://host:port`. */
  readonly url: string;
}

const DEFAULT_PORT = 4222;
const MAX_SERVERS = 16;

/**
 * The servers of `nats://host:port` or `tls://host:port`, one or several.
 * @param where subject of the message, such as `cluster.events`
 * @throws UsageError BAD_EVENTS_ADDRESS, EVENTS_CREDENTIALS_IN_ADDRESS (which does not repeat them)
 */
export function parseNatsServers(urls: string | readonly string[], where: string): NatsServer[] {
  const list = typeof urls === 'string' ? [urls] : urls;
  if (list.length === 0 || list.length > MAX_SERVERS)
    throw badAddress(where, `names ${list.length} servers, expected 1 to ${MAX_SERVERS}`);
  return list.map((url) => {
    if (url.includes('@')) {
      throw new UsageError(
        'EVENTS_CREDENTIALS_IN_ADDRESS',
        `${where} has a user or a token in the address of a NATS server, where the process list, logs and the run folder ` +
          `would show it: take it out, put it into a file of mode 600 and its path into VIDEOLOOM_NATS_CREDENTIALS.`,
      );
    }
    const [, scheme, host, port] =
      /^(nats|tls):\/\/(\[[^\]]+\]|[^:/?#]+)(:\d+)?\/?$/.exec(url) ?? [];
    if (scheme === undefined || host === undefined)
      throw badAddress(where, `is ${JSON.stringify(url)}`);
    const address = parseAddress(`${host}${port ?? `:${DEFAULT_PORT}`}`);
    if (address.port === 0) throw badAddress(where, `is ${JSON.stringify(url)}, whose port is 0`);
    return { ...address, url: `${scheme}://${host}:${address.port}` };
  });
}

function badAddress(where: string, what: string): UsageError {
  return new UsageError(
    'BAD_EVENTS_ADDRESS',
    `${where} ${what}: write nats://host:${DEFAULT_PORT}, tls://host:${DEFAULT_PORT}, or a list of them.`,
  );
}

/**
 * Refuses servers that may not be spoken to, by the rule of all connections of a run.
 * @throws UsageError PLAIN_TEXT_OFF_LOOPBACK; EVENTS_TLS_MISSING for `tls://` without certificates
 */
export function checkNatsReach(servers: readonly NatsServer[], security: Security): void {
  for (const { host, port, url } of servers) {
    checkReach(
      security,
      `${host.includes(':') ? `[${host}]` : host}:${port}`,
      'events would go to',
    );
    if (security.tls !== undefined || !url.startsWith('tls:')) continue;
    throw new UsageError(
      'EVENTS_TLS_MISSING',
      `${url} asks for TLS, and this process has no certificates: make them with \`videoloom init --tls DIR --nats ${host}\` ` +
        'and give it `--tls DIR` (or VIDEOLOOM_TLS_DIR) without `--insecure`, or write nats:// for plain text.',
    );
  }
}
