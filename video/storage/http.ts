import { Agent as HttpAgent, request as requestHttp, type IncomingMessage } from 'node:http';
import { Agent as HttpsAgent, request as requestHttps } from 'node:https';
import { messageOf } from '../../proto/errors.ts';
import { allowedLookup, checkUrl, refused, type UrlPolicy } from './allowed.ts';
import { checkPath, redactUrl } from './paths.ts';
import { remoteStore, type RemoteAnswer, type RemoteFiles, type RemoteOptions } from './remote.ts';
import { fileChanged, StorageError, type FileState, type Store } from './store.ts';

export type HttpOptions = UrlPolicy & RemoteOptions;

/**
 * The files below an `http(s)://` URL. Its query, if any, goes along with each request (signed access to a container),
 * a user and password in it go to its own origin alone. Addresses that are not public are refused at the moment of
 * connecting; see {@link UrlPolicy}.
 * @throws StorageError URL_REFUSED
 */
export function openHttpStore(root: string, options: HttpOptions = {}): Store {
  const base = checkUrl(root, options);
  const folder = base.pathname.endsWith('/') ? base.pathname : `${base.pathname}/`;
  return httpStore(redactUrl(root), options, (path) => {
    const url = new URL(base);
    url.pathname = folder + checkPath(path).split('/').map(encodeURIComponent).join('/');
    return url;
  });
}

/**
 * The web as a store, whose paths are whole URLs.
 * @throws StorageError URL_REFUSED on use
 */
export function openUrlStore(options: HttpOptions = {}): Store {
  return httpStore('https://', options, (location) => {
    const url = checkUrl(location, options);
    if (!url.protocol.startsWith('http')) throw refused(location, 'is no http(s) URL');
    return url;
  });
}

function httpStore(root: string, options: HttpOptions, locate: (path: string) => URL): Store {
  const lookup = allowedLookup(options);
  // Idle sockets keep no process alive and are closed after a while: nothing to close.
  const agents = {
    'http:': new HttpAgent({ keepAlive: true, timeout: IDLE_MS, lookup }),
    'https:': new HttpsAgent({ keepAlive: true, timeout: IDLE_MS, lookup }),
  };
  const client: Client = { agents, policy: options };
  const files: RemoteFiles = {
    describe: (path) => redactUrl(locate(path).href),
    head: (path, signal) => headOf(client, locate(path), signal),
    get: (path, request) => get(client, locate(path), request),
  };
  return {
    root,
    async *list() {
      await Promise.resolve();
      throw new StorageError(
        'STORE_UNLISTABLE',
        `${root} cannot be listed: HTTP has no folders. Name the files in a table or a list (CSV, Parquet, JSON), or ` +
          'give the store as s3://',
      );
    },
    ...remoteStore(files, options),
  };
}

interface Client {
  readonly agents: { readonly 'http:': HttpAgent; readonly 'https:': HttpsAgent };
  readonly policy: UrlPolicy;
}

async function headOf(client: Client, url: URL, signal: AbortSignal): Promise<FileState> {
  const head = await send(client, 'HEAD', url, {}, signal);
  head.resume();
  const sizeBytes = lengthOf(head);
  if (head.statusCode === 200 && sizeBytes !== undefined)
    return { sizeBytes, version: versionOf(head, sizeBytes) };
  if (head.statusCode !== 200 && !HEAD_REFUSED.includes(head.statusCode!))
    throw statusError(head, url);

  // Signed URLs are signed for GET; other servers know no HEAD, or give no length with it.
  const { body, ...state } = await get(client, url, { offset: 0, sizeBytes: 1, signal }).catch(
    (error: unknown) => {
      // An empty file has no first byte.
      if (error instanceof EmptyFile) return { body: undefined, ...error.state };
      throw error;
    },
  );
  body?.destroy();
  if (state.sizeBytes !== undefined)
    return { sizeBytes: state.sizeBytes, version: state.version ?? '' };
  throw new StorageError(
    'SIZE_UNKNOWN',
    `${redactUrl(url.href)} does not say how large it is (no Content-Length): serve it as a file`,
  );
}

