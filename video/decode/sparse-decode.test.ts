/** Frames picked out of a film are those of a decode of all of it, whatever was left out on the way. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import { openRng } from '../../proto/random.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openDecoderPool, type DecoderPool } from './decoder.ts';
import { ffmpeg, makeFilm, WITHOUT_FFMPEG } from '../test/films.ts';

const run = promisify(execFile);
const hasNodeAv = await import('node-av/lib').then(
  () => true,
  () => false,
);
const HAS_GPU = existsSync('/dev/nvidia0');
const SIZE = { width: 48, height: 32 };
const FRAME_BYTES = SIZE.width * SIZE.height * 3;
const SCALE = `scale=${SIZE.width}:${SIZE.height}:flags=bicubic+accurate_rnd+bitexact+full_chroma_int+full_chroma_inp`;

interface WholeFilm {
  readonly frames: Buffer;
  /** When each is shown, on the file's own clock. */
  readonly ptsSeconds: readonly number[];
}

/** All of a film by ffmpeg's own program, nothing left out. */
async function decodeAll(film: string): Promise<WholeFilm> {
  const [{ stdout: frames }, { stdout: text }] = await Promise.all([
    run(
      'ffmpeg',
      [
        ...['-v', 'error', '-i', film, '-map', '0:v:0', '-vsync', 'passthrough'],
        ...['-vf', `${SCALE},format=rgb24`, '-f', 'rawvideo', 'pipe:1'],
      ],
      { encoding: 'buffer', maxBuffer: 2 ** 30 },
    ),
    run('ffprobe', [
      ...['-v', 'error', '-select_streams', 'v:0', '-show_entries'],
      ...['frame=best_effort_timestamp_time', '-of', 'csv=p=0', film],
    ]),
  ]);
  const times = text.split('\n').filter((line) => /^(?:-?\d|N\/A)/.test(line));
  assert.equal(frames.length, times.length * FRAME_BYTES);
  // In AVI the last pictures have none.
  const ptsSeconds = times.filter((line) => !line.startsWith('N/A')).map(parseFloat);
  return { frames, ptsSeconds };
}

/** Sparse, dense and repeated times, ascending. */
function drawTimes(seed: number, name: string, durationSeconds: number): number[][] {
  const rng = openRng(seed, name);
  const span = (count: number, from: number, to: number): number[] =>
    Array.from({ length: count }, () => from + rng.uniform() * (to - from)).sort((a, b) => a - b);
  const start = rng.uniform() * durationSeconds * 0.8;
  return [
    span(1, 0, durationSeconds),
    span(8, 0, durationSeconds),
    span(12, start, start + 0.5), // more times than frames
    span(60, 0, durationSeconds),
  ];
}

const X264 = ['-c:v', 'libx264', '-preset', 'fast'];
/** `dropped`: whether its headers tell pictures that nothing refers to. */
const FILMS: Readonly<Record<string, { args: readonly string[]; dropped: boolean }>> = {
  'gop-12.mp4': { args: [...X264, '-g', '12', '-bf', '3'], dropped: true },
  'gop-250.mp4': { args: [...X264, '-g', '250', '-bf', '3'], dropped: true },
  'no-b.mp4': { args: [...X264, '-g', '48', '-bf', '0'], dropped: false },
  'flat-b.mp4': {
    args: [...X264, '-g', '100', '-bf', '7', '-b_strategy', '0', '-x264-params', 'b-pyramid=none'],
    dropped: true,
  },
  'pyramid.mp4': {
    args: [...X264, '-bf', '8', '-b_strategy', '0', '-x264-params', 'b-pyramid=strict:keyint=60'],
    dropped: true,
  },
  'many-refs.mkv': {
    args: [
      ...X264,
      '-bf',
      '5',
      '-b_strategy',
      '0',
      '-x264-params',
      'b-pyramid=normal:ref=8:direct=temporal:weightp=2',
    ],
    dropped: true,
  },
  'open-gop.mp4': {
    args: [...X264, '-x264-params', 'open-gop=1:keyint=20:bframes=4'],
    dropped: true,
  },
  'slices.ts': {
    args: [...X264, '-g', '25', '-bf', '3', '-x264-params', 'slices=4'],
    dropped: true,
  },
  'fields.mp4': {
    args: [...X264, '-bf', '3', '-x264-params', 'interlaced=1', '-flags', '+ildct+ilme'],
    dropped: false,
  },
  'variable-rate.mp4': {
    args: [...X264, '-vf', "select='not(mod(n\\,5))+lt(mod(n\\,17)\\,6)'", '-vsync', 'vfr'],
    dropped: true,
  },
  'ten-bits.mp4': { args: [...X264, '-pix_fmt', 'yuv420p10le', '-bf', '3'], dropped: true },
  'hevc.mp4': {
    args: ['-c:v', 'libx265', '-preset', 'ultrafast', '-x265-params', 'log-level=none:bframes=4'],
    dropped: true,
  },
};

