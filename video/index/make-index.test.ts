import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { before, describe, test } from 'node:test';
import sharp from 'sharp';
import { VideoloomError } from '../../proto/errors.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openShardWriter } from '../curation/shard-writer.ts';
import { openDataAccess } from '../loading/data-access.ts';
import { makeIndex, type MakeIndexOptions } from './make-index.ts';
import type { Sample } from './sample.ts';
import { readIndex, subsetOf, writeIndex, type SampleIndex } from './sample-index.ts';
import { makeFilm, WITHOUT_FFMPEG } from '../test/films.ts';

describe('indexing a folder', { skip: WITHOUT_FFMPEG }, () => {
  let scratch: string;
  let shortFilm: Buffer;
  let longFilm: Buffer;
  before(async () => {
    scratch = await temporaryFolder('make-index');
    const make = async (name: string, seconds: number): Promise<Buffer> =>
      readFile(await makeFilm(join(scratch, name), { seconds, size: '64x48', rate: 10 }));
    [shortFilm, longFilm] = [await make('short.mp4', 4), await make('long.mp4', 25)];
  });

  /** A folder with these files. */
  async function folderOf(
    name: string,
    files: Readonly<Record<string, Buffer | string>>,
  ): Promise<string> {
    const root = join(scratch, name);
    for (const [path, content] of Object.entries(files)) {
      await mkdir(dirname(join(root, path)), { recursive: true });
      await writeFile(join(root, path), content);
    }
    return root;
  }
  /** The film with other bytes: a box that is skipped comes after it. */
  const otherFilm = (film: Buffer, number: number): Buffer =>
    Buffer.concat([film, Buffer.from([0, 0, 0, 9]), Buffer.from('free'), Buffer.from([number])]);
  type Wanted = { root: string } & Pick<MakeIndexOptions, 'clipSeconds'> &
    Partial<MakeIndexOptions>;
  async function indexFolder({ root, ...wanted }: Wanted): Promise<SampleIndex> {
    const data = await openDataAccess({ root, decoders: 1, cacheDir: scratch });
    try {
      return await makeIndex({ ...data, heldOutFraction: 0.1, ...wanted });
    } finally {
      await data.close();
    }
  }
  const pathOf = ({ files }: SampleIndex, { media }: Sample): string => files[media[0]!.file]!.path;
  const spans = (index: SampleIndex, path: string) =>
    index.train
      .filter((sample) => pathOf(index, sample) === path)
      .map(({ media: [span], text }) => [span!.startSeconds, span!.endSeconds, text]);

  test('captions and subtitles beside the videos, at any depth, in the order of the paths', async () => {
    const root = await folderOf('mixed', {
      'b/deep/film.mp4': shortFilm,
      'b/deep/film.srt':
        '1\n00:00:01,000 --> 00:00:02,000\nhello\n\n2\n00:00:02,000 --> 00:00:03,000\nthere\n',
      'a.MP4': shortFilm,
      'a.txt': 'A caption.\n',
      'silent.mp4': shortFilm,
      'empty-caption.mp4': shortFilm,
      'empty-caption.txt': '',
      'notes.txt': 'no video of this name',
      '.hidden/x.mp4': shortFilm,
    });
    const index = await indexFolder({ root, clipSeconds: 10, heldOutFraction: 0 });
    assert.deepEqual(
      index.train.map((sample) => [sample.id, pathOf(index, sample), sample.text]),
      [
        ['a', 'a.MP4', 'A caption.'],
        ['b/deep/film', 'b/deep/film.mp4', 'hello there'],
        ['empty-caption', 'empty-caption.mp4', ''],
        ['silent', 'silent.mp4', ''],
      ],
    );
    assert.deepEqual([index.heldOut, index.skipped], [[], []]);
    assert.ok(Math.abs(index.train[0]!.media[0]!.endSeconds - 4) < 0.01);
    assert.equal(index.train[1]!.cues.length, 2);
  });

  test('long videos are cut where a cue ends, and no cue is lost or told twice', async () => {
    const cue = (from: number, to: number, text: string): string =>
      `00:${from}.000 --> 00:${to}.000\n${text}\n\n`;
    const pad = (n: number): string => String(n).padStart(2, '0');
    const cues = [
      [1, 4],
      [5, 8],
      [9, 12],
      [13, 16],
      [20, 24],
    ] as const;
    const root = await folderOf('long', {
      'talk.mp4': longFilm,
      'talk.vtt': `WEBVTT\n\n${cues.map(([a, b], i) => cue(pad(a) as never, pad(b) as never, `cue${i}`)).join('')}`,
      'plain.mp4': longFilm,
      'plain.txt': 'a caption',
    });
    const index = await indexFolder({ root, clipSeconds: 10, heldOutFraction: 0 });
    assert.deepEqual(spans(index, 'plain.mp4'), [
      [0, 10, 'a caption'],
      [10, 20, 'a caption'],
      [20, 25, 'a caption'],
    ]);
    assert.deepEqual(spans(index, 'talk.mp4'), [
      [0, 8, 'cue0 cue1'],
      [8, 16, 'cue2 cue3'],
      [16, 25, 'cue4'],
    ]);
    assert.deepEqual(
      index.train.map(({ id }) => id),
      [...['plain@0', 'plain@10000', 'plain@20000', 'talk@0', 'talk@8000', 'talk@16000']],
    );
  });

  test('links that lead out of the folder, as in a cache of Hugging Face, are counted and told', async () => {
    const root = await folderOf('hub/snapshots/main', { 'here.mp4': shortFilm });
    await folderOf('hub/blobs', { b0: shortFilm, b1: otherFilm(shortFilm, 1) });
    for (const n of [0, 1]) await symlink(`../../blobs/b${n}`, join(root, `film-${n}.mp4`));
    const index = await indexFolder({ root, clipSeconds: 10 });
    assert.deepEqual(
      index.train.map(({ id }) => id),
      ['here'],
    );
    const told =
      /^it is a link that leads out of the folder \(2 in all\): .*give the copy \(cp -RL;/;
    const [{ message, ...where } = { message: '' }, ...more] = index.skipped;
    assert.deepEqual([where, more], [{ path: 'film-0.mp4', code: 'PATH_OUTSIDE' }, []]);
    assert.match(message, told);

    await rm(join(root, 'here.mp4'));
    const empty = new RegExp(`^none of the 0 files .*; film-0.mp4: ${told.source.slice(1)}`);
    await assert.rejects(indexFolder({ root, clipSeconds: 10 }), {
      ...{ code: 'DATA_EMPTY', message: empty },
    });
    await assert.rejects(indexFolder({ root, clipSeconds: 10, source: 'folder' }), {
      ...{ code: 'DATA_EMPTY', message: /there are no videos .*; film-0.mp4: it is a link/ },
    });
    // What is advised.
    const copy = join(scratch, 'hub-copy');
    execFileSync('cp', ['-RL', root, copy]);
    const copied = await indexFolder({ root: copy, clipSeconds: 10, heldOutFraction: 0 });
    assert.deepEqual(
      copied.train.map(({ id }) => id),
      ['film-0', 'film-1'],
    );
    assert.deepEqual(copied.skipped, []);
  });

  test('the folders train and held-out are the splits', async () => {
    const root = await folderOf('split', {
      'train/a.mp4': shortFilm,
      'held-out/b.mp4': longFilm,
      'train/c.mp4': shortFilm,
    });
    const index = await indexFolder({ root, clipSeconds: 30 });
    assert.deepEqual(
      index.train.map(({ id }) => id),
      ['train/a', 'train/c'],
    );
    assert.deepEqual(
      index.heldOut.map(({ id }) => id),
      ['held-out/b'],
    );
  });

  test('without such folders a share of the files is held out, the same ones each time', async () => {
    const names = Array.from({ length: 12 }, (_, i) => `${i}.mp4`);
    const root = await folderOf(
      'share',
      Object.fromEntries(names.map((name, i) => [name, otherFilm(shortFilm, i)])),
    );
    const index = await indexFolder({ root, clipSeconds: 2, heldOutFraction: 0.25 });
    const heldOut = new Set(index.heldOut.map((sample) => pathOf(index, sample)));
    // Those whose names have the smallest hashes.
    assert.deepEqual([...heldOut].sort(), ['7.mp4', '8.mp4', '9.mp4']);
    assert.ok(
      index.train.every((sample) => !heldOut.has(pathOf(index, sample))),
      'clips of one film are in one split',
    );
    assert.equal(index.train.length + index.heldOut.length, 24);
    assert.deepEqual(await indexFolder({ root, clipSeconds: 2, heldOutFraction: 0.25 }), index);
    const two = await folderOf('two', { 'x.mp4': shortFilm, 'y.mp4': longFilm });
    assert.equal((await indexFolder({ root: two, clipSeconds: 10 })).heldOut.length, 1);
  });

  /** By number: a picture of its own. */
  const pictureOf = (number: number): Promise<Buffer> =>
    sharp({
      create: { width: 8, height: 8, channels: 3, background: { r: number * 8, g: 90, b: 30 } },
    })
      .png()
      .toBuffer();
  const digestsOf = ({ files }: SampleIndex, samples: readonly Sample[]): string[] =>
    samples.flatMap(({ media }) => media.map(({ file }) => files[file]!.sha256));
  const assertApart = (index: SampleIndex): void => {
    const seen = new Set(digestsOf(index, index.train));
    assert.ok(digestsOf(index, index.heldOut).every((digest) => !seen.has(digest)));
    assert.ok(index.train.length > 0 && index.heldOut.length > 0);
  };

  test('a picture that a shard holds once a caption is in one split', async () => {
    const root = await folderOf('captions', {});
    await mkdir(root, { recursive: true });
    const writer = await openShardWriter(join(root, 'all.tar'));
    const pictures = await Promise.all(Array.from({ length: 8 }, (_, i) => pictureOf(i)));
    for (const [i, picture] of pictures.entries()) {
      for (let caption = 0; caption < 5; caption++) {
        const name = `${i}-${caption}`;
        await writer.add(`${name}.png`, picture);
        await writer.add(`${name}.txt`, Buffer.from(`caption ${caption}`));
      }
    }
    await writer.finish();
    const index = await indexFolder({ root, clipSeconds: 10, heldOutFraction: 0.25 });
    assertApart(index);
    assert.deepEqual([index.train.length, index.heldOut.length], [30, 10]);
  });

  test('documents that share a picture, wherever it stands in them, are in one split', async () => {
    const pictures = await Promise.all(Array.from({ length: 24 }, (_, i) => pictureOf(i)));
    const named = pictures.map((picture, i) => [`pictures/${i}.png`, picture] as const);
    // Document i shows pictures 2i and 2i + 1, and every second one the first picture of the next.
    const documents = Array.from({ length: 12 }, (_, i) => {
      const shown = [2 * i, 2 * i + 1, ...(i % 2 === 0 ? [2 * i + 2] : [])];
      const images = [...shown.map((number) => `${number}.png`), null];
      return JSON.stringify({ images, texts: [...shown.map(() => null), `text ${i}`] });
    });
    const root = await folderOf('documents', {
      ...Object.fromEntries(named),
      'all.jsonl': documents.join('\n'),
    });
    for (const heldOutFraction of [0.2, 0.35, 0.5]) {
      const index = await indexFolder({ root, clipSeconds: 10, heldOutFraction });
      assertApart(index);
      assert.equal(index.heldOut.length, 2 * Math.round(6 * heldOutFraction));
    }
  });

  test('what most samples show, a logo say, is not held out with them', async () => {
    const files: Record<string, Buffer | string> = {};
    for (let i = 0; i < 12; i++) files[`${i}.png`] = await pictureOf(i);
    const line = (images: readonly string[]): string =>
      JSON.stringify({ images: [...images, null], texts: [...images.map(() => null), 'words'] });
    const withLogo = Array.from({ length: 8 }, (_, i) => line(['0.png', `${i}.png`]));
    const others = [8, 9].map((i) => line([`${i}.png`]));
    const root = await folderOf('logo', {
      ...files,
      'all.jsonl': [...withLogo, ...others].join('\n'),
    });
    const index = await indexFolder({ root, clipSeconds: 10, heldOutFraction: 0.6 });
    assertApart(index);
    assert.deepEqual([index.train.length, index.heldOut.length], [8, 2]);
  });

  test('a copy of a film that is told to be held out is not trained on', async () => {
    const root = await folderOf('copies', {
      'train/a.mp4': otherFilm(shortFilm, 1),
      'train/copy.mp4': otherFilm(shortFilm, 2),
      'held-out/b.mp4': otherFilm(shortFilm, 2),
    });
    const index = await indexFolder({ root, clipSeconds: 10 });
    assert.deepEqual(
      [index.train, index.heldOut].map((samples) => samples.map(({ id }) => id)),
      [['train/a'], ['held-out/b', 'train/copy']],
    );
    const all = await folderOf('all-copies', {
      'train/a.mp4': shortFilm,
      'val/b.mp4': shortFilm,
    });
    await assert.rejects(indexFolder({ root: all, clipSeconds: 10 }), {
      code: 'SPLIT_SHARED',
      message: /such as train\/a\.mp4; take what they share out of one of the splits/,
    });
  });

  test('the folders train, val and test are splits, and train alone is none', async () => {
    const film = (number: number): Buffer => otherFilm(shortFilm, number);
    const three = await folderOf('three', {
      'train/a.mp4': film(1),
      'val/b.mp4': film(2),
      'test/c.mp4': film(3),
      'train/test/d.mp4': film(4),
    });
    const index = await indexFolder({ root: three, clipSeconds: 10 });
    assert.deepEqual(
      [index.train, index.heldOut].map((samples) => samples.map(({ id }) => id)),
      [
        ['train/a', 'train/test/d'],
        ['test/c', 'val/b'],
      ],
    );
    const one = await folderOf('train-alone', {
      'train/a.mp4': film(1),
      'train/b.mp4': film(2),
      'train/c.mp4': film(3),
    });
    assert.equal((await indexFolder({ root: one, clipSeconds: 10 })).heldOut.length, 1);
  });

  test('pictures that no record names say nothing about the splits', async () => {
    const files: Record<string, Buffer | string> = { 'val2017/99.png': await pictureOf(99 % 32) };
    const records: object[] = [];
    for (let i = 0; i < 20; i++) {
      files[`train2017/${i}.png`] = await pictureOf(i);
      records.push({ image: `train2017/${i}.png`, caption: `caption ${i}` });
    }
    const pairs = await folderOf('pairs', { ...files, 'train.json': JSON.stringify(records) });
    const talks = await folderOf('talks', {
      ...files,
      'train.json': JSON.stringify(
        records.map((record) => ({
          ...record,
          conversations: [
            { from: 'human', value: '<image>What?' },
            { from: 'gpt', value: 'This.' },
          ],
        })),
      ),
    });
    for (const root of [pairs, talks]) {
      const index = await indexFolder({ root, clipSeconds: 10 });
      assert.deepEqual([index.train.length, index.heldOut.length], [18, 2]);
    }
  });

  test('told splits of which none can be held out leave it to the hash', async () => {
    const files: Record<string, Buffer | string> = {
      'val.json': '[{"image":"gone.png","caption":"x"}]',
    };
    const records: object[] = [];
    for (let i = 0; i < 10; i++) {
      files[`${i}.png`] = await pictureOf(i);
      records.push({ image: `${i}.png`, caption: `caption ${i}` });
    }
    const root = await folderOf('none-told', { ...files, 'train.json': JSON.stringify(records) });
    const index = await indexFolder({ root, clipSeconds: 10 });
    assert.deepEqual([index.train.length, index.heldOut.length], [9, 1]);
  });

  test('files that cannot be read are listed and cost nothing else', async () => {
    const root = await folderOf('faulty', {
      'bad.mp4': 'this is text',
      'cut.mp4': shortFilm.subarray(0, 2000),
      'good.mp4': shortFilm,
      'good.vtt':
        'WEBVTT\n\n00:03.000 --> 00:01.000\nbackwards\n\n00:00.000 --> 00:01.000\nright\n',
    });
    const progress: number[] = [];
    const index = await indexFolder({
      ...{ root, clipSeconds: 10 },
      onProgress: ({ numDone }) => progress.push(numDone),
    });
    assert.deepEqual(
      index.train.map(({ id, text }) => [id, text]),
      [['good', 'right']],
    );
    assert.deepEqual(
      index.skipped.map(({ path, code }) => [path, code]),
      [
        ['bad.mp4', 'VIDEO_UNREADABLE'],
        ['cut.mp4', 'VIDEO_UNREADABLE'],
      ],
    );
    assert.equal(index.numCaptionWarnings, 1);
    assert.deepEqual(progress, [1, 2, 3]);
  });

  test('a film that says it lasts for months costs itself alone', async () => {
    const args = ['-c:v', 'libx264'];
    const film = await makeFilm(join(scratch, 'plain.mkv'), { seconds: 2, args });
    const wrong = await readFile(film);
    // Matroska's Duration: its id, its size, milliseconds.
    const at = wrong.indexOf(Buffer.from([0x44, 0x89, 0x88]));
    assert.ok(at > 0);
    assert.equal(Math.round(wrong.readDoubleBE(at + 3)), 2000);
    wrong.writeDoubleBE(2e10, at + 3);
    const root = await folderOf('months', { 'good.mp4': shortFilm, 'wrong.mkv': wrong });
    const index = await indexFolder({ root, clipSeconds: 10, heldOutFraction: 0 });
    assert.deepEqual(
      index.train.map(({ id }) => id),
      ['good'],
    );
    assert.deepEqual(index.skipped, [
      {
        path: 'wrong.mkv',
        code: 'VIDEO_TOO_LONG',
        message:
          'wrong.mkv says that it lasts 20000000 s, more than 24 h: ' +
          'cut it up, or write it anew (data transcode) if it is wrong',
      },
    ]);
  });

  test('a folder that is missing or has no videos is refused by name', async () => {
    const missing = join(scratch, 'nowhere');
    const refusal =
      (code: string, ...parts: string[]) =>
      (error: unknown): boolean => {
        assert.ok(error instanceof VideoloomError && error.code === code, String(error));
        for (const part of parts) assert.ok(error.message.includes(part), error.message);
        return true;
      };
    await assert.rejects(
      indexFolder({ root: missing, clipSeconds: 10 }),
      refusal('NOT_FOUND', missing),
    );
    const root = await folderOf('texts', { 'a.txt': 'x' });
    await assert.rejects(
      indexFolder({ root, clipSeconds: 10 }),
      refusal('DATA_EMPTY', root, 'folder (videos or pictures'),
    );
  });

  test('a part of an index has the files of its samples alone', async () => {
    const root = await folderOf('parts', {
      'a.mp4': shortFilm,
      'b.mp4': shortFilm,
      'c.mp4': longFilm,
    });
    const whole = await indexFolder({ root, clipSeconds: 10, heldOutFraction: 0 });
    const part = subsetOf(whole, {
      train: whole.train.filter(({ id }) => id.startsWith('c@')),
      heldOut: whole.train.filter(({ id }) => id === 'a'),
    });
    assert.deepEqual(
      part.files.map(({ path }) => path),
      ['a.mp4', 'c.mp4'],
    );
    assert.deepEqual(
      [...part.train, ...part.heldOut].map((sample) => [sample.id, pathOf(part, sample)]),
      [...['c@0', 'c@10000', 'c@20000'].map((id) => [id, 'c.mp4']), ['a', 'a.mp4']],
    );
    assert.notEqual(part.digest, whole.digest);
  });

  test('an index that was written reads the same; the digest tells data apart, not places', async () => {
    const files = { 'a.mp4': shortFilm, 'a.txt': 'one', 'b.mp4': shortFilm };
    const [one, same, other] = await Promise.all([
      folderOf('one', files),
      folderOf('same', files),
      folderOf('other', { ...files, 'a.txt': 'two' }),
    ]);
    const indexes = await Promise.all(
      [one, same, other].map((root) => indexFolder({ root, clipSeconds: 10 })),
    );
    assert.equal(indexes[0]!.digest, indexes[1]!.digest);
    assert.notEqual(indexes[0]!.digest, indexes[2]!.digest);
    const file = join(scratch, 'index.jsonl');
    await writeIndex(indexes[0]!, file);
    assert.deepEqual(await readIndex(file), indexes[0]);
    // Characters that end lines elsewhere, but not in JSON.
    const train = [{ ...indexes[0]!.train[0]!, text: 'one\u2028two\u2029three\u0085four' }];
    const spoken = subsetOf({ ...indexes[0]!, train }, { train, heldOut: [] });
    await writeIndex(spoken, `${file}.spoken`);
    assert.deepEqual(await readIndex(`${file}.spoken`), spoken);
    const lines = (await readFile(file, 'utf8')).trimEnd().split('\n');
    assert.equal(lines.length, 5);
    await writeFile(file, lines.slice(0, 4).join('\n'));
    await assert.rejects(readIndex(file), { code: 'INDEX_DAMAGED' });
    await writeFile(file, lines.join('\n').replace('"one"', '"two"'));
    await assert.rejects(readIndex(file), { code: 'INDEX_DAMAGED' });
    await assert.rejects(readIndex(`${file}.missing`), { code: 'INDEX_UNREADABLE' });
  });
});
