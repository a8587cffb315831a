import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import { openRng } from '../../proto/random.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { DecodeError, openDecoderPool, type DecodeErrorCode, type DecoderPool } from './decoder.ts';
import { ffmpeg, makeFilm, realFilms, WITHOUT_FFMPEG } from '../test/films.ts';

const run = promisify(execFile);
const films = await realFilms();
const withoutFilms = 'skip' in films ? films.skip : false;
const filmFolder = 'folder' in films ? films.folder : '';
const hasNodeAv = await import('node-av/lib').then(
  () => true,
  () => false,
);
const backends = (['node-av', 'ffmpeg'] as const).filter((name) =>
  name === 'node-av' ? hasNodeAv : !WITHOUT_FFMPEG,
);
const REAL = ['bigbuckbunny', 'bikes', 'carphone_pristine', 'carphone_distorted'];

const scratch = await temporaryFolder('decoder');

const failsWith =
  (...codes: DecodeErrorCode[]) =>
  (error: unknown) => {
    assert.ok(error instanceof DecodeError, String(error));
    assert.ok(codes.includes(error.code), `${error.code}: ${error.message}`);
    assert.ok(error.message.includes(error.path), error.message);
    return true;
  };

/** When each frame is shown, as ffprobe sees it after decoding all of them. */
async function shownSeconds(file: string): Promise<number[]> {
  const { stdout } = await run('ffprobe', [
    ...['-v', 'error', '-select_streams', 'v:0'],
    ...['-show_entries', 'frame=best_effort_timestamp_time', '-of', 'csv=p=0', file],
  ]);
  return stdout
    .split('\n')
    .map((line) => parseFloat(line))
    .filter((seconds) => !Number.isNaN(seconds));
}

/** The rule written out: the last frame shown at or before a time, else the first. */
function frameAt(shown: readonly number[], seconds: number): number {
  return shown.findLast((pts) => pts <= seconds + 1e-6) ?? shown[0]!;
}

function randomTimes(seed: number, count: number, durationSeconds: number): number[] {
  const rng = openRng(seed, 'times');
  return Array.from({ length: count }, () => rng.uniform() * durationSeconds).sort((a, b) => a - b);
}