/** The share of the frames that were decoded for eight of them, at most. */
async function compareWith(
  pool: DecoderPool,
  film: string,
  name: string,
  zeroSeconds: number,
): Promise<number> {
  const whole = await decodeAll(film);
  const shown = whole.ptsSeconds.map((seconds) => seconds - zeroSeconds);
  let numDecoded = 0;
  for (const seed of [1, 2, 3]) {
    for (const timesSeconds of drawTimes(seed, name, shown.at(-1)! + 0.02)) {
      const { frames, ptsSeconds, ...rest } = await pool.decode({
        ...{ path: film, timesSeconds, ...SIZE },
      });
      for (const [slot, seconds] of timesSeconds.entries()) {
        const at = Math.max(
          0,
          shown.findLastIndex((pts) => pts <= seconds + 1e-6),
        );
        assert.ok(Math.abs(ptsSeconds[slot]! - shown[at]!) < 1e-5, `${seconds} s`);
        const [ours, theirs] = [frames, whole.frames].map((all, i) =>
          all.subarray((i ? at : slot) * FRAME_BYTES, ((i ? at : slot) + 1) * FRAME_BYTES),
        );
        assert.equal(Buffer.compare(ours!, theirs!), 0, `seed ${seed}, ${seconds} s`);
      }
      if (timesSeconds.length === 8) numDecoded = Math.max(numDecoded, rest.numDecoded);
    }
  }
  return numDecoded / shown.length;
}

