import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { buffer } from 'node:stream/consumers';
import { after, before, beforeEach, describe, it } from 'node:test';
import { inspect } from 'node:util';
import { allowedLookup, checkUrl, isAllowedAddress } from './allowed.ts';
import { openHttpStore, openUrlStore } from './http.ts';
import { openPlaces, openStore } from './open.ts';
import { redactUrl } from './paths.ts';
import { openLocalStore } from './local.ts';
import type { Store } from './store.ts';

/** Different at every place. */
const CONTENT = Buffer.concat(
  Array.from({ length: 20_000 }, (_, i) => createHash('sha1').update(String(i)).digest()),
);
const QUICK = { allowPrivate: true, retryDelayMs: 1 };

type Handler = (request: IncomingMessage, response: ServerResponse) => void;

describe('the store over HTTP', () => {
  let server: Server;
  let origin: string;
  let handle: Handler;
  let requests: IncomingMessage[] = [];
  let store: Store;
  before(async () => {
    server = createServer((request, response) => {
      requests.push(request);
      handle(request, response);
    });
    server.listen(0, '127.0.0.1');
    await new Promise((done) => server.once('listening', done));
    origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    store = openHttpStore(`${origin}/films/`, QUICK);
  });
  beforeEach(() => {
    requests = [];
    handle = serve();
  });
  after(() => {
    server.closeAllConnections();
    server.close();
  });

  it('gives sizes, parts and whole files', async () => {
    assert.deepEqual(await store.stat('a film.mp4'), { sizeBytes: CONTENT.length, version: '"1"' });
    assert.equal(requests[0]?.url, '/films/a%20film.mp4');
    const range = { offset: 1000, sizeBytes: 50 };
    assert.deepEqual(Buffer.from(await store.read('a', { range })), CONTENT.subarray(1000, 1050));
    assert.equal(requests[1]?.headers.range, 'bytes=1000-1049');
    assert.deepEqual(Buffer.from(await store.read('a')), CONTENT);
    const rest = await buffer(await store.stream('a', { offset: 399_990 }));
    assert.deepEqual(rest, CONTENT.subarray(399_990));
    assert.equal(store.localPath('a'), undefined);
  });

  it('goes on where the connection was dropped, with the same version', async () => {
    let numDrops = 0;
    handle = (request, response) => {
      if (numDrops++ === 3) {
        serve()(request, response);
        return;
      }
      // Sends a quarter of what is asked for, then cuts the line.
      const start = startOf(request);
      answerPart(response, start, CONTENT.length);
      response.write(CONTENT.subarray(start, start + 100_000), () => response.destroy());
    };
    assert.deepEqual(Buffer.from(await store.read('a')), CONTENT);
    assert.deepEqual(
      requests.map(({ headers }) => headers.range),
      [undefined, 'bytes=100000-399999', 'bytes=200000-399999', 'bytes=300000-399999'],
    );
    assert.equal(requests[1]?.headers['if-match'], '"1"');
  });

  it('gives up after a few drops without progress', async () => {
    handle = (request) => request.socket.destroy();
    await assert.rejects(store.read('a'), { code: 'STORAGE_UNREACHABLE', retryable: true });
    assert.equal(requests.length, 4);
  });

  it('skips what it does not want of a server that ignores Range', async () => {
    handle = (_, response) => response.setHeader('content-length', CONTENT.length).end(CONTENT);
    const range = { offset: 123_456, sizeBytes: 1000 };
    const part = await store.read('a', { range });
    assert.deepEqual(Buffer.from(part), CONTENT.subarray(123_456, 124_456));
    const far = { offset: 2 ** 30, sizeBytes: 10 };
    await assert.rejects(store.read('a', { range: far }), { code: 'RANGE_IGNORED' });
  });

  it('refuses an answer of another part than was asked for', async () => {
    handle = (_, response) => {
      answerPart(response, 0, 100);
      response.end(CONTENT.subarray(0, 100));
    };
    const range = { offset: 50, sizeBytes: 50 };
    await assert.rejects(store.read('a', { range }), { code: 'STORAGE_FAILED' });
  });

  it('tries again after 503 and 429', async () => {
    handle = (request, response) => {
      if (requests.length > 2) serve()(request, response);
      else response.writeHead(requests.length === 1 ? 503 : 429).end();
    };
    assert.equal(await store.sizeOf('a'), CONTENT.length);
    assert.equal(requests.length, 3);
  });

  it('does not try again what is final', async () => {
    const codes = { 404: 'NOT_FOUND', 401: 'STORAGE_DENIED', 451: 'STORAGE_FAILED' };
    for (const [status, code] of Object.entries(codes)) {
      requests = [];
      handle = (_, response) => response.writeHead(Number(status)).end();
      await assert.rejects(store.read('a'), { code });
      await assert.rejects(store.stream('a'), { code });
      assert.equal(requests.length, 2);
    }
  });

  it('notices that the file changes in the middle, whether the server heeds If-Match or not', async () => {
    for (const heeds of [true, false]) {
      requests = [];
      handle = (request, response) => {
        if (requests.length === 1) {
          answerPart(response, 0, CONTENT.length);
          response.write(CONTENT.subarray(0, 100_000), () => response.destroy());
        } else if (heeds) response.writeHead(412).end();
        else serve('"2"')(request, response);
      };
      await assert.rejects(store.read('a'), { code: 'STORAGE_CHANGED' });
      assert.equal(requests.length, 2);
    }
    handle = serve('"2"');
    await assert.rejects(store.read('a', { version: '"1"' }), { code: 'STORAGE_CHANGED' });
  });

  it('gives up on silence and on a trickle, and on nothing else that takes long', async () => {
    // Of its own: what gives up so soon would do so on a busy machine everywhere.
    const hasty = openHttpStore(`${origin}/films/`, { ...QUICK, stallMs: 300 });
    handle = () => undefined;
    await assert.rejects(hasty.sizeOf('a'), { code: 'STORAGE_TIMED_OUT', retryable: true });
    handle = (_, response) => {
      answerPart(response, 0, CONTENT.length);
      const timer = setInterval(() => response.write('x'), 20);
      response.once('close', () => {
        clearInterval(timer);
      });
    };
    await assert.rejects(hasty.read('a'), { code: 'STORAGE_TIMED_OUT' });
    // A reader that takes its time is not the server's silence.
    handle = serve();
    requests = [];
    const patient = openHttpStore(`${origin}/films/`, { ...QUICK, stallMs: 4000 });
    const chunks: Buffer[] = [];
    for await (const chunk of (await patient.stream('a')) as AsyncIterable<Buffer>) {
      if (chunks.length === 1) await new Promise((done) => setTimeout(done, 4500));
      chunks.push(chunk);
    }
    assert.deepEqual(Buffer.concat(chunks), CONTENT);
    assert.equal(requests.length, 1);
  });

  it('ends with its signal, before and in the middle', async () => {
    const early = AbortSignal.abort(new Error('not wanted'));
    await assert.rejects(store.read('a', { signal: early }), { message: 'not wanted' });
    const controller = new AbortController();
    handle = () => {
      controller.abort(new Error('enough'));
    };
    await assert.rejects(store.read('a', { signal: controller.signal }), { message: 'enough' });
    assert.equal(requests.length, 1);
  });

  it('takes the size from a part where HEAD is refused, and knows an empty file', async () => {
    handle = (request, response) => {
      if (request.method === 'HEAD') response.writeHead(403).end();
      else serve()(request, response);
    };
    assert.equal(await store.sizeOf('a'), CONTENT.length);
    handle = (request, response) => {
      if (request.method === 'HEAD') response.writeHead(405).end();
      else if (request.headers.range === undefined) response.setHeader('content-length', 0).end();
      else response.writeHead(416, { 'content-range': 'bytes */0' }).end();
    };
    assert.equal(await store.sizeOf('a'), 0);
    assert.equal((await store.read('a')).length, 0);
  });

  it('says that a part lies outside of the file, and what is too large', async () => {
    const code = 'RANGE_OUTSIDE';
    const size = CONTENT.length;
    await assert.rejects(store.read('a', { range: { offset: size - 5, sizeBytes: 6 } }), { code });
    await assert.rejects(store.read('a', { range: { offset: size, sizeBytes: 1 } }), { code });
    await assert.rejects(store.stream('a', { offset: size + 5 }), { code });
    await assert.rejects(store.read('a', { maxBytes: 1000 }), { code: 'TOO_LARGE' });
  });

  it('follows redirects, with the password for its own origin alone', async () => {
    const other = createServer((request, response) => {
      assert.equal(request.headers.authorization, undefined);
      serve()(request, response);
    });
    other.listen(0, '127.0.0.1');
    await new Promise((done) => other.once('listening', done));
    const elsewhere = `http://127.0.0.1:${(other.address() as AddressInfo).port}/x`;
    handle = (request, response) => {
      assert.equal(request.headers.authorization, `Basic ${btoa('me:pass word')}`);
      const location = request.url === '/a' ? '/b' : elsewhere;
      response.writeHead(302, { location }).end();
    };
    const own = openHttpStore(origin.replace('//', '//me:pass%20word@'), QUICK);
    assert.deepEqual(Buffer.from(await own.read('a')), CONTENT);
    assert.equal(own.root, origin);
    other.closeAllConnections();
    other.close();
  });

  it('refuses redirects into private networks, to other schemes and without end', async () => {
    // The operator's own store may be private; what it redirects to has to be in the list.
    const careful = openHttpStore(origin, { ...QUICK, hosts: ['127.0.0.1'] });
    for (const location of ['http://169.254.169.254/latest/meta-data/', 'http://localhost/x']) {
      handle = (_, response) => response.writeHead(302, { location }).end();
      await assert.rejects(careful.read('a'), { code: 'URL_REFUSED' });
    }
    for (const location of ['file:///etc/passwd', 'ftp://x/y', 'http://[', '/again']) {
      handle = (_, response) => response.writeHead(307, { location }).end();
      await assert.rejects(store.read('a'), { code: 'URL_REFUSED' });
    }
  });

  it('sends nothing to private addresses, whichever way they are written', async () => {
    const { port } = server.address() as AddressInfo;
    const hosts = [
      ...['127.0.0.1', 'localhost', '2130706433', '0x7f000001', '0x7f.1', '127.1', '0177.0.0.1'],
      ...['[::1]', '[::ffff:127.0.0.1]', '[::ffff:7f00:1]', '[64:ff9b::7f00:1]', '0', '0.0.0.0'],
      ...['[::127.0.0.1]', '[::]', '127.0.0.1.', 'LOCALHOST'],
    ];
    const web = openUrlStore({ retryDelayMs: 1 });
    for (const host of hosts) {
      const url = `http://${host}:${port}/a`;
      await assert.rejects(web.read(url), { code: 'URL_REFUSED' }, host);
      await assert.rejects(web.sizeOf(url), { code: 'URL_REFUSED' }, host);
    }
    assert.equal(requests.length, 0);
  });

  it('keeps passwords and signatures out of messages, causes and the root', async () => {
    const secret = 'hunter2';
    const signed = `${origin.replace('//', `//user:${secret}@`)}/b?X-Amz-Signature=${secret}#${secret}`;
    const own = openHttpStore(signed, QUICK);
    const shown: unknown[] = [own.root];
    for (const handler of [
      (_: IncomingMessage, response: ServerResponse) => response.writeHead(404).end(),
      (_: IncomingMessage, response: ServerResponse) => response.writeHead(503).end(),
      (request: IncomingMessage) => request.socket.destroy(),
      (_: IncomingMessage, response: ServerResponse) =>
        response.writeHead(302, { location: `ftp://x:${secret}@y/?${secret}` }).end(),
      serve(),
    ]) {
      handle = handler;
      const range = { offset: 2 ** 30, sizeBytes: 1 };
      shown.push(await own.read('a', { range }).catch((error: unknown) => error));
      const web = openUrlStore(QUICK);
      shown.push(await web.read(signed, { range }).catch((error: unknown) => error));
    }
    const resolve = openPlaces(openLocalStore('.'));
    const use = async (location: string) => {
      const { store: found, path } = resolve(location);
      return found.sizeOf(path);
    };
    for (const bad of [`http://u:${secret}@[/?${secret}`, `gs://u:${secret}@b/c?${secret}`]) {
      shown.push(await use(bad).catch((error: unknown) => error));
      assert.throws(
        () => openStore(bad),
        (error) => shown.push(error) > 0,
      );
    }
    const all = inspect(shown, { depth: 10, showHidden: true });
    assert.ok(!all.includes(secret), all);
    assert.ok(requests.some(({ url }) => url?.includes(secret)));
  });

  it('cannot be listed', async () => {
    const next = store.list()[Symbol.asyncIterator]().next();
    await assert.rejects(next, { code: 'STORE_UNLISTABLE' });
  });
});