for (const backend of backends) {
  describe(`decoding with ${backend}`, () => {
    let pool: DecoderPool;
    before(async () => {
      pool = await openDecoderPool({ numProcesses: 2, backend });
    });
    after(() => pool.close());

    const anyName = 'a file may have any name, one with characters that end lines elsewhere too';
    test(anyName, { skip: WITHOUT_FFMPEG }, async () => {
      const film = join(scratch, `${backend}-plain.mp4`);
      await makeFilm(film, { seconds: 1, size: '64x48', rate: 10 });
      const odd = join(scratch, `${backend} a\u2028b\u2029c\nd é.mp4`);
      await copyFile(film, odd);
      assert.deepEqual(await pool.probe({ path: odd }), await pool.probe({ path: film }));
    });

    /**
     * Decodes a film sparsely and compares it with itself after ffmpeg has decoded all of it and stored each frame
     * losslessly: there every frame stands for itself, so there is no choice of what to decode that could go wrong.
     */
    async function equalsFullDecode(
      film: string,
      times: readonly number[],
      startSeconds = 0,
    ): Promise<void> {
      const full = join(scratch, `${film.split('/').at(-1)!}.${backend}.nut`);
      const passthrough = ['-copyts', '-vsync', 'passthrough', '-enc_time_base', '-1'];
      await ffmpeg(
        '-noautorotate',
        '-i',
        film,
        '-map',
        '0:v:0',
        ...passthrough,
        '-c:v',
        'ffv1',
        full,
      );
      const size = { width: 48, height: 32 };
      const sparse = await pool.decode({ path: film, timesSeconds: times, ...size });
      const shown = (await shownSeconds(film)).map((seconds) => seconds - startSeconds);
      const expected = times.map((seconds) => frameAt(shown, seconds));
      for (const [i, seconds] of sparse.ptsSeconds.entries()) {
        assert.ok(
          Math.abs(seconds - expected[i]!) < 1e-5,
          `${times[i]!}: ${seconds} not ${expected[i]!}`,
        );
      }
      const firstShown = shown[0]!;
      const fullTimes = [...sparse.ptsSeconds].map((seconds) => seconds - firstShown + 1e-4);
      const whole = await pool.decode({ path: full, timesSeconds: fullTimes, ...size });
      // MPEG-2 and MPEG-4 leave the last bit of the inverse DCT open, and FFmpeg's versions differ in it.
      if (/mpeg[24]/.test(film)) {
        assert.ok(sparse.frames.every((value, i) => Math.abs(value - whole.frames[i]!) <= 1));
      } else {
        assert.deepEqual(sparse.frames, whole.frames);
      }
      assert.equal(sparse.frames.length, times.length * 48 * 32 * 3);
    }

    for (const name of REAL) {
      test(
        `frames of ${name} are those of a full decode`,
        { skip: withoutFilms || WITHOUT_FFMPEG },
        async () => {
          const film = join(filmFolder, `${name}.mp4`);
          const { durationSeconds } = await pool.probe({ path: film });
          await equalsFullDecode(film, [0, ...randomTimes(1, 9, durationSeconds)]);
        },
      );
    }

    const ENCODINGS: Readonly<Record<string, readonly string[]>> = {
      'b-pyramid.mp4': [
        '-c:v',
        'libx264',
        '-bf',
        '5',
        '-b_strategy',
        '0',
        '-x264-params',
        'b-pyramid=normal',
        '-g',
        '40',
      ],
      'open-gop.mp4': ['-c:v', 'libx264', '-x264-params', 'open-gop=1:keyint=20:bframes=3'],
      'intra-refresh.mkv': [
        '-c:v',
        'libx264',
        '-x264-params',
        'intra-refresh=1:keyint=30:bframes=0',
      ],
      'fields.mp4': ['-c:v', 'libx264', '-x264-params', 'interlaced=1', '-flags', '+ildct+ilme'],
      'transport.ts': ['-c:v', 'libx264', '-g', '25', '-bf', '3'],
      'mpeg4.avi': ['-c:v', 'mpeg4', '-bf', '2', '-g', '30'],
      'mpeg2.mpg': ['-c:v', 'mpeg2video', '-bf', '2', '-g', '15'],
      'vp9.webm': [
        '-c:v',
        'libvpx-vp9',
        '-b:v',
        '200k',
        '-deadline',
        'realtime',
        '-cpu-used',
        '8',
        '-g',
        '30',
      ],
      'hevc.mp4': [
        '-c:v',
        'libx265',
        '-x265-params',
        'log-level=none:keyint=30',
        '-preset',
        'ultrafast',
      ],
      'variable-rate.mp4': [
        '-c:v',
        'libx264',
        '-vf',
        "select='not(mod(n\\,7))+lt(mod(n\\,31)\\,4)'",
        '-vsync',
        'vfr',
      ],
    };
    for (const [name, args] of Object.entries(ENCODINGS)) {
      test(`frames of ${name} are those of a full decode`, { skip: WITHOUT_FFMPEG }, async () => {
        const film = await makeFilm(join(scratch, `${backend}-${name}`), { args });
        const start = /\.(ts|mpg)$/.test(name) ? (await shownSeconds(film))[0]! : 0;
        await equalsFullDecode(film, [...randomTimes(2, 7, 3.9), 3.95], start);
      });
    }

    test(
      'a film longer than a seek is worth gives the frames of a full decode',
      { skip: WITHOUT_FFMPEG },
      async () => {
        const film = await makeFilm(join(scratch, `${backend}-long.mp4`), {
          seconds: 60,
          rate: 10,
          size: '64x48',
          args: ['-c:v', 'libx264', '-g', '30', '-preset', 'ultrafast', '-bf', '2'],
        });
        await equalsFullDecode(film, [1, 14.05, 14.15, 38.5, 39, 58.999, 70]);
      },
    );

    test(
      'an edit list that starts between key frames hides what comes before it',
      { skip: WITHOUT_FFMPEG },
      async () => {
        const whole = await makeFilm(join(scratch, `${backend}-whole.mp4`), {
          args: ['-c:v', 'libx264', '-g', '50'],
        });
        const film = join(scratch, `${backend}-edited.mp4`);
        await ffmpeg('-ss', '1.3', '-i', whole, '-c', 'copy', film);
        await equalsFullDecode(film, [0, 0.5, 1.11, 2.4], (await shownSeconds(film))[0]);
        const size = { width: 64, height: 48 };
        const [cut, kept] = await Promise.all([
          pool.decode({ path: film, timesSeconds: [0, 1], ...size }),
          pool.decode({ path: whole, timesSeconds: [1.32, 2.32], ...size }),
        ]);
        assert.deepEqual(cut.frames, kept.frames);
      },
    );

    test('a film turned on its side is shown upright', { skip: WITHOUT_FFMPEG }, async () => {
      const plain = await makeFilm(join(scratch, `${backend}-plain.mp4`), { seconds: 1 });
      const film = join(scratch, `${backend}-turned.mp4`);
      await ffmpeg('-i', plain, '-c', 'copy', '-metadata:s:v:0', 'rotate=90', film);
      const { width, height } = await pool.probe({ path: film });
      assert.deepEqual([width, height], [120, 160]);
      const upright = await pool.decode({ path: film, timesSeconds: [0.5], width: 24, height: 40 });
      // ffmpeg turns before it scales, we turn the smaller picture: the same up to rounding.
      const scale =
        'scale=24:40:flags=bicubic+accurate_rnd+bitexact+full_chroma_int+full_chroma_inp';
      const { stdout } = await run(
        'ffmpeg',
        [
          '-v',
          'error',
          '-i',
          film,
          '-vf',
          `select=eq(n\\,12),${scale},format=rgb24`,
          '-frames:v',
          '1',
        ].concat(['-f', 'rawvideo', 'pipe:1']),
        { encoding: 'buffer' },
      );
      assert.ok(upright.frames.every((value, i) => Math.abs(value - stdout[i]!) <= 2));
    });

    test('full-range colours are not clipped', { skip: WITHOUT_FFMPEG }, async () => {
      const film = join(scratch, `${backend}-range.mp4`);
      const white = [
        '-f',
        'lavfi',
        '-i',
        'color=white:size=64x64:duration=1',
        '-vf',
        'scale=out_range=full',
      ];
      await ffmpeg(...white, '-c:v', 'libx264', '-qp', '0', '-pix_fmt', 'yuvj420p', film);
      const { frames } = await pool.decode({ path: film, timesSeconds: [0], width: 8, height: 8 });
      assert.ok(frames.every((value) => value >= 254));
      const grey = join(scratch, `${backend}-grey.mp4`);
      await ffmpeg(
        '-f',
        'lavfi',
        '-i',
        'color=0x808080:size=64x64:duration=1',
        '-c:v',
        'libx264',
        '-qp',
        '0',
        grey,
      );
      const limited = await pool.decode({ path: grey, timesSeconds: [0], width: 8, height: 8 });
      assert.ok(limited.frames.every((value) => Math.abs(value - 128) <= 2));
    });

    test(
      'probing tells length, rate, size, codec and sound',
      { skip: WITHOUT_FFMPEG },
      async () => {
        const film = join(scratch, `${backend}-sound.mp4`);
        const inputs = [
          '-f',
          'lavfi',
          '-i',
          'testsrc2=duration=2:size=96x64:rate=30',
          '-f',
          'lavfi',
          '-i',
          'sine=duration=2',
        ];
        await ffmpeg(...inputs, '-c:v', 'libx264', '-pix_fmt', 'yuv420p', film);
        const info = await pool.probe({ path: film });
        assert.ok(Math.abs(info.durationSeconds - 2) < 0.05);
        assert.deepEqual(
          { ...info, durationSeconds: 0 },
          {
            durationSeconds: 0,
            framesPerSecond: 30,
            width: 96,
            height: 64,
            codec: 'h264',
            numStreams: 2,
            hasAudio: true,
            keyFrameSeconds: [0],
          },
        );
      },
    );

    test('what is no video is refused by name', { skip: WITHOUT_FFMPEG }, async () => {
      const [text, empty, sound] = ['text.mp4', 'empty.mp4', 'sound.mp4'].map((name) =>
        join(scratch, name),
      );
      await writeFile(text!, 'this is not a film\n'.repeat(100));
      await writeFile(empty!, '');
      await ffmpeg('-f', 'lavfi', '-i', 'sine=duration=1', sound!);
      const at = (path: string) => ({ path, timesSeconds: [0], width: 8, height: 8 });
      await assert.rejects(pool.decode(at(text!)), failsWith('VIDEO_UNREADABLE'));
      await assert.rejects(pool.decode(at(empty!)), failsWith('VIDEO_UNREADABLE'));
      await assert.rejects(
        pool.decode(at(join(scratch, 'missing.mp4'))),
        failsWith('VIDEO_NOT_FOUND'),
      );
      await assert.rejects(pool.decode(at(sound!)), failsWith('VIDEO_NO_STREAM'));
      await assert.rejects(pool.probe({ path: text! }), failsWith('VIDEO_UNREADABLE'));
    });

    test(
      'a playlist cannot make the decoder open other files',
      { skip: WITHOUT_FFMPEG },
      async () => {
        const film = await makeFilm(join(scratch, `${backend}-secret.mp4`), { seconds: 1 });
        const playlist = join(scratch, `${backend}-list.mp4`);
        await writeFile(playlist, `ffconcat version 1.0\nfile ${film}\n`);
        await assert.rejects(pool.probe({ path: playlist }), failsWith('VIDEO_UNREADABLE'));
        await writeFile(playlist, `#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n${film}\n`);
        await assert.rejects(pool.probe({ path: playlist }), failsWith('VIDEO_UNREADABLE'));
      },
    );

    test(
      'a film cut off anywhere gives its frames or an error, never wrong frames',
      { skip: WITHOUT_FFMPEG },
      async () => {
        const film = await makeFilm(join(scratch, `${backend}-front.mp4`), {
          args: ['-c:v', 'libx264', '-g', '25', '-movflags', '+faststart'],
        });
        const bytes = await readFile(film);
        const times = [0.5, 1.5, 2.5, 3.5];
        const size = { width: 16, height: 16 };
        const whole = await pool.decode({ path: film, timesSeconds: times, ...size });
        let numCut = 0;
        for (let i = 0; i < 10; i++) {
          const cut = join(scratch, `${backend}-cut-${i}.mp4`);
          await writeFile(cut, bytes.subarray(0, Math.floor((bytes.length * i) / 10)));
          for (const [at, seconds] of times.entries()) {
            try {
              const { frames } = await pool.decode({ path: cut, timesSeconds: [seconds], ...size });
              assert.deepEqual(
                frames,
                whole.frames.slice(at * 768, (at + 1) * 768),
                `cut ${i}, ${seconds} s`,
              );
            } catch (error) {
              failsWith('VIDEO_TRUNCATED', 'VIDEO_UNREADABLE', 'VIDEO_DAMAGED')(error);
              numCut += Number(error instanceof DecodeError && error.code === 'VIDEO_TRUNCATED');
            }
          }
        }
        assert.ok(numCut >= 5, `${numCut} told as truncated`);
        assert.equal(pool.stats.numReplaced, 0);
      },
    );
  });
}

