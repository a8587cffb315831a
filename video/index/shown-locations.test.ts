import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { inspect } from 'node:util';
import sharp from 'sharp';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { packShards } from '../curation/pack.ts';
import { openDataAccess, type DataAccess } from '../loading/data-access.ts';
import { wordsOf } from '../look/contact-sheet.ts';
import { openLocalStore } from '../storage/local.ts';
import { makeFilm, WITHOUT_FFMPEG } from '../test/films.ts';
import { summaryOf } from './index-summary.ts';
import { makeIndex } from './make-index.ts';
import { readIndex, type SampleIndex } from './sample-index.ts';

const SECRET = 'planted-secret';

describe('media by URLs with secrets in them', { skip: WITHOUT_FFMPEG }, () => {
  let scratch: string;
  let server: Server;
  let origin: string;
  let data: DataAccess;
  let index: SampleIndex;
  /** By path; what is not there is answered with 404. */
  const served = new Map<string, Buffer>();
  /** The user and the query that came with requests. */
  const proofs = new Set<string>();

  const urlOf = (name: string): string =>
    `${origin.replace('//', `//user:${SECRET}@`)}/${name}?sig=${SECRET}`;
  /** A folder with a table of media and words. */
  const tableOf = async (name: string, rows: readonly string[]): Promise<string> => {
    const root = join(scratch, name);
    await mkdir(root);
    await writeFile(join(root, 'table.csv'), ['url,caption,start,end', ...rows, ''].join('\n'));
    return root;
  };
  const assertHidden = (what: unknown): void => {
    const shown = inspect(what, { depth: 9, maxArrayLength: null, maxStringLength: null });
    assert.ok(!shown.includes(SECRET), shown);
  };
  const options = { clipSeconds: 10, heldOutFraction: 0 };

  before(async () => {
    scratch = await temporaryFolder('shown-locations');
    const film = await readFile(await makeFilm(join(scratch, 'film.mp4'), { seconds: 1 }));
    // A box that is skipped tells them apart.
    for (const n of [0, 1, 2])
      served.set(`/${n}.mp4`, Buffer.concat([film, Buffer.from(`\0\0\0\x09free${n}`)]));
    const red = sharp({ create: { width: 8, height: 8, channels: 3, background: 'red' } });
    served.set('/red.png', await red.png().toBuffer());
    served.set('/letter.mp4', Buffer.from('no film'));
    server = createServer((request, response) => {
      const { pathname, search } = new URL(request.url!, 'http://localhost');
      proofs.add(`${request.headers.authorization ?? ''} ${search}`);
      const bytes = served.get(pathname);
      response.writeHead(bytes === undefined ? 404 : 200, { 'content-length': bytes?.length ?? 0 });
      response.end(request.method === 'HEAD' ? undefined : bytes);
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const names = ['0.mp4', '1.mp4', 'red.png', 'letter.mp4', 'none.mp4'];
    const root = await tableOf('table', [
      ...names.map((name) => `${urlOf(name)},words of ${name},,`),
      `${urlOf('2.mp4')},too late,90,95`,
      `ftp://user:${SECRET}@127.0.0.1/x.mp4?sig=${SECRET},of no kind that is fetched,,`,
    ]);
    const access = { decoders: 1, allowPrivateHosts: true };
    data = await openDataAccess({ root, cacheDir: join(scratch, 'cache'), ...access });
    index = await makeIndex({ ...data, ...options });
  });
  after(async () => {
    await data.close();
    server.closeAllConnections();
    server.close();
  });

  test('are read with them, and stay in the index as they are', () => {
    const authorization = `Basic ${Buffer.from(`user:${SECRET}`).toString('base64')}`;
    assert.deepEqual([...proofs], [`${authorization} ?sig=${SECRET}`]);
    assert.deepEqual(
      index.files.map(({ path }) => path),
      ['0.mp4', '1.mp4', 'red.png', '2.mp4'].map(urlOf),
    );
  });

  test('are told without them where they give no sample', async () => {
    assert.deepEqual(
      index.skipped.map(({ path, code }) => `${path} ${code}`),
      [
        `${origin}/letter.mp4 VIDEO_UNREADABLE`,
        `${origin}/none.mp4 NOT_FOUND`,
        'table.csv:8 PATH_OUTSIDE',
        'table/7 SPAN_OUTSIDE',
      ],
    );
    assertHidden(index.skipped);
    const store = openLocalStore(await tableOf('useless', [`${urlOf('none.mp4')},nothing,,`]));
    await assert.rejects(makeIndex({ ...data, ...options, store }), (error: unknown) => {
      assert.match(String(error), new RegExp(`read as webvid\\) can be used; ${origin}/none.mp4`));
      assertHidden(error);
      return true;
    });
  });

  test('are shown without them by a summary, that of an index made before included', () => {
    const path = urlOf('none.mp4');
    const skipped = [{ path, code: 'NOT_FOUND', message: 'it is not there' }];
    const lines = [...summaryOf({ ...index, skipped })].join('\n');
    assert.ok(lines.includes(`${origin}/red.png  words of red.png`), lines);
    assert.ok(lines.includes(`skipped ${origin}/none.mp4: NOT_FOUND`), lines);
    assertHidden(lines);
  });

  test('are shown without them on a contact sheet', () => {
    const entry = { split: 'train', pictures: [], failure: undefined } as const;
    const { title } = wordsOf({ ...entry, sample: index.train[0]! }, index);
    assert.equal(title, `${origin}/0.mp4 · 0.00-1.00 s · train`);
  });

  test('are told without them where they cannot be packed any more', async () => {
    served.set('/0.mp4', served.get('/2.mp4')!);
    served.delete('/1.mp4');
    const root = index.root;
    const access = { decoders: 1, allowPrivateHosts: true };
    const later = await openDataAccess({ root, cacheDir: join(scratch, 'later'), ...access });
    try {
      const out = join(scratch, 'shards');
      const form = { kind: 'files' } as const;
      const { skipped } = await packShards({ index, out, shardBytes: 2 ** 20, form, ...later });
      assert.deepEqual(
        skipped.map(({ path, code }) => `${path} ${code}`),
        [`${origin}/0.mp4 STORAGE_CHANGED`, `${origin}/1.mp4 NOT_FOUND`],
      );
      assertHidden(await readIndex(join(out, 'samples.jsonl')));
      assertHidden(await readFile(join(out, 'shards.json'), 'utf8'));
    } finally {
      await later.close();
    }
  });
});