/** A `Range` that a file without bytes does not have. */
class EmptyFile extends StorageError {
  readonly state = { sizeBytes: 0, version: 'size-0' };
}

async function get(
  client: Client,
  url: URL,
  { offset, sizeBytes, version, signal }: Parameters<RemoteFiles['get']>[1],
): Promise<RemoteAnswer> {
  const what = redactUrl(url.href);
  const headers: Record<string, string> = {};
  if (offset > 0 || sizeBytes !== undefined)
    headers['range'] = `bytes=${offset}-${sizeBytes === undefined ? '' : offset + sizeBytes - 1}`;
  // Only a strong tag can be asked for; whatever is asked, the answer's own is compared.
  if (version?.startsWith('"') === true) headers['if-match'] = version;

  const response = await send(client, 'GET', url, headers, signal);
  if (response.statusCode === 206) {
    const [, start, total] = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(contentRange(response)) ?? [];
    if (Number(start) === offset) {
      const totalBytes = total === '*' ? undefined : Number(total);
      return {
        body: response,
        from: offset,
        sizeBytes: totalBytes,
        version: versionOf(response, totalBytes),
      };
    }
    response.destroy();
    throw new StorageError(
      'STORAGE_FAILED',
      `${what} was asked for the bytes from ${offset} on and gave "${contentRange(response)}": the server or a proxy ` +
        'in between is at fault',
    );
  }
  if (response.statusCode === 200) {
    // A server that takes no notice of `Range` sends all.
    const total = lengthOf(response);
    if (offset > MAX_SKIP_BYTES) {
      response.destroy();
      throw new StorageError(
        'RANGE_IGNORED',
        `${what} comes from a server that sends whole files only, and bytes from ${offset} on are needed: use a ` +
          'server that knows Range, or copy the files to a local folder',
      );
    }
    return { body: response, from: 0, sizeBytes: total, version: versionOf(response, total) };
  }
  response.destroy();
  if (response.statusCode === 416) {
    const [, total] = /^bytes \*\/(\d+)$/.exec(contentRange(response)) ?? [];
    if (total === '0') throw new EmptyFile('RANGE_OUTSIDE', `${what} is empty`);
    throw new StorageError(
      'RANGE_OUTSIDE',
      `${what} has ${total ?? 'fewer'} bytes, and bytes from ${offset} on were asked for: it was cut short or ` +
        'replaced; index it again',
    );
  }
  throw statusError(response, url);
}

/** The answer to a request, redirects followed; each target has to be allowed as the first one has. */
async function send(
  client: Client,
  method: 'GET' | 'HEAD',
  first: URL,
  headers: Readonly<Record<string, string>>,
  signal: AbortSignal,
): Promise<IncomingMessage> {
  let url = first;
  for (let numRedirects = 0; ; numRedirects++) {
    const response = await sendOnce(client, method, url, headers, signal);
    const { location } = response.headers;
    if (!REDIRECTS.includes(response.statusCode!) || location === undefined) return response;
    response.destroy();
    const from = redactUrl(url.href);
    if (numRedirects === MAX_REDIRECTS)
      throw refused(first.href, `redirects more than ${MAX_REDIRECTS} times: give its final URL`);
    if (!URL.canParse(location, url.href)) throw refused(from, 'redirects to what is no URL');
    const target = new URL(location, url);
    if (target.protocol !== 'http:' && target.protocol !== 'https:')
      throw refused(target.href, `is what ${from} redirects to, and no http(s) URL`);
    if (url.protocol === 'https:' && target.protocol === 'http:')
      throw refused(
        target.href,
        `is what ${from} redirects to, away from https: give its final URL`,
      );
    // Credentials stay with the origin they were given for.
    if (target.origin === url.origin)
      [target.username, target.password] = [url.username, url.password];
    url = checkUrl(target.href, client.policy);
  }
}

