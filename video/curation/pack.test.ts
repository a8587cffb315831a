import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  appendFile,
  cp,
  mkdir,
  readdir,
  readFile,
  rm,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import sharp from 'sharp';
import { digestFile } from '../../proto/durable-file.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { parseVtt } from '../text/captions.ts';
import { openDecoderPool, type DecoderPool } from '../decode/decoder.ts';
import type { MediaFile, Sample } from '../index/sample.ts';
import {
  digestOf,
  INDEX_FILE,
  readIndex,
  writeIndex,
  type SampleIndex,
} from '../index/sample-index.ts';
import { tarMembers } from '../sources/tar-index.ts';
import { openMediaCache, type MediaCache } from '../storage/media-cache.ts';
import { openStore } from '../storage/open.ts';
import { makeFilm, WITHOUT_FFMPEG } from '../test/films.ts';
import { packShards, SHARDS_FILE, type PackOptions, type PackSummary } from './pack.ts';
import { ELSEWHERE, runData } from './test/command.ts';

const run = promisify(execFile);
const skip = WITHOUT_FFMPEG;
const folder = await temporaryFolder('pack');
let root: string;
let index: SampleIndex;
let pool: DecoderPool;
let media: MediaCache;

before(async () => {
  if (skip !== false) return;
  root = join(folder, 'data');
  await mkdir(root);
  index = await makeData();
  pool = await openDecoderPool({ numProcesses: 1 });
  media = openMediaCache({
    folder: join(folder, 'cache'),
    maxBytes: 2 ** 30,
    store: openStore(root),
  });
});
after(async () => {
  if (skip === false) await Promise.all([pool.close(), media.close()]);
});

/** Three films, the first cut into two samples; a document of two pictures and a film; words alone; one held out. */
async function makeData(): Promise<SampleIndex> {
  const files: MediaFile[] = [];
  for (const name of ['a', 'b', 'c']) {
    const path = `${name}.mp4`;
    await makeFilm(join(root, path), { seconds: 2, rate: 10, size: '96x64' });
    await appendFile(join(root, path), Buffer.from(`\0\0\0\x09free${name}`)); // no two are the same
    files.push({
      ...{ kind: 'video', path, ...(await digestFile(join(root, path))) },
      ...{ durationSeconds: 2, framesPerSecond: 10, width: 96, height: 64, codec: 'h264' },
      ...{ hasAudio: false, keyFrameSeconds: [0] },
    });
  }
  for (const [name, background] of [
    ['p.jpg', 'red'],
    ['q.png', 'lime'],
  ] as const) {
    const image = sharp({ create: { width: 40, height: 30, channels: 3, background } });
    await image.toFile(join(root, name));
    files.push({
      ...{ kind: 'image', path: name, ...(await digestFile(join(root, name))) },
      ...{ durationSeconds: 0, framesPerSecond: 0, width: 40, height: 30 },
      ...{ codec: name === 'p.jpg' ? 'jpeg' : 'png', hasAudio: false, keyFrameSeconds: [] },
    });
  }
  const span = (file: number, startSeconds = 0, endSeconds = 2) => ({
    file,
    startSeconds,
    endSeconds,
  });
  const sample = (
    id: string,
    media: Sample['media'],
    text: string,
    cues: Sample['cues'] = [],
  ): Sample => ({
    ...{ id, media, text, cues, decodeMegapixels: 0.1 },
  });
  const cue = (startSeconds: number, endSeconds: number, text: string) => ({
    startSeconds,
    endSeconds,
    text,
  });
  const train = [
    sample('a', [span(0, 0, 1)], 'first', [cue(0.25, 0.75, 'first & <best>')]),
    sample('b', [span(1)], 'the words of b'),
    sample('a@1000', [span(0, 1, 2)], 'second', [cue(1.25, 1.5, 'second')]),
    {
      ...sample('doc', [span(3, 0, 0), span(1, 0.5, 1.5), span(4, 0, 0)], 'one two'),
      parts: [{ text: 'one' }, { media: 0 }, { media: 1 }, { text: 'two' }, { media: 2 }],
    },
    sample('words', [], 'words alone'),
  ];
  const heldOut = [sample('c', [span(2)], 'held')];
  const content = { files, train, heldOut };
  return { root, digest: digestOf(content), ...content, skipped: [], numCaptionWarnings: 0 };
}