describe('allowed URLs', () => {
  it('are public ones by known schemes', () => {
    for (const url of ['https://example.org/a', 'http://8.8.8.8/', 's3://bucket/key'])
      checkUrl(url, {});
    const bad = ['file:///etc/passwd', 'gs://x/y', 'pipe:1', 'data:,x', 'http://', 'a/b', 'HTTP:/'];
    for (const url of bad) assert.throws(() => checkUrl(url, {}), { code: 'URL_REFUSED' });
  });

  it('are those of a list, if there is one', () => {
    const policy = { hosts: ['example.org', '*.cdn.example', 'bucket'] };
    for (const url of ['https://EXAMPLE.org/', 'https://a.b.cdn.example/', 's3://bucket/key'])
      checkUrl(url, policy);
    for (const url of ['https://a.example.org/', 'https://cdn.example/', 'https://xcdn.example/'])
      assert.throws(() => checkUrl(url, policy), { code: 'URL_REFUSED' });
  });

  // Source: the IANA special-purpose address registries (RFC 6890).
  const special = [
    ...['10.0.0.1', '172.16.0.1', '172.31.255.255', '192.168.1.1', '100.64.0.1', '169.254.169.254'],
    ...['127.8.8.8', '0.0.0.0', '224.0.0.1', '255.255.255.255', '240.0.0.1', '192.0.2.1'],
    ...['198.18.0.1', 'fe80::1', 'fc00::1', 'fd12::1', 'ff02::1', '::', '::1', '2001:db8::1'],
    ...['::ffff:10.0.0.1', '64:ff9b::a00:1', '2002:7f00:1::', '2001::1', '::7f00:1', 'fec0::1'],
  ];
  it('do not lead to addresses for special purposes', () => {
    for (const address of special) {
      assert.ok(!isAllowedAddress(address, {}), address);
      assert.ok(isAllowedAddress(address, { allowPrivate: true }), address);
    }
    for (const address of ['8.8.8.8', '172.32.0.1', '2606:4700::1111', '64:ff9b::808:808'])
      assert.ok(isAllowedAddress(address, {}), address);
  });

  it('are looked up once: what was checked is what is connected to', (_, done) => {
    allowedLookup({})('localhost', { all: true }, (error) => {
      assert.equal((error as { code?: string } | null)?.code, 'URL_REFUSED');
      allowedLookup({ allowPrivate: true })('localhost', { all: false }, (problem, address) => {
        assert.equal(problem, null);
        assert.match(address as string, /^(127\.|::1$)/);
        done();
      });
    });
  });

  it('are shown without user, query and fragment', () => {
    assert.equal(redactUrl('https://u:p@h:1/a/b?sig=1#f'), 'https://h:1/a/b');
    assert.equal(redactUrl('s3://k:s@b/c@d'), 's3://b/c@d');
    assert.equal(redactUrl('what?is#this.mp4'), 'what?is#this.mp4');
  });
});

