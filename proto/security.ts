/**
 * What protects the connections of a run. The whole rule:
 *
 * | `--tls DIR` | `--insecure` | loopback                | off the loopback                    |
 * | ----------- | ------------ | ----------------------- | ----------------------------------- |
 * | no          | no           | plain text              | refused at start                    |
 * | yes         | no           | mutual TLS and token    | mutual TLS and token                |
 * | no          | yes          | plain text              | plain text, nobody is asked         |
 * | yes         | yes          | plain text and token    | plain text and token                |
 *
 * A token without TLS keeps out those who do not see the traffic, no more: whoever sees it reads the token. So a token
 * alone does not open a way off the loopback, the flag does.
 */
import { isLoopback, parseAddress } from './address.ts';
import { UsageError } from './errors.ts';
import type { Log } from './log.ts';

/** A process's own certificate and the authority that its peers' have to come from, all PEM. */
export interface TlsCredentials {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

export interface Security {
  /** Mutual TLS; undefined is plain text. */
  readonly tls: TlsCredentials | undefined;
  /** The secret that all processes of a run share; undefined asks nobody. */
  readonly token: string | undefined;
  /** Plain text may leave the loopback. */
  readonly insecure: boolean;
}

/** Plain text between processes of one machine. */
export const LOOPBACK_ONLY: Security = { tls: undefined, token: undefined, insecure: false };

/**
 * Refuses plain text to or from an address off the loopback; names other than `localhost` count as off it.
 * @param what subject of the message, such as `the coordinator would listen on`
 * @throws UsageError PLAIN_TEXT_OFF_LOOPBACK, BAD_ADDRESS
 */
export function checkReach(security: Security, address: string, what: string): void {
  const { host } = parseAddress(address);
  if (security.tls !== undefined || security.insecure || isLoopback(host)) return;
  throw new UsageError(
    'PLAIN_TEXT_OFF_LOOPBACK',
    `${what} ${address}, which is not the loopback of this machine, in plain text. Make certificates and a join token ` +
      'with `videoloom init --tls DIR` and give each process of the run `--tls DIR` (or VIDEOLOOM_TLS_DIR). A join token ' +
      'alone would travel readable; in a network where everybody may read and change the run, `--insecure` allows plain text.',
  );
}

const WARN_EVERY_MS = 60_000;

/** Warns now and every minute while plain text may leave the loopback. @returns ends the warnings */
export function warnWhileInsecure({ tls, insecure, token }: Security, log: Log): () => void {
  if (tls !== undefined || !insecure) return () => undefined;
  const warn = (): void => {
    log.warn(
      { code: 'INSECURE' },
      'connections are plain text (--insecure): whoever reaches this network can read the run' +
        (token === undefined ? ', join it and stop it' : ' and its join token'),
    );
  };
  warn();
  const timer = setInterval(warn, WARN_EVERY_MS);
  timer.unref();
  return () => {
    clearInterval(timer);
  };
}

const REFUSALS_LOGGED_EVERY_MS = 10_000;

/** Tells the log of connections that were refused: the first, and then at most one line every ten seconds. */
export function refusalLog(log: Log, what: string): (reason: string) => void {
  let [nextMs, untold] = [0, 0];
  return (reason) => {
    untold++;
    if (performance.now() < nextMs) return;
    nextMs = performance.now() + REFUSALS_LOGGED_EVERY_MS;
    log.warn({ code: 'CONNECTION_REFUSED', connections: untold }, `${what} was refused: ${reason}`);
    untold = 0;
  };
}
