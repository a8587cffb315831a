import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer, request as forward } from 'node:http';
import type { AddressInfo } from 'node:net';
import { buffer } from 'node:stream/consumers';
import { after, before, describe, it } from 'node:test';
import { inspect } from 'node:util';
import { CreateBucketCommand, PutObjectCommand, S3Client } from '@aws-sdk/client-s3';
import { openPlaces, openStore } from './open.ts';
import { openS3Store } from './s3.ts';
import { openLocalStore } from './local.ts';
import type { StoredFile } from './store.ts';
import { startS3Server } from './test/s3-server.ts';

const NUM_MANY = 1003; // a page has 1000
const CONTENT = createHash('shake256', { outputLength: 300_000 }).update('content').digest();
const QUICK = { retryDelayMs: 1 };

const server = await startS3Server();
const skip = 'skip' in server ? server.skip : false;

describe('the store over S3', { skip }, () => {
  before(async () => {
    if ('skip' in server) return;
    Object.assign(process.env, {
      AWS_ENDPOINT_URL_S3: server.endpoint,
      AWS_ACCESS_KEY_ID: 'AKIAPLANTEDKEY',
      AWS_SECRET_ACCESS_KEY: 'planted-secret',
      AWS_REGION: 'us-east-1',
      AWS_EC2_METADATA_DISABLED: 'true',
      AWS_CONFIG_FILE: '/dev/null',
      AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
    });
    const s3 = new S3Client({ forcePathStyle: true, region: 'us-east-1' });
    await s3.send(new CreateBucketCommand({ Bucket: 'films' }));
    const put = (Key: string, Body: Uint8Array | string) =>
      s3.send(new PutObjectCommand({ Bucket: 'films', Key, Body }));
    let next = 0;
    const putMany = async (): Promise<void> => {
      while (next < NUM_MANY) await put(`many/${String(next++)}.txt`, 'x');
    };
    await Promise.all(Array.from({ length: 8 }, putMany));
    await put('set/b 50% #1?.mp4', CONTENT);
    await put('set/a/😀.mp4', 'e');
    await put('set/a/\uff5e.mp4', 't'); // after 😀 by code unit, before it by the bytes of UTF-8
    await put('set/.hidden/x', 'x');
    await put('set/folder/', 'x');
    await put('settings.txt', 'x');
    s3.destroy();
  });
  after(() => ('skip' in server ? undefined : server.close()));

  it('lists more objects than a page has, in order', async () => {
    const found: StoredFile[] = [];
    for await (const file of openStore('s3://films/many', QUICK).list()) found.push(file);
    const expected = Array.from({ length: NUM_MANY }, (_, i) => `${String(i)}.txt`).sort();
    assert.deepEqual(
      found,
      expected.map((path) => ({ path, sizeBytes: 1 })),
    );
  });

  it('lists by code unit what is below the prefix, without hidden objects and folders', async () => {
    const found: string[] = [];
    for await (const { path } of openStore('s3://films/set/').list()) found.push(path);
    assert.deepEqual(found, ['a/😀.mp4', 'a/\uff5e.mp4', 'b 50% #1?.mp4']);
  });

  it('gives sizes, versions, parts and whole objects', async () => {
    const store = openS3Store('s3://films/set', QUICK);
    const path = 'b 50% #1?.mp4';
    const etag = `"${createHash('md5').update(CONTENT).digest('hex')}"`;
    assert.deepEqual(await store.stat(path), { sizeBytes: CONTENT.length, version: etag });
    assert.deepEqual(Buffer.from(await store.read(path)), CONTENT);
    const range = { offset: 100_000, sizeBytes: 1000 };
    const part = await store.read(path, { range, version: etag });
    assert.deepEqual(Buffer.from(part), CONTENT.subarray(100_000, 101_000));
    const rest = await buffer(await store.stream(path, { offset: 299_000 }));
    assert.deepEqual(rest, CONTENT.subarray(299_000));
  });

  it('is found by the URL of an object', async () => {
    const { store, path } = openPlaces(openLocalStore('.'))('s3://films/set/b 50% #1?.mp4');
    assert.equal(await store.sizeOf(path), CONTENT.length);
    const few = openPlaces(openLocalStore('.'), { hosts: ['other'] })('s3://films/settings.txt');
    await assert.rejects(few.store.sizeOf(few.path), { code: 'URL_REFUSED' });
  });

  it('says what is missing, changed or outside', async () => {
    const store = openStore('s3://films/set', QUICK);
    await assert.rejects(store.read('none'), { code: 'NOT_FOUND' });
    await assert.rejects(store.stat('none'), { code: 'NOT_FOUND' });
    await assert.rejects(store.read('../settings.txt'), { code: 'PATH_OUTSIDE' });
    await assert.rejects(openStore('s3://nowhere', QUICK).read('x'), { code: 'S3_NO_BUCKET' });
    const list = openStore('s3://nowhere', QUICK).list()[Symbol.asyncIterator]();
    await assert.rejects(list.next(), { code: 'S3_NO_BUCKET' });
    const range = { offset: CONTENT.length - 1, sizeBytes: 2 };
    const path = 'b 50% #1?.mp4';
    await assert.rejects(store.read(path, { range }), { code: 'RANGE_OUTSIDE' });
    await assert.rejects(store.stream(path, { offset: 10 ** 6 }), { code: 'RANGE_OUTSIDE' });
    await assert.rejects(store.read(path, { version: '"other"' }), { code: 'STORAGE_CHANGED' });
    await assert.rejects(store.read(path, { maxBytes: 10 }), { code: 'TOO_LARGE' });
    assert.throws(() => openStore('s3://key:secret@films/'), { code: 'URL_REFUSED' });
  });

  it('tries again when the server is busy, and goes on where the connection was dropped', async () => {
    const { AWS_ENDPOINT_URL_S3: endpoint } = process.env;
    const seen: string[] = [];
    // In front of the server: answers the first GET itself, cuts the second one in the middle.
    const proxy = createServer((request, response) => {
      seen.push(`${request.method} ${request.headers.range ?? ''}`);
      if (seen.length === 1) {
        response.writeHead(503).end('<Error><Code>SlowDown</Code></Error>');
        return;
      }
      const { method, headers } = request;
      const target = new URL(request.url!, endpoint);
      const forwarded = forward(target, { method, headers }, (answer) => {
        response.writeHead(answer.statusCode!, answer.headers);
        if (seen.length !== 2) answer.pipe(response);
        else
          answer.once('data', (chunk: Buffer) => response.write(chunk, () => response.destroy()));
      });
      forwarded.on('error', () => response.destroy());
      request.pipe(forwarded);
    });
    proxy.listen(0, '127.0.0.1');
    await once(proxy, 'listening');
    process.env['AWS_ENDPOINT_URL_S3'] =
      `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
    try {
      const bytes = await openStore('s3://films/set', QUICK).read('b 50% #1?.mp4');
      assert.deepEqual(Buffer.from(bytes), CONTENT);
    } finally {
      process.env['AWS_ENDPOINT_URL_S3'] = endpoint;
      proxy.closeAllConnections();
      proxy.close();
    }
    assert.deepEqual(seen.slice(0, 2), ['GET ', 'GET ']);
    assert.match(seen[2]!, /^GET bytes=[1-9]\d*-299999$/);
    assert.equal(seen.length, 3);
  });

  it('takes a clock that is wrong for what another try may mend, and blames no object', async () => {
    // As Amazon's servers answer; moto looks at no clock.
    const code = 'RequestTimeTooSkewed';
    let numRequests = 0;
    const skewed = createServer((_request, response) => {
      numRequests++;
      response.writeHead(403, { 'content-type': 'application/xml' });
      response.end(
        `<Error><Code>${code}</Code><Message>The difference is too large.</Message></Error>`,
      );
    });
    skewed.listen(0, '127.0.0.1');
    await once(skewed, 'listening');
    const { AWS_ENDPOINT_URL_S3: endpoint } = process.env;
    const { port } = skewed.address() as AddressInfo;
    process.env['AWS_ENDPOINT_URL_S3'] = `http://127.0.0.1:${port}`;
    try {
      await assert.rejects(openStore('s3://films/set', QUICK).read('x'), {
        ...{ code: 'STORAGE_UNREACHABLE', retryable: true },
        message: /RequestTimeTooSkewed, HTTP 403.*set the clock of this machine/,
      });
    } finally {
      process.env['AWS_ENDPOINT_URL_S3'] = endpoint;
      skewed.closeAllConnections();
      skewed.close();
    }
    assert.ok(numRequests > 1, `${numRequests} requests`);
  });

  it('says that there are no credentials, no region, no endpoint, and shows no secret', async () => {
    const without = async (names: readonly string[], call: () => Promise<unknown>) => {
      const saved = names.map((name) => [name, process.env[name]] as const);
      for (const name of names) Reflect.deleteProperty(process.env, name);
      const error = await call().catch((thrown: unknown) => thrown);
      for (const [name, value] of saved) process.env[name] = value;
      assert.ok(
        !/AKIAPLANTEDKEY|planted-secret/.test(inspect(error, { depth: 9, showHidden: true })),
      );
      return error as { code: string };
    };
    const read = () => openStore('s3://films/set', QUICK).read('x');
    const keys = ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'];
    assert.equal((await without(keys, read)).code, 'S3_NO_CREDENTIALS');
    const places = ['AWS_REGION', 'AWS_ENDPOINT_URL_S3'];
    assert.equal((await without(places, read)).code, 'S3_NO_REGION');
    assert.equal((await without([], read)).code, 'NOT_FOUND');
    const { AWS_ENDPOINT_URL_S3: endpoint } = process.env;
    process.env['AWS_ENDPOINT_URL_S3'] = 'http://127.0.0.1:9'; // nobody listens
    assert.equal((await without([], read)).code, 'STORAGE_UNREACHABLE');
    process.env['AWS_ENDPOINT_URL_S3'] = endpoint;
  });
});