function startOf(request: IncomingMessage): number {
  return Number(/^bytes=(\d+)/.exec(request.headers.range ?? '')?.[1] ?? 0);
}

function answerPart(response: ServerResponse, start: number, end: number): void {
  const total = CONTENT.length;
  if (start === 0 && end === total) {
    response.writeHead(200, { etag: '"1"', 'content-length': total });
    return;
  }
  const range = `bytes ${start}-${end - 1}/${total}`;
  const length = end - start;
  response.writeHead(206, { etag: '"1"', 'content-range': range, 'content-length': length });
}

/** A server as it should be. Source: RFC 9110, sec. 14. */
function serve(etag = '"1"'): Handler {
  return (request, response) => {
    const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '') ?? [];
    const total = CONTENT.length;
    response.setHeader('etag', etag);
    if (from === undefined) {
      response.setHeader('content-length', total);
      response.end(request.method === 'HEAD' ? undefined : CONTENT);
      return;
    }
    if (Number(from) >= total) {
      response.writeHead(416, { 'content-range': `bytes */${total}` }).end();
      return;
    }
    const end = Math.min(total, to === '' ? total : Number(to) + 1);
    const part = CONTENT.subarray(Number(from), end);
    const range = `bytes ${from}-${end - 1}/${total}`;
    response.writeHead(206, { 'content-range': range, 'content-length': part.length }).end(part);
  };
}