function sendOnce(
  { agents }: Client,
  method: 'GET' | 'HEAD',
  url: URL,
  headers: Readonly<Record<string, string>>,
  signal: AbortSignal,
): Promise<IncomingMessage> {
  const { protocol, username, password } = url;
  const auth =
    username === ''
      ? {}
      : { auth: `${decodeURIComponent(username)}:${decodeURIComponent(password)}` };
  const options = {
    method,
    signal,
    headers: { 'user-agent': 'videoloom', 'accept-encoding': 'identity', ...headers },
    ...auth,
  };
  return new Promise((done, fail) => {
    const request =
      protocol === 'https:'
        ? requestHttps(url, { ...options, agent: agents['https:'] })
        : requestHttp(url, { ...options, agent: agents['http:'] });
    request.once('response', done);
    request.once('error', (error) => {
      fail(connectionError(error, url));
    });
    request.end();
  });
}

function connectionError(error: Error, url: URL): Error {
  if (error instanceof StorageError || error.name === 'AbortError') return error;
  const { code = '' } = error as NodeJS.ErrnoException;
  const what = redactUrl(url.href);
  const options = { cause: error, retryable: !FINAL_ERRORS.test(code) };
  const said = messageOf(error);
  if (code === 'ENOTFOUND')
    return new StorageError(
      'STORAGE_UNREACHABLE',
      `${what}: no such host. Correct the URL.`,
      options,
    );
  if (/CERT|SSL|TLS|ALTNAME|ISSUER/.test(code)) {
    return new StorageError(
      'STORAGE_UNREACHABLE',
      `${what}: the server's certificate does not hold (${said}). If it is your own authority's, name that in ` +
        'NODE_EXTRA_CA_CERTS.',
      options,
    );
  }
  return new StorageError(
    'STORAGE_UNREACHABLE',
    `${what} cannot be reached: ${said}. Look after the network or the server.`,
    options,
  );
}

function statusError(response: IncomingMessage, url: URL): StorageError {
  const status = response.statusCode!;
  const what = redactUrl(url.href);
  if (status === 404 || status === 410)
    return new StorageError('NOT_FOUND', `${what} is not there (HTTP ${status}): correct the path`);
  if (status === 401 || status === 403) {
    return new StorageError(
      'STORAGE_DENIED',
      `${what} may not be read (HTTP ${status}): it wants credentials, or a signed URL has expired`,
    );
  }
  if (status === 412) return fileChanged(what);
  const retryable = status === 408 || status === 429 || status >= 500;
  return new StorageError(
    retryable ? 'STORAGE_UNREACHABLE' : 'STORAGE_FAILED',
    `${what} answered HTTP ${status}: ${retryable ? 'wait until the server is well, or ask it for less at once' : 'correct the URL'}`,
    { retryable },
  );
}

function contentRange(response: IncomingMessage): string {
  return response.headers['content-range'] ?? '';
}

function lengthOf(response: IncomingMessage): number | undefined {
  const length = response.headers['content-length'];
  return length !== undefined && /^\d+$/.test(length) ? Number(length) : undefined;
}

/** The strongest thing the server says of which content it is. */
function versionOf({ headers }: IncomingMessage, sizeBytes: number | undefined): string {
  return headers.etag ?? headers['last-modified'] ?? `size-${sizeBytes ?? 'unknown'}`;
}

const IDLE_MS = 15_000;
const REDIRECTS = [301, 302, 303, 307, 308];
const MAX_REDIRECTS = 5;
const HEAD_REFUSED = [200, 400, 403, 405, 501];
/** How much of a file is thrown away at most where a server does not know `Range`. */
const MAX_SKIP_BYTES = 64 * 2 ** 20;
/** What another attempt does not mend. */
const FINAL_ERRORS = /^(ENOTFOUND|HPE_|ERR_|.*CERT|.*SSL|.*TLS|.*ISSUER|.*SIGNATURE)/;
