import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openDataAccess, type DataAccess } from './data-access.ts';
import { openDecoderPool, type DecoderPool } from '../decode/decoder.ts';
import { openFrameDisk } from './frame-disk.ts';
import { evenTimes, windowTimes } from '../sampling/frame-sampler.ts';
import {
  ClipsExhaustedError,
  openClipLoader,
  type ClipLoader,
  type ClipLoaderOptions,
} from './loader.ts';
import { makeIndex } from '../index/make-index.ts';
import type { SampleIndex } from '../index/sample-index.ts';
import { ffmpeg, makeFilm, WITHOUT_FFMPEG } from '../test/films.ts';

const NUM_CLIPS = 8;
const SHAPE = { frameSize: 16, numWindows: 2, framesPerWindow: 2 };
const FRAME_BYTES = 2 * 2 * 16 * 16 * 3;
const CLIP_BYTES = FRAME_BYTES + 2 * 2 * 8; // and a time for each frame

describe('a clip loader', { skip: WITHOUT_FFMPEG }, () => {
  let scratch: string;
  let data: DataAccess;
  let pool: DecoderPool;
  let index: SampleIndex;
  before(async () => {
    scratch = await temporaryFolder('loader');
    const root = join(scratch, 'clips');
    data = await openDataAccess({ root, decoders: 2, cacheDir: scratch });
    pool = data.pool;
    await mkdir(root);
    for (let i = 0; i < NUM_CLIPS; i++) {
      const hue = ['-vf', `hue=h=${i * 40}`, '-c:v', 'libx264', '-movflags', '+faststart'];
      await makeFilm(join(root, `${i}.mp4`), { seconds: 2, size: '64x48', rate: 10, args: hue });
    }
    index = await makeIndex({ ...data, clipSeconds: 10, heldOutFraction: 0 });
    // After indexing, so that the loader is the first to notice: 2 and 5 lose their pictures, 6 is gone.
    for (const bad of [2, 5])
      await truncate(
        join(root, `${bad}.mp4`),
        (await readFile(join(root, `${bad}.mp4`))).length >> 1,
      );
    await rm(join(root, '6.mp4'));
  });
  after(() => data.close());

  const open = (options: Partial<ClipLoaderOptions> = {}): ClipLoader =>
    openClipLoader({ index, ...data, cacheBytes: 0, ...SHAPE, ...options });
  const lease = (sample: number, ...substitutes: number[]) => ({ sample, epoch: 0, substitutes });

  test('clips come in the order of the requests, each with its own frames', async () => {
    const order = [3, 0, 7, 1, 4, 0];
    const clips = await open().load(order.map((sample) => lease(sample)));
    assert.deepEqual(
      clips.map(({ sample }) => sample),
      order,
    );
    for (const { sample, frames, timesSeconds, audio, skipped } of clips) {
      const { file, startSeconds, endSeconds } = index.train[sample]!.media[0]!;
      const direct = await pool.decode({
        path: join(index.root, index.files[file]!.path),
        timesSeconds: windowTimes({ startSeconds, endSeconds, numWindows: 2, framesPerWindow: 2 }),
        width: 16,
        height: 16,
      });
      assert.deepEqual(frames, direct.frames);
      assert.deepEqual(timesSeconds, [...direct.ptsSeconds]);
      assert.equal(audio, undefined);
      assert.equal(skipped, undefined);
    }
    assert.notDeepEqual(clips[0]!.frames, clips[1]!.frames);
  });

  test('a text without media shows black frames, and no decoder is asked', async () => {
    const words = { ...index.train[0]!, id: 'words', media: [] };
    const loader = open({ index: { ...index, train: [words, index.train[0]!] } });
    const [text] = await loader.load([lease(0)]);
    assert.equal(loader.stats.numFramesDecoded, 0);
    assert.deepEqual(text!.frames, new Uint8Array(FRAME_BYTES));
    assert.deepEqual(text!.timesSeconds, [0, 0, 0, 0]);
    const [clip] = await loader.load([lease(1)]);
    assert.ok(clip!.frames.some((value) => value !== 0));
  });

  test('a clip that fails is replaced by the first substitute that decodes, the others stay where they are', async () => {
    const loader = open();
    const clips = await loader.load([
      lease(0, 1),
      lease(2, 5, 6, 4, 3),
      lease(1, 0),
      lease(6, 7, 0),
    ]);
    assert.deepEqual(
      clips.map(({ sample }) => sample),
      [0, 4, 1, 7],
    );
    assert.deepEqual(
      clips.map(({ skipped }) => skipped?.reason),
      [undefined, 'VIDEO_TRUNCATED', undefined, 'NOT_FOUND'],
    );
    const { skipped } = clips[1]!;
    assert.deepEqual([skipped!.sample, skipped!.substitute], [2, 4]);
    assert.match(skipped!.message, /2\.mp4/);
    const expected = await loader.load([lease(4), lease(7)]);
    assert.deepEqual(
      [clips[1]!.frames, clips[3]!.frames],
      expected.map(({ frames }) => frames),
    );
    assert.deepEqual(loader.stats.errorsByCode, { VIDEO_TRUNCATED: 2, NOT_FOUND: 1 });
  });

  test('what is recorded is taken as it is: the row is not tried, and the record comes back', async () => {
    const loader = open();
    const recorded = { sample: 1, substitute: 4, reason: 'VIDEO_TIMEOUT', message: 'on that day' };
    const before = pool.stats.numRequests;
    const [clip] = await loader.load([{ ...lease(1), recorded }]);
    assert.equal(pool.stats.numRequests - before, 1);
    const [expected] = await open().load([lease(4)]);
    assert.deepEqual(clip, { ...expected, skipped: recorded });
    // Nor is there another way out when the substitute fails now.
    const bad = { ...recorded, substitute: 5 };
    await assert.rejects(loader.load([{ ...lease(1), recorded: bad }]), {
      code: 'VIDEO_TRUNCATED',
      message: /5\.mp4/,
    });
  });

  test('a row that fails and has no substitutes is an error that names the file', async () => {
    await assert.rejects(open().load([lease(0), lease(2)]), {
      code: 'VIDEO_TRUNCATED',
      message: /2\.mp4/,
    });
  });

  test('a file known to be bad is not tried again, but reported for each lease', async () => {
    const loader = open();
    await loader.load([lease(2, 0)]);
    assert.deepEqual([...loader.quarantined], [2]);
    const before = pool.stats.numRequests;
    const clips = await loader.load([lease(2, 0), lease(2, 1)]);
    assert.equal(pool.stats.numRequests - before, 2);
    assert.deepEqual(
      clips.map(({ skipped }) => [skipped!.sample, skipped!.substitute]),
      [
        [2, 0],
        [2, 1],
      ],
    );
    assert.equal(loader.stats.numSubstituted, 3);
  });

  test('if no substitute decodes the error names all files', async () => {
    await assert.rejects(open().load([lease(0), lease(2, 5, 6)]), (error: unknown) => {
      assert.ok(error instanceof ClipsExhaustedError);
      for (const name of ['2.mp4', '5.mp4', '6.mp4'])
        assert.ok(error.message.includes(name), error.message);
      return true;
    });
  });

  test('cached frames are the same and the cache keeps to its bound, dropping what was used longest ago', async () => {
    const loader = open({ cacheBytes: 2 * CLIP_BYTES });
    const [first] = await loader.load([lease(0)]);
    await loader.load([lease(1)]);
    const before = pool.stats.numRequests;
    assert.equal((await loader.load([lease(0)]))[0]!.frames, first!.frames);
    assert.equal(pool.stats.numRequests, before);
    await loader.load([lease(3)]); // drops 1
    assert.equal(loader.cachedBytes, 2 * CLIP_BYTES);
    await loader.load([lease(0)]);
    assert.equal(pool.stats.numRequests, before + 1);
    await loader.load([lease(1)]);
    assert.equal(pool.stats.numRequests, before + 2);
    assert.equal(loader.stats.numCacheHits, 2);
  });

  test('two places that want the same clip share one decode', async () => {
    const before = pool.stats.numRequests;
    const clips = await open().load([lease(0), lease(0), lease(0)]);
    assert.equal(pool.stats.numRequests - before, 1);
    assert.equal(clips[0]!.frames, clips[2]!.frames);
  });

  test('a decoder killed in the middle changes nothing in a batch', async () => {
    const requests = [lease(0), lease(1), lease(2, 3), lease(4), lease(7)];
    const expected = await open().load(requests);
    const loading = open().load(requests);
    process.kill(pool.pids[0]!, 'SIGKILL');
    assert.deepEqual(await loading, expected);
  });

  test('what is random is another clip each epoch, the same wherever it is loaded, and none in evaluation', async () => {
    const view = {
      seed: 5,
      sampling: { policy: 'random-clip', seconds: 0.5 },
      augment: { crop: true, flip: true },
    } as const;
    const at = async (loader: ClipLoader, epoch: number) => {
      const [clip] = await loader.load([{ sample: 0, epoch, substitutes: [] }]);
      return clip!.frames;
    };
    const loader = open({ view, cacheBytes: 2 ** 20 });
    const first = await at(loader, 0);
    assert.notDeepEqual(await at(loader, 1), first);
    assert.deepEqual(await at(loader, 0), first);
    assert.deepEqual(await at(open({ view }), 0), first);
    assert.notDeepEqual(await at(open({ view: { ...view, seed: 6 } }), 0), first);

    const evaluated = open({ view, split: 'heldOut', index: { ...index, heldOut: index.train } });
    const middle = await pool.decode({
      path: join(index.root, '0.mp4'),
      timesSeconds: evenTimes(0.75, 1.25, 4),
      ...{ width: 16, height: 16 },
    });
    assert.deepEqual(await at(evaluated, 0), middle.frames);
    assert.deepEqual(await at(evaluated, 7), middle.frames);
  });

  test('frames on disk spare the decoder, for the same view alone, and only while they are whole', async () => {
    const folder = join(scratch, 'frames');
    const frames = openFrameDisk({ folder, maxBytes: 2 ** 20 });
    const requestsOf = async (options: Partial<ClipLoaderOptions>) => {
      const before = pool.stats.numRequests;
      const [clip] = await open({ frames, ...options }).load([lease(0)]);
      const { frames: shown, timesSeconds } = clip!;
      return { numRequests: pool.stats.numRequests - before, frames: shown, timesSeconds };
    };
    const first = await requestsOf({});
    assert.equal(first.numRequests, 1);
    const content = join(folder, 'content');
    const kept = async (): Promise<string[]> => readdir(content).catch(() => []);
    for (let i = 0; i < 3000 && (await readdir(join(folder, 'names'))).length === 0; i++)
      await delay(20);
    const stored = { ...first, numRequests: 0, frames: Buffer.from(first.frames) };
    assert.deepEqual(await requestsOf({}), stored);
    assert.equal((await requestsOf({ frameSize: 8 })).numRequests, 1);
    for (const name of await kept()) await writeFile(join(content, name), Buffer.alloc(CLIP_BYTES));
    const again = await requestsOf({});
    assert.equal(again.numRequests, 1);
    assert.deepEqual(again.frames, first.frames);
    await frames.close();
  });

  test('frames of a file that has changed since it was indexed are not kept as those of the one that was', async () => {
    const root = join(scratch, 'changing');
    await mkdir(root);
    const film = join(root, 'film.mp4');
    const size = { seconds: 2, size: '64x48', rate: 10 };
    await makeFilm(film, size);
    const original = await readFile(film);
    const other = await readFile(
      await makeFilm(join(scratch, 'other.mp4'), { ...size, args: ['-vf', 'negate'] }),
    );
    const own = await openDataAccess({ root, decoders: 1, cacheDir: scratch });
    const folder = join(scratch, 'changing-frames');
    const openDisk = () => openFrameDisk({ folder, maxBytes: 2 ** 20 });
    const [disk, later] = [openDisk(), openDisk()];
    try {
      const films = await makeIndex({ ...own, clipSeconds: 10, heldOutFraction: 0 });
      const load = async (frames: typeof disk) => {
        const loader = open({ ...own, index: films, frames });
        return { shown: (await loader.load([lease(0)]))[0]!.frames, stats: loader.stats };
      };
      await writeFile(film, other);
      const changed = await load(disk);
      await disk.close();
      await writeFile(film, original);
      const { shown, stats } = await load(later);
      const { startSeconds, endSeconds } = films.train[0]!.media[0]!;
      const direct = await own.pool.decode({
        path: film,
        timesSeconds: windowTimes({ startSeconds, endSeconds, numWindows: 2, framesPerWindow: 2 }),
        ...{ width: 16, height: 16 },
      });
      assert.equal(Buffer.compare(shown, direct.frames), 0);
      assert.notEqual(Buffer.compare(changed.shown, shown), 0);
      assert.equal(stats.numDiskHits, 0);
    } finally {
      await Promise.all([own.close(), later.close()]);
    }
  });

  test('the sound of a clip comes with it, from the decoder, from memory and from disk; without any it is silent', async () => {
    const root = join(scratch, 'sounding');
    await mkdir(root);
    const silentFilm = await makeFilm(join(scratch, 'silent.mp4'), {
      seconds: 2,
      size: '64x48',
      rate: 10,
    });
    const tone = ['-f', 'lavfi', '-i', 'sine=frequency=880:duration=2'];
    await ffmpeg('-i', silentFilm, ...tone, '-c:v', 'copy', '-c:a', 'aac', join(root, 'tone.mp4'));
    await makeFilm(join(root, 'mute.mp4'), { seconds: 2, size: '64x48', rate: 10, args: ['-an'] });
    const own = await openDataAccess({ root, decoders: 1, cacheDir: scratch });
    const openDisk = () => openFrameDisk({ folder: join(scratch, 'sounds'), maxBytes: 2 ** 22 });
    const [disk, diskLater] = [openDisk(), openDisk()];
    try {
      const films = await makeIndex({ ...own, clipSeconds: 10, heldOutFraction: 0 });
      const audio = { numMels: 8, numFrames: 5 };
      const listen = async (loader: ClipLoader) =>
        Promise.all([0, 1].map(async (sample) => (await loader.load([lease(sample)]))[0]!));
      const openOwn = (frames: typeof disk) =>
        open({ ...own, index: films, audio, frames, cacheBytes: 2 ** 20 });
      const loader = openOwn(disk);
      const first = await listen(loader);
      const rowOf = (name: string) =>
        films.train.findIndex(({ media }) => films.files[media[0]!.file]!.path === name);
      const [heard, silent] = ['tone.mp4', 'mute.mp4'].map((name) => first[rowOf(name)]!.audio!);
      assert.deepEqual([...silent!], new Array<number>(40).fill(-1.5));
      const loudest = Array.from({ length: 5 }, (_, t) =>
        Math.max(...Array.from({ length: 8 }, (_mel, mel) => heard![mel * 5 + t]!)),
      );
      for (const [t, value] of loudest.entries()) {
        // Of eight bands the third one's centre, 1,004 Hz, is nearest to 880 Hz.
        assert.equal(heard![2 * 5 + t], value);
        assert.ok(value > 0, `${value} at ${t}`);
      }
      const requests = own.pool.stats.numRequests;
      assert.equal((await listen(loader))[0]!.audio, first[0]!.audio);
      await disk.close();
      const later = await listen(openOwn(diskLater));
      assert.equal(own.pool.stats.numRequests, requests);
      assert.deepEqual(
        later.map(({ audio: sound, timesSeconds }) => ({ sound, timesSeconds })),
        first.map(({ audio: sound, timesSeconds }) => ({ sound, timesSeconds })),
      );
    } finally {
      await own.close();
      await Promise.all([disk.close(), diskLater.close()]);
    }
  });

  test('every policy gives as many frames, those that it names', async () => {
    const { startSeconds, endSeconds } = index.train[0]!.media[0]!;
    const cues = [{ startSeconds: 1.1, endSeconds: 1.3, text: 'x' }];
    const train = index.train.map((sample) => ({ ...sample, cues }));
    const expected = {
      'key-frames': [0, 0, 0, 0],
      cues: [1.2, 1.2, 1.2, 1.2],
      scenes: [1, 1, 1, 1].map((seconds) => (seconds * (startSeconds + endSeconds)) / 2),
    };
    for (const [policy, timesSeconds] of Object.entries(expected)) {
      const sampling = { policy: policy as keyof typeof expected };
      const [clip] = await open({ index: { ...index, train }, view: { sampling } }).load([
        lease(0),
      ]);
      const direct = await pool.decode({
        path: join(index.root, '0.mp4'),
        ...{ timesSeconds, width: 16, height: 16 },
      });
      assert.deepEqual(clip!.frames, direct.frames, policy);
    }
    const rate = { policy: 'fps', framesPerSecond: 1 } as const;
    const [clip] = await open({ view: { sampling: rate } }).load([lease(0)]);
    const direct = await pool.decode({
      path: join(index.root, '0.mp4'),
      ...{ timesSeconds: [0.5, 1.5, 1.5, 1.5], width: 16, height: 16 },
    });
    assert.deepEqual(clip!.frames, direct.frames);
  });

  test('an aborted load rejects with the reason and leaves the loader usable', async () => {
    const loader = open();
    const controller = new AbortController();
    const loading = loader.load([lease(0), lease(1)], controller.signal);
    controller.abort(new Error('enough'));
    await assert.rejects(loading, /enough/);
    assert.equal((await loader.load([lease(0)]))[0]!.frames.length, FRAME_BYTES);
  });

  test('a pool that is closed is no fault of the files', async () => {
    const own = await openDecoderPool({ numProcesses: 1 });
    await own.close();
    const loader = open({ pool: own });
    await assert.rejects(loader.load([lease(0, 1)]), { code: 'DECODER_CLOSED' });
    assert.equal(loader.quarantined.size, 0);
    await writeFile(join(scratch, 'done'), '');
  });
});