function pack(out: string, options: Partial<PackOptions> = {}): Promise<PackSummary> {
  const form = { kind: 'files' as const };
  return packShards({ index, out, shardBytes: 2 ** 20, form, media, pool, ...options });
}

/** Names and hashes of all that is not hidden; the index without its first line, which names the folder. */
async function hashes(out: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const name of (await readdir(out)).sort()) {
    if (name.startsWith('.')) continue;
    const bytes = await readFile(join(out, name));
    const from = name === INDEX_FILE ? bytes.indexOf('\n') : 0;
    found[name] = createHash('sha256').update(bytes.subarray(from)).digest('hex');
  }
  return found;
}

/** Samples with their media by content instead of by row. */
function contentOf({ files, train, heldOut }: SampleIndex): unknown {
  const named = (samples: readonly Sample[]): unknown[] =>
    samples.map(({ media: spans, ...rest }) => ({
      ...rest,
      media: spans.map(({ file, ...span }) => ({ ...span, sha256: files[file]!.sha256 })),
    }));
  return { train: named(train), heldOut: named(heldOut) };
}

test(
  'the index over the shards has the same samples, and its ranges hold their bytes',
  { skip },
  async () => {
    const out = join(folder, 'files');
    const summary = await pack(out);
    assert.deepEqual(Object.keys(await hashes(out)), [
      ...['held-out-000000.tar', INDEX_FILE, SHARDS_FILE, 'train-000000.tar'],
    ]);
    assert.deepEqual([summary.numTrain, summary.numHeldOut, summary.skipped], [5, 1, []]);
    const packed = await readIndex(join(out, INDEX_FILE));
    assert.deepEqual(contentOf(packed), contentOf(index));
    for (const { path, range, sha256 } of packed.files) {
      assert.equal((await digestFile(join(out, path), range)).sha256, sha256);
    }
    // Twice the film b: once by itself and once in the document.
    assert.equal(packed.files.length, 6);
  },
);

test('other readers of tar find the members, owned by nobody at no time', { skip }, async () => {
  const shard = join(folder, 'files', 'train-000000.tar');
  const { stdout } = await run('tar', ['--full-time', '--utc', '-tvf', shard]);
  const names = stdout
    .trim()
    .split('\n')
    .map((line) => {
      assert.match(line, /^-rw-r--r-- 0\/0 +\d+ 1970-01-01 00:00:00 /);
      return line.split(' ').at(-1)!;
    });
  assert.deepEqual(names, [
    ...['00000000.mp4', '00000000.json', '00000000.vtt'],
    ...['00000001.mp4', '00000001.json', '00000001.txt'],
    ...['00000002.0.jpg', '00000002.1.mp4', '00000002.2.png', '00000002.json', '00000002.txt'],
    ...['00000003.json', '00000003.txt'],
  ]);
  const unpacked = join(folder, 'unpacked');
  await mkdir(unpacked);
  await run('tar', ['-xf', shard, '-C', unpacked]);
  const hashOf = async (file: string): Promise<string> => (await digestFile(file)).sha256;
  assert.equal(await hashOf(join(unpacked, '00000000.mp4')), await hashOf(join(root, 'a.mp4')));
  assert.equal(await readFile(join(unpacked, '00000001.txt'), 'utf8'), 'the words of b');
  const vtt = parseVtt(await readFile(join(unpacked, '00000000.vtt'), 'utf8'));
  assert.deepEqual(vtt, { cues: [...index.train[0]!.cues, ...index.train[2]!.cues], warnings: [] });
  const told = JSON.parse(await readFile(join(unpacked, '00000000.json'), 'utf8')) as {
    samples: unknown[];
  };
  assert.deepEqual(told.samples[1], {
    ...{ id: 'a@1000', text: 'second', cues: index.train[2]!.cues },
    media: [{ member: 'mp4', startSeconds: 1, endSeconds: 2 }],
  });

  // The reader of the product finds the same, at the same places.
  const store = openStore(join(folder, 'files'));
  const { size: sizeBytes } = await import('node:fs/promises').then(({ stat }) => stat(shard));
  const members: string[] = [];
  for await (const { name, type } of tarMembers(store, { path: 'train-000000.tar', sizeBytes })) {
    assert.equal(type, 'file');
    members.push(name);
  }
  assert.deepEqual(members, names);
});

