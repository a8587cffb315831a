import assert from 'node:assert/strict';
import { once } from 'node:events';
import { access, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { basename, join } from 'node:path';
import { after, before, test } from 'node:test';
import { digestFile } from '../../proto/durable-file.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openDecoderPool, type DecoderPool } from '../decode/decoder.ts';
import type { MediaFile, Sample } from '../index/sample.ts';
import { digestOf, readIndex, writeIndex, type SampleIndex } from '../index/sample-index.ts';
import { openMediaCache, type MediaCache } from '../storage/media-cache.ts';
import { openStore } from '../storage/open.ts';
import { ffmpeg, WITHOUT_FFMPEG } from '../test/films.ts';
import { filterIndex, type Dedup, type FilterResult } from './filter.ts';
import { parseRule } from './filter-rules.ts';
import { ELSEWHERE, runData } from './test/command.ts';

const skip = WITHOUT_FFMPEG;
const folder = await temporaryFolder('filter');
let index: SampleIndex;
let pool: DecoderPool;
let media: MediaCache;

before(async () => {
  if (skip !== false) return;
  index = await makeData();
  pool = await openDecoderPool({ numProcesses: 1 });
  media = openMediaCache({
    folder: join(folder, 'cache'),
    maxBytes: 2 ** 30,
    store: openStore(folder),
  });
});
after(async () => {
  if (skip === false) await Promise.all([pool.close(), media.close()]);
});

/** Two films, one of them again in another codec, size and rate; two that are black; bytes that are no film. */
async function makeData(): Promise<SampleIndex> {
  const make = (name: string, source: string, ...args: string[]): Promise<void> =>
    ffmpeg('-f', 'lavfi', '-i', source, '-pix_fmt', 'yuv420p', ...args, join(folder, name));
  await make('a.mp4', 'mandelbrot=size=160x120:rate=10:end_scale=0.1', '-t', '2');
  await make('b.mp4', 'testsrc=size=160x120:rate=10', '-t', '2');
  await ffmpeg(
    '-i',
    join(folder, 'a.mp4'),
    '-vf',
    'scale=96:72',
    '-r',
    '5',
    '-c:v',
    'mpeg4',
    '-b:v',
    '200k',
    join(folder, 'c.avi'),
  );
  await make('d.mp4', 'color=black:size=160x120:rate=10', '-t', '2');
  await make('e.mp4', 'color=0x050505:size=160x120:rate=10', '-t', '2');
  await ffmpeg('-f', 'lavfi', '-i', 'anullsrc', '-t', '1', join(folder, 'f.mp4'));
  const names = ['a.mp4', 'b.mp4', 'c.avi', 'd.mp4', 'e.mp4', 'f.mp4'];
  const files = await Promise.all(
    names.map(async (path): Promise<MediaFile> => ({
      ...{ kind: 'video', path, ...(await digestFile(join(folder, path))) },
      ...{ durationSeconds: 2, framesPerSecond: 10, width: 160, height: 120 },
      ...{ codec: 'h264', hasAudio: false, keyFrameSeconds: [0] },
    })),
  );
  const sample = (id: string, file: number, text: string): Sample => ({
    ...{
      id,
      media: [{ file, startSeconds: 0, endSeconds: 2 }],
      text,
      cues: [],
      decodeMegapixels: 1,
    },
  });
  const train = [
    sample('2', 0, 'a slow flight into a coloured pattern'),
    sample('1', 0, 'a slow flight into a coloured pattern'),
    sample('3', 2, 'A slow  flight into a coloured pattern.'),
    sample('4', 1, 'a slow flight into a coloured pattern'),
    sample('5', 0, 'other words'),
    sample('6', 3, 'dark'),
    sample('7', 4, 'dark too'),
    sample('8', 5, 'nothing to see'),
  ];
  const heldOut = [sample('9', 0, 'other words')];
  const content = { files, train, heldOut };
  return {
    root: folder,
    digest: digestOf(content),
    ...content,
    skipped: [],
    numCaptionWarnings: 0,
  };
}

function filter(rules: string[], dedup: Dedup[]): Promise<FilterResult> {
  return filterIndex({ index, rules: rules.map(parseRule), dedup, media, pool });
}

const reasons = ({ dropped }: FilterResult): string[] =>
  dropped.map(({ id, reason, of }) => [id, reason, ...(of === undefined ? [] : [of])].join(' '));

test('what breaks a rule is left out with the rule, and unused files go', { skip }, async () => {
  const result = await filter(['words >= 2', 'characters < 38'], []);
  assert.deepEqual(reasons(result), ['3 characters < 38', '6 words >= 2']);
  assert.deepEqual(
    result.index.files.map(({ path }) => path),
    ['a.mp4', 'b.mp4', 'e.mp4', 'f.mp4'],
  );
  const { files, train } = result.index;
  assert.deepEqual(
    train.map(({ id, media: spans }) => [id, files[spans[0]!.file]!.path]),
    [
      ['2', 'a.mp4'],
      ['1', 'a.mp4'],
      ['4', 'b.mp4'],
      ['5', 'a.mp4'],
      ['7', 'e.mp4'],
      ['8', 'f.mp4'],
    ],
  );
  assert.equal(result.index.digest, digestOf(result.index));
  assert.deepEqual((await filter([], [])).index.digest, index.digest);
});

test(
  'of equal samples the first by id is kept, of one held out none to train on',
  { skip },
  async () => {
    assert.deepEqual(reasons(await filter([], ['exact'])), ['2 exact 1', '5 exact 9']);
  },
);

test('near words are found whatever they are of', { skip }, async () => {
  const result = await filter([], ['near-text']);
  assert.deepEqual(reasons(result), [
    '2 near-text 1',
    '3 near-text 1',
    '4 near-text 1',
    '5 near-text 9',
  ]);
});

test(
  'a film is found again in another codec, size and rate; what is black is not',
  { skip },
  async () => {
    const byLook = await filter([], ['near-media']);
    assert.deepEqual(reasons(byLook), [
      ...[
        '2 near-media 9',
        '1 near-media 9',
        '3 near-media 9',
        '5 near-media 9',
        '8 VIDEO_NO_STREAM',
      ],
    ]);
    // Both the look and the words must be near.
    assert.deepEqual(reasons(await filter([], ['near'])), [
      '2 near 1',
      '3 near 1',
      '5 near 9',
      '8 VIDEO_NO_STREAM',
    ]);
  },
);

test(
  'what is no fault of a file stops the filter, which leaves no sample out for it',
  { skip: skip || ELSEWHERE },
  async () => {
    const server = createServer((request, response) => {
      void readFile(join(folder, basename(request.url!))).then((bytes) => {
        response.writeHead(200, { 'content-length': bytes.length });
        response.end(request.method === 'HEAD' ? undefined : bytes);
      });
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    try {
      const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const far = index.files.map((file) => ({ ...file, path: `${origin}/${file.path}` }));
      const content = { files: far, train: index.train, heldOut: index.heldOut };
      const file = join(folder, 'far.jsonl');
      await writeIndex({ ...index, ...content, digest: digestOf(content) }, file);
      const out = join(folder, 'far-good.jsonl');
      const args = ['filter', file, '--out', out, '--dedup', 'near-media', '--allow-private-hosts'];
      const env = { ...process.env, XDG_CACHE_HOME: join(folder, 'user-cache') };
      // The decoder's programs lie in the same cache: they are to be there before nothing more fits.
      const near = join(folder, 'near.jsonl');
      await writeIndex(index, near);
      const nearArgs = ['filter', near, '--out', out, '--dedup', 'near-media'];
      const warmed = await runData(nearArgs, { env });
      assert.equal(warmed.code, 0, warmed.output);
      await rm(out);
      // No file of its cache may have more bytes, as on a disk that is full.
      const wrapper = ['prlimit', '--fsize=10000'];
      const full = await runData(args, { wrapper, env });
      assert.match(full.output, /^STORAGE_FULL: there is no room left for the media cache/m);
      assert.equal(full.code, 1);
      await assert.rejects(access(out), /ENOENT/);
      const mended = await runData(args, { env });
      assert.equal(mended.code, 0, mended.output);
      assert.match(mended.output, /^ {2}1 left out by VIDEO_NO_STREAM$/m);
    } finally {
      server.closeAllConnections();
      server.close();
    }
  },
);

test('the command writes the smaller index and says what it left out', { skip }, async () => {
  const [file, out] = [join(folder, 'all.jsonl'), join(folder, 'good.jsonl')];
  await writeIndex(index, file);
  const where = ['--where', 'words in 2..9', '--where', 'duration >= 2'];
  const { code, output } = await runData([
    'filter',
    file,
    '--out',
    out,
    ...where,
    '--dedup',
    'exact',
  ]);
  assert.equal(code, 0, output);
  assert.match(
    output,
    /^5 of 8 samples to train on and 1 of 1 held out are kept\n {2}2 left out by exact\n/m,
  );
  assert.equal((await readIndex(out)).train.length, 5);
  const lines = (await readFile(`${out}.report.jsonl`, 'utf8')).trimEnd().split('\n');
  const [head, ...dropped] = lines.map((line) => JSON.parse(line) as unknown);
  const { digest } = await readIndex(out);
  assert.deepEqual(head, {
    ...{ format: 'videoloom-filter/1', of: index.digest, digest, numSamples: 9, numKept: 6 },
    dropped: { exact: 2, 'words in 2..9': 1 },
  });
  assert.deepEqual(dropped, [
    { id: '2', split: 'train', reason: 'exact', of: '1' },
    { id: '5', split: 'train', reason: 'exact', of: '9' },
    { id: '6', split: 'train', reason: 'words in 2..9' },
  ]);
  const wrong = await runData(['filter', file, '--out', out, '--where', 'wordz > 1']);
  assert.equal(wrong.code, 2);
  assert.match(wrong.output, /^USAGE: `wordz > 1` is no rule/m);
  const none = join(folder, 'none.jsonl');
  const empty = await runData(['filter', file, '--out', none, '--where', 'words > 99']);
  assert.equal(empty.code, 1);
  assert.match(empty.output, /^NOTHING_LEFT: no sample is left, so .*none\.jsonl is not written/m);
  await assert.rejects(access(none), /ENOENT/);
});