describe('sparse decoding', { skip: WITHOUT_FFMPEG || (!hasNodeAv && 'needs node-av') }, () => {
  let pool: DecoderPool;
  let scratch: string;
  before(async () => {
    scratch = await temporaryFolder('sparse-decode');
    pool = await openDecoderPool({ numProcesses: 1, backend: 'node-av' });
  });
  after(() => pool.close());

  const compare = (film: string, name: string, zeroSeconds: number): Promise<number> =>
    compareWith(pool, film, name, zeroSeconds);

  for (const [name, { args, dropped }] of Object.entries(FILMS)) {
    test(`frames of ${name} are those of a full decode`, async () => {
      const film = await makeFilm(join(scratch, name), { seconds: 6, args });
      const zero = name.endsWith('.ts') ? (await decodeAll(film)).ptsSeconds[0]! : 0;
      const share = await compare(film, name, zero);
      assert.ok(dropped ? share < 0.9 : share <= 1, `${share} of the frames decoded`);
    });
  }

  test('an edit list that starts between key frames is kept', async () => {
    const whole = await makeFilm(join(scratch, 'whole.mp4'), {
      seconds: 6,
      args: [...X264, '-g', '40', '-bf', '4'],
    });
    const film = join(scratch, 'edited.mp4');
    await ffmpeg('-ss', '2.3', '-i', whole, '-c', 'copy', film);
    await compare(film, 'edited', 0);
  });

  test(
    'NVDEC gives the frames of the CPU',
    { skip: !HAS_GPU && 'needs an NVIDIA GPU' },
    async () => {
      const film = await makeFilm(join(scratch, 'gpu.mp4'), {
        ...{ seconds: 6, size: '320x240' },
        args: [...X264, '-g', '48', '-bf', '3'],
      });
      const onGpu = await openDecoderPool({ numProcesses: 1, backend: 'node-av', device: 'cuda' });
      try {
        for (const timesSeconds of drawTimes(1, 'gpu', 6)) {
          const request = { path: film, timesSeconds, ...SIZE };
          const [ours, theirs] = await Promise.all([pool.decode(request), onGpu.decode(request)]);
          assert.deepEqual(theirs.ptsSeconds, ours.ptsSeconds);
          assert.deepEqual(theirs.frames, ours.frames);
        }
      } finally {
        await onGpu.close();
      }
    },
  );

  test('a GPU that is not there is told by name', { skip: HAS_GPU && 'there is one' }, async () => {
    for (const backend of ['auto', 'node-av', 'ffmpeg'] as const) {
      await assert.rejects(openDecoderPool({ numProcesses: 1, backend, device: 'cuda' }), {
        code: 'DECODER_UNAVAILABLE',
        message: /device cuda: .*or decode on the CPU/,
      });
    }
  });

  for (const name of ['long.mp4', 'long.mkv']) {
    test(`key frames of ${name} are reached by seeking`, async () => {
      const film = await makeFilm(join(scratch, name), {
        ...{ seconds: 90, rate: 10, size: '64x48' },
        args: [...X264, '-g', '120', '-bf', '3', '-force_key_frames', '0,21,48,52'],
      });
      const share = await compare(film, 'long', 0);
      assert.ok(share < 0.6, `${share} of the frames decoded`);
    });
  }

  for (const [name, args] of Object.entries({
    'keys.mp4': [],
    'keys.mkv': [],
    'keys.ts': [],
    'keys.avi': ['-c:v', 'mpeg4', '-g', '30'],
    'fragments.mp4': ['-movflags', 'frag_keyframe+empty_moov'],
    'open-keys.mp4': ['-x264-params', 'open-gop=1:keyint=33:bframes=4'],
    'all-keys.mp4': ['-g', '1'],
  })) {
    test(`the key frames of ${name} are found by every backend as ffprobe sees them`, async () => {
      const film = await makeFilm(join(scratch, name), {
        ...{ seconds: 20, size: '64x48' },
        args: name.endsWith('avi') ? args : [...X264, '-g', '47', '-bf', '3', ...args],
      });
      const { stdout } = await run('ffprobe', [
        ...['-v', 'error', '-select_streams', 'v:0', '-skip_frame', 'nokey', '-show_entries'],
        ...['frame=best_effort_timestamp_time:stream=start_time', '-of', 'json', film],
      ]);
      const { frames, streams } = JSON.parse(stdout) as {
        frames: { best_effort_timestamp_time: string }[];
        streams: { start_time: string }[];
      };
      const start = Number(streams[0]!.start_time);
      const expected = frames.map(
        ({ best_effort_timestamp_time: seconds }) => Number(seconds) - start,
      );
      assert.ok(expected.length > 5);
      const other = await openDecoderPool({ numProcesses: 1, backend: 'ffmpeg' });
      try {
        for (const each of [pool, other]) {
          const { keyFrameSeconds } = await each.probe({ path: film });
          assert.equal(keyFrameSeconds.length, expected.length, each.backend);
          for (const [i, seconds] of keyFrameSeconds.entries())
            assert.ok(Math.abs(seconds - expected[i]!) < 2e-5, `${seconds} not ${expected[i]!}`);
        }
      } finally {
        await other.close();
      }
    });
  }
});

/** Pictures are decoded seconds before others that are shown earlier: 8 B pictures in a row, at 2 frames a second. */
const B_PICTURES = [...X264, '-bf', '8', '-x264-params', 'b-adapt=0:b-pyramid=normal:scenecut=0'];
const SLOW_FILMS: Readonly<Record<string, Parameters<typeof makeFilm>[1]>> = {
  'slow.mp4': { seconds: 20, rate: 2, args: B_PICTURES },
  'slow.mkv': { seconds: 20, rate: 2, args: B_PICTURES },
  // Packets without presentation times.
  'slow.avi': { seconds: 20, rate: 2, args: B_PICTURES },
  'slowest.avi': { seconds: 100, rate: 0.2, args: B_PICTURES },
  'slowest.mp4': { seconds: 100, rate: 0.2, args: B_PICTURES },
  // On average there are 14 frames a second, at the end one in two seconds.
  'slow-end.mp4': {
    ...{ seconds: 30, rate: 20 },
    args: ['-vf', "select='lt(t,14)+not(mod(n,40))'", '-vsync', 'vfr', ...B_PICTURES],
  },
};

describe('few frames a second, by the program ffmpeg', { skip: WITHOUT_FFMPEG }, () => {
  let pool: DecoderPool;
  let scratch: string;
  before(async () => {
    scratch = await temporaryFolder('slow-films');
    pool = await openDecoderPool({ numProcesses: 1, backend: 'ffmpeg' });
  });
  after(() => pool.close());

  for (const [name, film] of Object.entries(SLOW_FILMS)) {
    test(`frames of ${name} are those of a full decode`, async () => {
      await compareWith(pool, await makeFilm(join(scratch, name), film), name, 0);
    });
  }
});