test(
  'both backends give the same bytes',
  { skip: withoutFilms || WITHOUT_FFMPEG || !hasNodeAv },
  async () => {
    const pools = await Promise.all(
      backends.map((backend) => openDecoderPool({ numProcesses: 1, backend })),
    );
    try {
      for (const name of ['bikes', 'carphone_pristine']) {
        const request = {
          path: join(filmFolder, `${name}.mp4`),
          timesSeconds: [0.3, 2.2],
          width: 224,
          height: 224,
        };
        const [one, other] = await Promise.all(pools.map((pool) => pool.decode(request)));
        assert.deepEqual(one!.frames, other!.frames);
        assert.deepEqual(one!.ptsSeconds, other!.ptsSeconds);
      }
    } finally {
      await Promise.all(pools.map((pool) => pool.close()));
    }
  },
);

describe('a pool of decoders', { skip: WITHOUT_FFMPEG }, () => {
  let film: string;
  before(async () => {
    film = await makeFilm(join(scratch, 'pool.mp4'), {
      seconds: 20,
      size: '640x360',
      args: ['-c:v', 'libx264', '-preset', 'ultrafast', '-bf', '2', '-g', '1000'],
    });
  });
  const all = (path: string, width = 32) => ({
    path,
    timesSeconds: [5, 10, 19],
    width,
    height: 32,
  });
  const isAlive = (pid: number): boolean => {
    try {
      process.kill(pid, 0);
      return true;
    } catch {
      return false;
    }
  };
  const isGone = async (pid: number): Promise<void> => {
    while (isAlive(pid)) await new Promise((resolve) => setTimeout(resolve, 20));
  };

  test('flipped bytes give the frames or an error, and no process dies', async () => {
    const pool = await openDecoderPool({ numProcesses: 2 });
    try {
      const small = await makeFilm(join(scratch, 'small.mp4'), {
        args: ['-c:v', 'libx264'],
      });
      const bytes = await readFile(small);
      const rng = openRng(3, 'flips');
      const outcomes = await Promise.all(
        Array.from({ length: 30 }, async (_, i) => {
          const damaged = Buffer.from(bytes);
          for (let flips = 0; flips < 8; flips++)
            damaged[rng.integer(bytes.length)]! ^= 1 << rng.integer(8);
          const path = join(scratch, `flipped-${i}.mp4`);
          await writeFile(path, damaged);
          return pool.decode({ path, timesSeconds: [1, 2, 3], width: 32, height: 32 }).then(
            () => 'frames',
            (error: unknown) => (error as DecodeError).code,
          );
        }),
      );
      assert.ok(
        outcomes.every((outcome) => outcome === 'frames' || outcome.startsWith('VIDEO_')),
        outcomes.join(),
      );
      assert.ok(outcomes.includes('VIDEO_DAMAGED'), outcomes.join());
      assert.equal(pool.stats.numReplaced, 0);
    } finally {
      await pool.close();
    }
  });

  test('a decoder killed in flight costs its request one more try and the others nothing', async () => {
    const pool = await openDecoderPool({ numProcesses: 2 });
    try {
      const expected = await pool.decode(all(film));
      const [victim] = pool.pids;
      const requests = Array.from({ length: 6 }, () => pool.decode(all(film)));
      process.kill(victim!, 'SIGKILL');
      for (const { frames } of await Promise.all(requests))
        assert.deepEqual(frames, expected.frames);
      assert.equal(pool.stats.numReplaced, 1);
      assert.ok(!pool.pids.includes(victim!));
    } finally {
      await pool.close();
    }
  });

  test('a request whose decoder is killed again and again fails by name, the next one works', async () => {
    const pool = await openDecoderPool({ numProcesses: 1 });
    try {
      const request = pool.decode(all(film));
      let isOver = false as boolean;
      const outcome = assert.rejects(request, failsWith('DECODER_CRASHED')).finally(() => {
        isOver = true;
      });
      const killed = new Set<number>();
      while (killed.size < 2 && !isOver) {
        // Only processes that work: one that dies while it starts is replaced without counting as a try.
        for (const pid of pool.pids) {
          if (killed.has(pid) || pool.numBusy === 0) continue;
          process.kill(pid, 'SIGKILL');
          killed.add(pid);
        }
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      await outcome;
      assert.equal((await pool.decode(all(film))).ptsSeconds.length, 3);
    } finally {
      await pool.close();
    }
  });

  test('a decoder that hangs is replaced once its time is up', async () => {
    const pool = await openDecoderPool({ numProcesses: 1, timeoutMs: 4000 });
    try {
      const [stopped] = pool.pids;
      process.kill(stopped!, 'SIGSTOP');
      const { frames } = await pool.decode({ ...all(film), timesSeconds: [0] });
      assert.equal(frames.length, 32 * 32 * 3);
      assert.notEqual(pool.pids[0], stopped);
      assert.equal(pool.stats.numReplaced, 1);
    } finally {
      await pool.close();
    }
  });

  test('a film that takes too long is told by name', async () => {
    const pool = await openDecoderPool({ numProcesses: 1, timeoutMs: 1 });
    try {
      await assert.rejects(pool.decode(all(film)), failsWith('VIDEO_TIMEOUT'));
    } finally {
      await pool.close();
    }
  });

  test('an aborted request rejects with the reason; the pool goes on', async () => {
    const pool = await openDecoderPool({ numProcesses: 1 });
    try {
      const controller = new AbortController();
      const [first, second] = [pool.decode(all(film), controller.signal), pool.decode(all(film))];
      controller.abort(new Error('enough'));
      await assert.rejects(first, /enough/);
      assert.equal((await second).ptsSeconds.length, 3);
    } finally {
      await pool.close();
    }
  });

  test('closing ends every process and fails what is under way', async () => {
    const pool = await openDecoderPool({ numProcesses: 2 });
    const { pids } = pool;
    const request = assert.rejects(pool.decode(all(film)), { code: 'DECODER_CLOSED' });
    await pool.close();
    await request;
    assert.deepEqual(pids.filter(isAlive), []);
    await assert.rejects(pool.decode(all(film)), { code: 'DECODER_CLOSED' });
    await pool.close();
  });

  test('decoders end by themselves when their parent is killed', async () => {
    const program = `
      import { openDecoderPool } from ${JSON.stringify(new URL('decoder.ts', import.meta.url).href)};
      openDecoderPool({ numProcesses: 2 }).then((pool) => {
        process.stdout.write(pool.pids.join(' '), () => process.kill(process.pid, 'SIGKILL'));
      });`;
    const file = join(scratch, 'parent.mjs');
    await writeFile(file, program);
    const { stdout } = await run(process.execPath, [
      '--import',
      import.meta.resolve('tsx'),
      file,
    ]).catch((error: unknown) => error as { stdout: string });
    const pids = stdout.split(' ').map(Number);
    assert.equal(pids.length, 2);
    await Promise.all(pids.map(isGone));
  });

  test('without anything to decode with the error says what to install', async () => {
    const path = process.env['PATH'];
    process.env['PATH'] = '/nowhere';
    try {
      await assert.rejects(
        openDecoderPool({ numProcesses: 1, backend: 'ffmpeg' }),
        (error: DecodeError) => {
          assert.equal(error.code, 'DECODER_UNAVAILABLE');
          assert.match(error.message, /npm install node-av/);
          return true;
        },
      );
    } finally {
      process.env['PATH'] = path;
    }
  });

  test(
    'a memory bomb is stopped by the limit and reported',
    { skip: process.platform !== 'linux' },
    async () => {
      const pool = await openDecoderPool({ numProcesses: 1, memoryLimitBytes: 100 * 2 ** 20 });
      try {
        const bomb = { path: film, timesSeconds: [1, 2, 3, 4], width: 8000, height: 4000 };
        await assert.rejects(pool.decode(bomb), failsWith('DECODER_CRASHED', 'VIDEO_TOO_LARGE'));
        await copyFile(film, join(scratch, 'again.mp4'));
        assert.equal((await pool.decode(all(film))).ptsSeconds.length, 3);
      } finally {
        await pool.close();
      }
    },
  );
});
