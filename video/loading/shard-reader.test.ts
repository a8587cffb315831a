import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { open, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import sharp from 'sharp';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { planReads } from './coalesced-reads.ts';
import { openShardWriter } from '../curation/shard-writer.ts';
import { openDecoderPool, type DecoderPool } from '../decode/decoder.ts';
import { readPictures } from './picture-reader.ts';
import { digestOf, type SampleIndex } from '../index/sample-index.ts';
import type { MediaFile, Sample } from '../index/sample.ts';
import { readSamples, type StoredSample } from './shard-reader.ts';
import { openMediaCache, type MediaCache } from '../storage/media-cache.ts';
import { openStore } from '../storage/open.ts';

const NUM_SHARDS = 3;
const PER_SHARD = 40;
const ROWS = Array.from({ length: NUM_SHARDS * PER_SHARD }, (_, row) => row);
/** Each once, far from their order. */
const SHUFFLED = ROWS.map((row) => (row * 37) % ROWS.length);
const FRAMING = { width: 48, height: 40 };

describe('the parts of files are read together', () => {
  const part = (path: string, offset: number, sizeBytes: number) => ({
    path,
    range: { offset, sizeBytes },
  });

  it('neighbours are one read, what is far away is not', () => {
    const wanted = [part('a', 900, 100), part('b', 0, 10), part('a', 0, 100), part('a', 150, 100)];
    assert.deepEqual(planReads(wanted, { maxSpread: 2, maxReadBytes: 1000 }), [
      { path: 'a', offset: 0, sizeBytes: 250, parts: [2, 3] },
      { path: 'a', offset: 900, sizeBytes: 100, parts: [0] },
      { path: 'b', offset: 0, sizeBytes: 10, parts: [1] },
    ]);
  });

  it('no read is larger than the bound, but for a part that is', () => {
    const wanted = [part('a', 0, 60), part('a', 60, 60), part('a', 120, 500), part('a', 10, 20)];
    const reads = planReads(wanted, { maxSpread: 9, maxReadBytes: 100 });
    assert.deepEqual(
      reads.map(({ offset, sizeBytes, parts }) => [offset, sizeBytes, parts]),
      [
        [0, 60, [0, 3]],
        [60, 60, [1]],
        [120, 500, [2]],
      ],
    );
  });
});

describe('samples out of shards', () => {
  let folder: string;
  let index: SampleIndex;
  let media: MediaCache;
  let pool: DecoderPool;
  const shard = (number: number): string => join(folder, `${number}.tar`);

  before(async () => {
    folder = await temporaryFolder('shard-reader');
    const files: MediaFile[] = [];
    const train: Sample[] = [];
    for (let number = 0; number < NUM_SHARDS; number++) {
      const writer = await openShardWriter(shard(number));
      for (let i = 0; i < PER_SHARD; i++) {
        const [width, height] = [40 + i, 40];
        const pixels = Buffer.alloc(
          width * height * 3,
          createHash('sha512').update(`${i}`).digest(),
        );
        const image = sharp(pixels, { raw: { width, height, channels: 3 } }).blur(1 + (number % 2));
        const format = (['jpeg', 'jpeg', 'png', 'webp'] as const)[i % 4]!;
        const bytes = await image.toFormat(format).toBuffer();
        const range = await writer.add(`${i}.${format}`, bytes);
        await writer.add(`${i}.txt`, Buffer.from(`words ${i}`));
        const row = files.length;
        files.push({
          ...{ kind: 'image', path: `${number}.tar`, range, sizeBytes: bytes.length },
          sha256: createHash('sha256').update(bytes).digest('hex'),
          ...{ durationSeconds: 0, framesPerSecond: 0, width, height, codec: format },
          ...{ hasAudio: false, keyFrameSeconds: [] },
        });
        const span = { file: row, startSeconds: 0, endSeconds: 0 };
        // Some samples have several pictures.
        const spans = i % 10 === 9 ? [span, { ...span, file: row - 1 }] : [span];
        train.push({
          id: `${row}`,
          media: spans,
          text: `words ${i}`,
          cues: [],
          decodeMegapixels: 0,
        });
      }
      await writer.finish();
    }
    const content = { files, train, heldOut: [] };
    const about = { root: folder, digest: digestOf(content), skipped: [], numCaptionWarnings: 0 };
    index = { ...about, ...content };
    const store = openStore(folder);
    media = openMediaCache({ folder: join(folder, 'cache'), maxBytes: 2 ** 30, store });
    pool = await openDecoderPool({ numProcesses: 2 });
  });

  after(async () => {
    await pool.close();
    await media.close();
  });

  async function collect(
    rows: readonly number[],
    options: Partial<Parameters<typeof readSamples>[1]> = {},
  ): Promise<{ samples: StoredSample[]; sizes: number[] }> {
    const samples: StoredSample[] = [];
    const sizes: number[] = [];
    for await (const batch of readSamples(rows, { index, media, ...options })) {
      sizes.push(batch.length);
      samples.push(
        ...batch.map((sample) => ({ ...sample, media: sample.media.map((b) => Buffer.from(b)) })),
      );
    }
    return { samples, sizes };
  }

  function assertWhole({ sample, media: bytes }: StoredSample): void {
    assert.deepEqual(
      bytes.map((some) => createHash('sha256').update(some).digest('hex')),
      sample.media.map(({ file }) => index.files[file]!.sha256),
    );
  }

  it('come in the order asked for, each with its own bytes, whatever the window', async () => {
    for (const options of [
      {},
      { windowRows: 1 },
      { windowRows: 7, batchSize: 10 },
      { maxBytesAhead: 30_000, batchSize: 11 },
    ]) {
      const { samples, sizes } = await collect([...SHUFFLED, ...SHUFFLED], options);
      assert.deepEqual(
        samples.map(({ row }) => row),
        [...SHUFFLED, ...SHUFFLED],
      );
      samples.forEach(assertWhole);
      assert.ok(sizes.slice(0, -1).every((size) => size === (options.batchSize ?? 64)));
    }
  });

  it('stop when nobody wants more, and when aborted', async () => {
    for await (const batch of readSamples(SHUFFLED, {
      index,
      media,
      windowRows: 8,
      batchSize: 4,
    })) {
      assert.equal(batch.length, 4);
      break;
    }
    const stop = new AbortController();
    const samples = readSamples(SHUFFLED, { index, media, batchSize: 4, signal: stop.signal });
    await samples.next();
    stop.abort(new Error('enough'));
    await assert.rejects(async () => {
      for await (const batch of samples) assert.ok(batch);
    }, /enough/);
  });

  it('pictures of a batch have the pixels that they have alone, in the order asked for', async () => {
    let at = 0;
    const options = { index, media, pool, framing: FRAMING, batchSize: 9 };
    for await (const { samples, frames, faults } of readPictures(SHUFFLED, options)) {
      assert.equal(faults.size, 0);
      const numBytes = FRAMING.width * FRAMING.height * 3;
      for (const [i, sample] of samples.entries()) {
        assert.equal(sample, index.train[SHUFFLED[at++]!]);
        const { path, range } = index.files[sample.media[0]!.file]!;
        const alone = await pool.decodeImage({ path: join(folder, path), range, ...FRAMING });
        assert.deepEqual(frames.subarray(i * numBytes, (i + 1) * numBytes), alone.frames);
      }
    }
    assert.equal(at, SHUFFLED.length);
  });

  it('a shard that was cut short costs what it lost, by name and offset', async () => {
    const lost = index.files[PER_SHARD + 30]!.range!;
    const handle = await open(shard(1));
    const { size } = await handle.stat();
    await handle.close();
    assert.ok(lost.offset < size);
    await truncate(shard(1), lost.offset + 5);
    const { samples } = await collect(SHUFFLED);
    for (const sample of samples) {
      const isLost = sample.row >= PER_SHARD + 30 && sample.row < 2 * PER_SHARD;
      assert.equal(sample.fault?.code, isLost ? 'RANGE_OUTSIDE' : undefined);
      if (!isLost) assertWhole(sample);
      if (sample.row === PER_SHARD + 30) {
        assert.match(sample.fault!.message, new RegExp(`1\\.tar.*${lost.offset}`));
      }
    }
    const places = [PER_SHARD + 30, 0].map((row) => index.files[row]!);
    const decoded = await pool.decodeImages(
      places.map(({ path, range }) => ({ path: join(folder, path), range })),
      FRAMING,
    );
    assert.deepEqual([...decoded.errors.keys()], [0]);
    assert.match(decoded.errors.get(0)!.message, new RegExp(`1\\.tar.*${lost.offset}`));
  });

  it('a process that is killed costs no picture', async () => {
    const whole = index.files.slice(0, PER_SHARD);
    const places = whole.map(({ path, range }) => ({ path: join(folder, path), range }));
    const expected = await pool.decodeImages(places, FRAMING);
    const again = [0, 1, 2, 3].map(() => pool.decodeImages(places, FRAMING));
    process.kill(pool.pids[0]!, 'SIGKILL');
    for (const { frames, errors } of await Promise.all(again)) {
      assert.equal(errors.size, 0);
      assert.deepEqual(frames, expected.frames);
    }
  });
});