test(
  'a run that was cut short goes on, and gives the bytes of one that was not',
  { skip },
  async () => {
    const shardBytes = 2 ** 14; // one film each
    const whole = join(folder, 'whole');
    const { shards } = await pack(whole, { shardBytes });
    assert.ok(shards.length >= 4, `${shards.length} shards`);
    const out = join(folder, 'resumed');
    const stop = new AbortController();
    const onProgress: PackOptions['onProgress'] = ({ numDone }) => {
      if (numDone === 2) stop.abort(new Error('stopped'));
    };
    await assert.rejects(pack(out, { shardBytes, signal: stop.signal, onProgress }), /stopped/);
    assert.ok((await readdir(out)).includes('train-000000.tar'));
    // As kill -9 leaves it: half a shard, half a line.
    await writeFile(join(out, '.part-999999999-0123456789ab.tar'), 'half');
    await appendFile(join(out, '.pack.jsonl'), '{"name":"train-0000');
    const resumed = await pack(out, { shardBytes });
    assert.equal(resumed.numKept, 1);
    assert.deepEqual(await hashes(out), await hashes(whole));
    assert.deepEqual(
      (await readdir(out)).filter((name) => name.startsWith('.part-')),
      [],
    );

    // A shard that is no longer whole, and those behind it, are written anew.
    await truncate(join(out, 'train-000001.tar'), 1000);
    await pack(out, { shardBytes });
    assert.deepEqual(await hashes(out), await hashes(whole));
    await assert.rejects(pack(out, { shardBytes: 2 ** 15 }), { code: 'PACK_OF_OTHER_DATA' });
  },
);

test(
  'files that are gone or changed cost their samples and are told',
  { skip: skip || ELSEWHERE },
  async () => {
    const damaged = join(folder, 'damaged');
    await cp(root, damaged, { recursive: true });
    await rm(join(damaged, 'c.mp4'));
    await appendFile(join(damaged, 'a.mp4'), 'more');
    const cache = openMediaCache({
      folder: join(folder, 'cache'),
      maxBytes: 2 ** 30,
      store: openStore(damaged),
    });
    const out = join(folder, 'left');
    const { numTrain, numHeldOut, skipped } = await pack(out, { media: cache });
    await cache.close();
    assert.deepEqual([numTrain, numHeldOut], [3, 0]);
    assert.deepEqual(
      skipped.map(({ path }) => path),
      ['a.mp4', 'c.mp4'],
    );
    assert.equal(skipped[0]!.code, 'MEDIA_CHANGED');
    const ids = (await readIndex(join(out, INDEX_FILE))).train.map(({ id }) => id);
    assert.deepEqual(ids, ['b', 'doc', 'words']);
  },
);

test('credentials that do not hold stop the command, and cost no sample', { skip }, async () => {
  const names = ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN', 'AWS_PROFILE'];
  for (const name of names) Reflect.deleteProperty(process.env, name);
  Object.assign(process.env, {
    ...{ AWS_REGION: 'us-east-1', AWS_EC2_METADATA_DISABLED: 'true' },
    ...{ AWS_CONFIG_FILE: '/dev/null', AWS_SHARED_CREDENTIALS_FILE: '/dev/null' },
  });
  const files = index.files.map((file) =>
    file.path === 'b.mp4' ? { ...file, path: 's3://films/b.mp4' } : file,
  );
  const content = { files, train: index.train, heldOut: index.heldOut };
  const partly = { ...index, ...content, digest: digestOf(content) };
  const out = join(folder, 'denied');
  await assert.rejects(pack(out, { index: partly }), { code: 'S3_NO_CREDENTIALS' });
  assert.deepEqual(await readdir(out), ['.pack.jsonl']);
});

