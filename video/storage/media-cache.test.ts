import assert from 'node:assert/strict';
import { execFile, execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { parquetWriteBuffer } from 'hyparquet-writer';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openCacheFolder } from './cache-folder.ts';
import { openHttpStore } from './http.ts';
import { openLocalStore } from './local.ts';
import { openMediaCache, type MediaCache } from './media-cache.ts';

const OPTIONS = { allowPrivate: true, retryDelayMs: 1 };
const CHILD = new URL('test/fetch-child.ts', import.meta.url).pathname;
const RUN_CHILD = ['--import', 'tsx', CHILD];
const KIB = 1024;

describe('the cache of media', () => {
  let folder: string;
  let server: Server;
  let origin: string;
  let files: Map<string, Buffer>;
  let requests: string[];
  /** Paths whose bodies stop in the middle until the promise is done. */
  let held: Map<string, Promise<void>>;
  let numClosedEarly: number;
  let caches: MediaCache[];

  before(async () => {
    server = createServer((request, response) => {
      requests.push(`${request.method} ${request.url}`);
      const bytes = files.get(request.url!);
      if (bytes === undefined) {
        response.writeHead(404).end();
        return;
      }
      const etag = `"${sha256Of(bytes)}"`;
      const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '') ?? [];
      const [start, end] = [Number(from ?? 0), to ? Number(to) + 1 : bytes.length];
      const part = bytes.subarray(start, end);
      response.writeHead(from === undefined ? 200 : 206, {
        etag,
        'content-length': part.length,
        ...(from === undefined
          ? {}
          : { 'content-range': `bytes ${start}-${end - 1}/${bytes.length}` }),
      });
      if (request.method === 'HEAD') {
        response.end();
        return;
      }
      const gate = held.get(request.url!);
      if (gate === undefined) {
        response.end(part);
        return;
      }
      response.write(part.subarray(0, part.length / 2));
      response.once('close', () => (numClosedEarly += response.writableEnded ? 0 : 1));
      void gate.then(() => response.end(part.subarray(part.length / 2)));
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  beforeEach(async () => {
    folder = await temporaryFolder('cache');
    files = new Map(Array.from({ length: 12 }, (_, i) => [`/${i}`, contentOf(i, 100 * KIB)]));
    requests = [];
    held = new Map();
    numClosedEarly = 0;
    caches = [];
  });
  afterEach(async () => {
    for (const cache of caches) await cache.close();
  });
  after(() => {
    server.closeAllConnections();
    server.close();
  });

  const open = (maxBytes = 10_000 * KIB): MediaCache => {
    const store = openHttpStore(origin, OPTIONS);
    const cache = openMediaCache({ folder, maxBytes, store, options: OPTIONS });
    caches.push(cache);
    return cache;
  };
  const contents = () => readdir(join(folder, 'content'));
  const leftovers = async () => {
    const processes = (await readdir(folder)).filter((name) => name.startsWith('process-'));
    return (await Promise.all(processes.map((name) => readdir(join(folder, name))))).flat();
  };

  it('gives files of a folder themselves, with their ranges, and copies nothing', async () => {
    await writeFile(join(folder, 'a.mp4'), 'abcdef');
    const store = openLocalStore(folder);
    const cache = openMediaCache({ folder: join(folder, 'cache'), maxBytes: 1, store });
    const range = { offset: 1, sizeBytes: 3 };
    const { release, ...local } = await cache.acquire({ path: 'a.mp4', range });
    assert.deepEqual(local, { path: join(folder, 'a.mp4'), range });
    release();
    const bytes = await cache.readBytes({ path: 'a.mp4', range });
    assert.equal(Buffer.from(bytes).toString(), 'bcd');
    await assert.rejects(cache.acquire({ path: '../x' }), { code: 'PATH_OUTSIDE' });
    await assert.rejects(cache.acquire({ path: 'file:///etc/passwd' }), { code: 'URL_REFUSED' });
    await assert.rejects(cache.acquire({ path: `${origin}/0` }), { code: 'URL_REFUSED' });
    await cache.close();
    assert.deepEqual(await readdir(folder), ['a.mp4']);
  });

  it('tells a file of a folder from the same one changed, and needs no such thing of a copy', async () => {
    const path = join(folder, 'a.tar');
    const store = openLocalStore(folder);
    const cache = openMediaCache({ folder: join(folder, 'cache'), maxBytes: 1, store });
    await writeFile(path, contentOf(300, 100 * KIB));
    const first = await cache.versionOf({ path: 'a.tar' });
    assert.notEqual(first, '');
    assert.equal(
      await cache.versionOf({ path: 'a.tar', range: { offset: 5, sizeBytes: 6 } }),
      first,
    );
    await utimes(path, new Date(), new Date(2020, 1, 2));
    assert.notEqual(await cache.versionOf({ path: 'a.tar' }), first);
    assert.equal(await cache.versionOf({ path: 'https://example.org/a.tar' }), '');
    await rm(path);
    await assert.rejects(cache.versionOf({ path: 'a.tar' }), { code: 'NOT_FOUND' });
    await cache.close();
  });

  it('fetches whole files and parts once, by path and by URL, and finds them again later', async () => {
    const range = { offset: 5000, sizeBytes: 20_000 };
    for (const round of [0, 1, 2]) {
      const cache = open();
      const whole = await cache.acquire({ path: '0' });
      assert.deepEqual(await readFile(whole.path), files.get('/0'));
      const part = await cache.acquire({ path: `${origin}/1`, range });
      assert.equal(part.range, undefined);
      assert.deepEqual(await readFile(part.path), files.get('/1')!.subarray(5000, 25_000));
      const bytes = await cache.readBytes({ path: '1', range: { offset: 0, sizeBytes: 10 } });
      assert.deepEqual(Buffer.from(bytes), files.get('/1')!.subarray(0, 10));
      whole.release();
      whole.release();
      part.release();
      assert.equal(requests.filter((line) => line.startsWith('GET')).length, 3, `round ${round}`);
      assert.deepEqual(await leftovers(), []);
      await cache.close();
    }
    assert.equal((await contents()).length, 3);
  });

  it('knows an indexed file by its SHA-256 under any name, and refuses another one', async () => {
    const cache = open();
    const sha256 = sha256Of(files.get('/3')!);
    const known = { sha256, sizeBytes: 100 * KIB };
    (await cache.acquire({ path: '3', ...known })).release();
    (await cache.acquire({ path: 'moved', ...known })).release();
    assert.deepEqual(requests, ['GET /3']);
    const wrong = { ...known, sha256: sha256Of(Buffer.from('x')) };
    await assert.rejects(cache.acquire({ path: '3', ...wrong }), { code: 'STORAGE_CHANGED' });
    assert.deepEqual(await contents(), [sha256]);
    assert.deepEqual(await leftovers(), []);
  });

  it('fetches a changed file anew', async () => {
    const cache = open();
    (await cache.acquire({ path: '0' })).release();
    files.set('/0', contentOf(100, 50 * KIB));
    const later = open();
    assert.deepEqual(Buffer.from(await later.readBytes({ path: '0' })), files.get('/0'));
    // One that is known as it was notices it when it fetches, and looks anew.
    const range = { offset: 0, sizeBytes: 10 };
    await assert.rejects(cache.acquire({ path: '0', range }), { code: 'STORAGE_CHANGED' });
    (await cache.acquire({ path: '0', range })).release();
  });

  it('shares a download among those who want it, and ends it when all have gone', async () => {
    let open1 = (): void => undefined;
    held.set('/0', new Promise((done) => (open1 = done)));
    held.set('/1', new Promise(() => undefined));
    const cache = open();
    const impatient = new AbortController();
    const first = cache.acquire({ path: '0' }, impatient.signal);
    const second = cache.acquire({ path: '0' });
    await until(() => requests.includes('GET /0'));
    impatient.abort(new Error('gone'));
    await assert.rejects(first, { message: 'gone' });
    open1();
    assert.deepEqual(await readFile((await second).path), files.get('/0'));
    assert.equal(requests.filter((line) => line === 'GET /0').length, 1);

    const last = new AbortController();
    const third = cache.acquire({ path: '1' }, last.signal);
    await until(() => requests.includes('GET /1'));
    last.abort(new Error('gone'));
    await assert.rejects(third, { message: 'gone' });
    await until(() => numClosedEarly === 1);
    (await second).release();
    await until(async () => (await leftovers()).length === 0);
  });

  it('stays below its size, throws out what was not used for longest, and nothing in use', async () => {
    const cache = open(450 * KIB);
    const pinned = await cache.acquire({ path: '0' });
    for (const path of ['1', '2', '3']) (await cache.acquire({ path })).release();
    (await cache.acquire({ path: '1' })).release(); // now 2 is the oldest
    const total = async () => {
      const sizes = (await contents()).map((name) => stat(join(folder, 'content', name)));
      return (await Promise.all(sizes)).reduce((sum, { size }) => sum + size, 0);
    };
    assert.equal(await total(), 400 * KIB);
    (await cache.acquire({ path: '4' })).release();
    const kept = async () => {
      const names = await contents();
      return [...files]
        .filter(([, bytes]) => names.includes(sha256Of(bytes)))
        .map(([path]) => path);
    };
    assert.deepEqual(await kept(), ['/0', '/1', '/3', '/4']);
    for (let i = 5; i < 12; i++) {
      (await cache.acquire({ path: String(i) })).release();
      assert.ok((await total()) <= 450 * KIB);
    }
    assert.deepEqual(await kept(), ['/0', '/9', '/10', '/11']);
    assert.deepEqual(await readFile(pinned.path), files.get('/0'));
    pinned.release();
    const found = await readdir(join(folder, 'names'));
    assert.equal(found.length, 4, 'names of what is gone are gone');
    files.set('/large', contentOf(50, 500 * KIB));
    await assert.rejects(cache.acquire({ path: 'large' }), { code: 'CACHE_TOO_SMALL' });
  });

  it('waits for room while all of it is in use, for a while', async () => {
    const cache = await openCacheFolder({ folder, maxBytes: 100, waitMs: 3000 });
    const add = (byte: number) =>
      cache.add([Buffer.alloc(60, byte)], { sizeBytes: 60, what: 'a file' });
    const first = await cache.hold(await add(1));
    await assert.rejects(add(2), { code: 'CACHE_FULL', retryable: true });
    const later = add(3);
    setTimeout(first!.release, 50);
    await later;
    assert.equal((await contents()).length, 1);
    await cache.close();
  });

  it('keeps what another process holds', async () => {
    const one = await openCacheFolder({ folder, maxBytes: 100 });
    const other = await openCacheFolder({ folder, maxBytes: 100, waitMs: 1000 });
    const sha256 = await one.add([Buffer.alloc(60, 1)], { sizeBytes: 60, what: 'a file' });
    const mine = await one.hold(sha256);
    const add = () => other.add([Buffer.alloc(60, 2)], { sizeBytes: 60, what: 'a file' });
    await assert.rejects(add(), { code: 'CACHE_FULL' });
    mine!.release();
    await add();
    assert.equal(await one.hold(sha256), undefined);
    await one.close();
    await other.close();
  });

  it('leaves nothing half behind when its process is killed, and clears away what it left', async () => {
    held.set('/0', new Promise(() => undefined));
    const child = spawn(process.execPath, [...RUN_CHILD, folder, '1000000', `${origin}/0`]);
    await until(async () => {
      const [part] = (await leftovers()).filter((name) => name.startsWith('part-'));
      const [own] = (await readdir(folder)).filter((name) => name.startsWith('process-'));
      return (
        part !== undefined && (await readFile(join(folder, own!, part))).some((byte) => byte > 0)
      );
    });
    child.kill('SIGKILL');
    await once(child, 'exit');
    assert.deepEqual(await contents(), []);
    assert.equal((await leftovers()).length, 1);
    held.clear();
    const cache = open();
    const whole = await cache.acquire({ path: '0' });
    assert.deepEqual(await readFile(whole.path), files.get('/0'));
    whole.release();
    assert.deepEqual(await leftovers(), []);
  });

  it('is shared by processes that throw out what the others fetched', async () => {
    const urls = Array.from({ length: 36 }, (_, i) => `${origin}/${(i * 7) % 12}`);
    const expected = urls.map((url) => sha256Of(files.get(new URL(url).pathname)!));
    const run = async () => {
      const args = [...RUN_CHILD, folder, String(350 * KIB), ...urls];
      const { stdout } = await promisify(execFile)(process.execPath, args);
      return JSON.parse(stdout.split('\n')[1]!) as unknown;
    };
    assert.deepEqual(await Promise.all([run(), run()]), [expected, expected]);
    assert.ok((await contents()).length <= 4);
    assert.deepEqual(await leftovers(), []);
  });

  const small = ['-rm', 'sh', '-c', 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"'];
  it(
    'says that the disk is full and removes what did not fit',
    { skip: withoutMounts() },
    async () => {
      const disk = join(folder, 'disk');
      await mkdir(disk);
      const script = `"$@"; status=$?
      find "$0" -name 'part-*' | wc -l; find "$0" -path '*/content/*' | wc -l; exit $status`;
      const child = [process.execPath, ...RUN_CHILD, disk, '1000000', `${origin}/0`];
      const args = [...small, disk, 'sh', '-c', script, disk, ...child];
      const { stdout } = await promisify(execFile)('unshare', args);
      assert.equal(stdout, 'ready\n["STORAGE_FULL"]\n0\n0\n');
    },
  );

  it('reads cells of Parquet tables, near and far', async () => {
    const pictures = Array.from({ length: 40 }, (_, i) => contentOf(200 + i, 20 * KIB));
    const table = parquetWriteBuffer({
      columnData: [
        { name: 'jpg', data: pictures.map((bytes) => new Uint8Array(bytes)), type: 'BYTE_ARRAY' },
        { name: 'caption', data: pictures.map((_, i) => `picture ${i}`), type: 'STRING' },
      ],
      rowGroupSize: 20,
    });
    files.set('/table.parquet', Buffer.from(table));
    await writeFile(join(folder, 'table.parquet'), Buffer.from(table));
    const far = open();
    const near = openMediaCache({
      folder: join(folder, 'near'),
      maxBytes: 10_000 * KIB,
      store: openLocalStore(folder),
    });
    caches.push(near);
    for (const cache of [far, near]) {
      for (const row of [0, 19, 20, 39]) {
        const location = { path: 'table.parquet', cell: { column: 'jpg', row } };
        assert.deepEqual(Buffer.from(await cache.readBytes(location)), pictures[row]);
        const local = await cache.acquire(location);
        assert.deepEqual(await readFile(local.path), pictures[row]);
        local.release();
      }
      const wrong = [
        { column: 'png', row: 0 },
        { column: 'jpg', row: 40 },
        { column: 'jpg', row: -1 },
        { column: 'caption', row: 0 },
        { column: 'jpg.bytes', row: 0 },
      ];
      for (const cell of wrong) {
        const location = { path: 'table.parquet', cell };
        await assert.rejects(cache.readBytes(location), { code: 'CELL_MISSING' }, cell.column);
      }
      const noTable = { path: '0', cell: { column: 'jpg', row: 0 } };
      await writeFile(join(folder, '0'), files.get('/0')!);
      await assert.rejects(cache.acquire(noTable), { code: 'PARQUET_DAMAGED' });
    }
    // The column of a row group is fetched once for its cells.
    const { length: fetched } = requests.filter((line) => line === 'GET /table.parquet');
    assert.ok(fetched <= 4, `${fetched} requests`);
  });
});

function contentOf(seed: number, sizeBytes: number): Buffer {
  return createHash('shake256', { outputLength: sizeBytes }).update(String(seed)).digest();
}

function sha256Of(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

async function until(check: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await check())) await new Promise((done) => setTimeout(done, 10));
}

/** False, or why no file system can be mounted for a test. */
function withoutMounts(): string | false {
  try {
    execFileSync('unshare', ['-rm', 'mount', '-t', 'tmpfs', 'tmpfs', tmpdir()], {
      stdio: 'ignore',
    });
    return false;
  } catch {
    return 'this system lets no user mount file systems of their own';
  }
}