test(
  'frames are those that a decoder gives at the centres of the span, as JPEG',
  { skip },
  async () => {
    const out = join(folder, 'frames');
    await pack(out, { form: { kind: 'frames', numFrames: 2, size: 32 } });
    const { files, train } = await readIndex(join(out, INDEX_FILE));
    assert.deepEqual(
      train.map((sample) => sample.media.length),
      [2, 2, 2, 4, 0],
    );
    assert.deepEqual(train[3]!.parts, [
      ...[{ text: 'one' }, { media: 0 }, { media: 1 }, { media: 2 }, { text: 'two' }, { media: 3 }],
    ]);
    const { path, range } = files[train[2]!.media[1]!.file]!; // at 1.75 s
    const bytes = (await readFile(join(out, path))).subarray(
      range!.offset,
      range!.offset + range!.sizeBytes,
    );
    const pixels = await sharp(bytes).raw().toBuffer();
    // ffmpeg cuts the middle 64x64 out of each frame and scales it; of these the one shown at 1.75 s is the nearest.
    const filters = ['-vf', 'crop=64:64,scale=32:32', '-f', 'rawvideo', '-pix_fmt', 'rgb24'];
    const args = ['-v', 'error', '-i', join(root, 'a.mp4'), ...filters, '-'];
    const { stdout } = await run('ffmpeg', args, { encoding: 'buffer' });
    assert.equal(stdout.length, 20 * pixels.length);
    const errors = Array.from({ length: 20 }, (_, n) =>
      pixels.reduce((sum, v, i) => sum + Math.abs(v - stdout[n * pixels.length + i]!), 0),
    );
    assert.equal(errors.indexOf(Math.min(...errors)), 17);
  },
);

test(
  'spans that are cut out hold their frames and their words at the new times',
  { skip },
  async () => {
    const out = join(folder, 'cut');
    await pack(out, { form: { kind: 'cut' } });
    const { files, train } = await readIndex(join(out, INDEX_FILE));
    const second = train[2]!;
    assert.deepEqual(second.cues, [{ startSeconds: 0.25, endSeconds: 0.5, text: 'second' }]);
    const { path, range, durationSeconds } = files[second.media[0]!.file]!;
    assert.ok(Math.abs(durationSeconds - 1) < 1e-3, `${durationSeconds} s`);
    const size = { width: 96, height: 64 };
    const cut = await pool.decode({
      path: join(out, path),
      range,
      timesSeconds: [0.3, 0.9],
      ...size,
    });
    const original = await pool.decode({
      path: join(root, 'a.mp4'),
      timesSeconds: [1.3, 1.9],
      ...size,
    });
    const error =
      cut.frames.reduce((sum, value, i) => sum + Math.abs(value - original.frames[i]!), 0) /
      cut.frames.length;
    assert.ok(error < 6, `mean error of ${error} in 255`);
    assert.deepEqual(
      (await readdir(out)).filter((name) => name.startsWith('.part-')),
      [],
    );
  },
);

test(
  'a full disk stops the command with one clear error and no half shard',
  { skip: skip || ELSEWHERE },
  async () => {
    const file = join(folder, 'index.jsonl');
    await writeIndex(index, file);
    const out = join(folder, 'full');
    const { code, output } = await runData(['pack', file, out], {
      wrapper: ['prlimit', '--fsize=20000'],
    });
    assert.equal(code, 1);
    assert.match(output, /^DISK_FULL: nothing more can be written below .*; make room/m);
    assert.deepEqual(await readdir(out), ['.pack.jsonl']);
    const mended = await runData(['pack', file, out]);
    assert.equal(mended.code, 0, mended.output);
    assert.match(mended.output, /^5 samples to train on and 1 held out in 2 shards/m);
    const packed = await hashes(out);
    assert.equal(
      packed['train-000000.tar'],
      (await hashes(join(folder, 'files')))['train-000000.tar'],
    );
  },
);
