import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { UsageError, VideoloomError } from '../../proto/errors.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { clipMedia, writeClip, type ClipFile } from './clip.ts';
import { openEncoder, type EncoderName } from './encode.ts';
import { generateWorld, type WorldManifest, type WorldOptions } from './generate.ts';
import type { GroundTruth } from './ground-truth.ts';
import { COLOUR_NAMES, COLOURS } from './palette.ts';

const hasFfmpeg = ['ffmpeg', 'ffprobe'].every(
  (name) => spawnSync(name, ['-version'], { timeout: 10_000 }).status === 0,
);
const needsFfmpeg = { skip: hasFfmpeg ? false : 'no ffmpeg and ffprobe in PATH to check with' };

const PARAMETERS = { seed: 5, width: 128, height: 128, fps: 24, seconds: 6 };
const BASE = { seed: 5, trainClips: 5, heldOutClips: 2, numProcesses: 2 };
/** Of each twenty clips the one at this index has irregular frame times. */
const IRREGULAR_INDEX = 3;

const root = await temporaryFolder('world');

function hashes(dir: string): Record<string, string> {
  const names = readdirSync(dir, { recursive: true, encoding: 'utf8' }).filter((name) =>
    statSync(join(dir, name)).isFile(),
  );
  return Object.fromEntries(
    names.sort().map((name) => [
      name,
      createHash('sha256')
        .update(readFileSync(join(dir, name)))
        .digest('hex'),
    ]),
  );
}

function truthAt(dir: string, path: string): GroundTruth {
  return JSON.parse(readFileSync(join(dir, `${path}.json`), 'utf8')) as GroundTruth;
}

function run(command: string, parameters: readonly string[]): Buffer {
  const done = spawnSync(command, parameters, { maxBuffer: 2 ** 28, timeout: 60_000 });
  assert.equal(done.status, 0, done.stderr.toString());
  return done.stdout;
}

interface Probe {
  streams: {
    codec_name: string;
    channels?: number;
    has_b_frames?: number;
    duration: string;
    sample_rate?: string;
  }[];
  frames: { pict_type: string; key_frame: number; pts_time: string }[];
}

function probe(path: string): Probe {
  const frames = run('ffprobe', [
    '-v',
    'error',
    '-select_streams',
    'v',
    '-show_frames',
    '-of',
    'json',
    path,
  ]);
  const streams = run('ffprobe', ['-v', 'error', '-show_streams', '-of', 'json', path]);
  return {
    ...(JSON.parse(streams.toString()) as Probe),
    ...(JSON.parse(frames.toString()) as Probe),
  };
}

/** RGB frames as another program decodes and converts them. */
function decodeRgb(path: string, truth: GroundTruth): Buffer[] {
  const bytes = run('ffmpeg', [
    '-v',
    'error',
    '-i',
    path,
    '-fps_mode',
    'passthrough',
    '-f',
    'rawvideo',
    '-pix_fmt',
    'rgb24',
    '-',
  ]);
  const size = truth.width * truth.height * 3;
  assert.equal(bytes.length, size * truth.frames.ptsSeconds.length, 'number of frames');
  return truth.frames.ptsSeconds.map((_, i) => bytes.subarray(i * size, (i + 1) * size));
}

/** Left and right samples as another program decodes them. */
function decodeSound(path: string): [Float32Array, Float32Array] {
  const bytes = run('ffmpeg', ['-v', 'error', '-i', path, '-f', 'f32le', '-ac', '2', '-']);
  const mixed = new Float32Array(
    bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length),
  );
  return [mixed.filter((_, i) => i % 2 === 0), mixed.filter((_, i) => i % 2 === 1)];
}

function checkPictures(path: string, truth: GroundTruth): void {
  const frames = decodeRgb(path, truth);
  let numChecked = 0;
  for (const { id, colour, rgb, track } of truth.objects) {
    for (const [i, visibility] of track.visibility.entries()) {
      if (visibility < 1) continue;
      const [x, y] = track.centers[i]!.map(Math.round) as [number, number];
      const frame = frames[track.firstFrame + i]!;
      const mean = [0, 1, 2].map((channel) => {
        let sum = 0;
        for (let dy = -2; dy <= 2; dy++) {
          for (let dx = -2; dx <= 2; dx++)
            sum += frame[3 * ((y + dy) * truth.width + x + dx) + channel]!;
        }
        return sum / 25;
      });
      const distance = (other: readonly number[]): number =>
        Math.hypot(...mean.map((value, k) => value - other[k]!));
      const nearest = COLOUR_NAMES.toSorted(
        (a, b) => distance(COLOURS[a]) - distance(COLOURS[b]),
      )[0];
      assert.equal(nearest, colour, `${path} ${id} frame ${track.firstFrame + i}`);
      assert.ok(
        distance(rgb) < 35,
        `${path} ${id}: ${mean.map(Math.round).join()} for ${rgb.join()}`,
      );
      numChecked++;
    }
  }
  assert.ok(numChecked > 20, `${numChecked} checked`);
}

/** Energy at a frequency (Goertzel). */
function energyAt(samples: Float32Array, hertz: number, sampleRate: number): number {
  const step = (2 * Math.PI * hertz) / sampleRate;
  let [re, im] = [0, 0];
  samples.forEach((value, i) => {
    re += value * Math.cos(step * i);
    im += value * Math.sin(step * i);
  });
  return re * re + im * im;
}

function checkSound(path: string, truth: GroundTruth): number {
  const [left, right] = decodeSound(path);
  const { sampleRate } = truth.audio;
  let numChecked = 0;
  for (const event of truth.events) {
    const { timeSeconds, sound, type } = event;
    const isAlone = truth.events.every(
      (other) => other === event || Math.abs(other.timeSeconds - timeSeconds) > 0.45,
    );
    if (!isAlone || timeSeconds + sound.seconds > truth.durationSeconds || timeSeconds < 0.05)
      continue;
    const cut = (channel: Float32Array, from: number, to: number): Float32Array =>
      channel.subarray(Math.round(from * sampleRate), Math.round(to * sampleRate));
    const rms = (samples: Float32Array): number => Math.sqrt(energyAtAll(samples) / samples.length);
    const [l, r] = [left, right].map((channel) =>
      cut(channel, timeSeconds, timeSeconds + sound.seconds),
    ) as [Float32Array, Float32Array];
    const pan = Math.atan2(rms(r), rms(l)) / (Math.PI / 4) - 1;
    assert.ok(
      Math.abs(pan - sound.pan) < 0.12,
      `${path} ${event.id} ${type}: pan ${pan}, ${sound.pan}`,
    );

    const louder = rms(l) > rms(r) ? left : right;
    const around = cut(louder, timeSeconds - 0.04, timeSeconds + 0.06);
    const peak = Math.max(...around.map(Math.abs));
    const onset = around.findIndex((value) => Math.abs(value) > 0.25 * peak) / sampleRate - 0.04;
    assert.ok(Math.abs(onset) < 0.012, `${path} ${event.id} ${type}: sounds ${onset} s late`);

    const tone = cut(louder, timeSeconds, timeSeconds + sound.seconds);
    const grid = Array.from({ length: 700 }, (_, i) => 100 + 2 * i);
    const energies = grid.map((hertz) => energyAt(tone, hertz, sampleRate));
    const loudest = grid[energies.indexOf(Math.max(...energies))]!;
    const isRight = sound.frequenciesHz.some(
      (hertz) => Math.abs(loudest - hertz) < Math.max(12, 0.03 * hertz),
    );
    assert.ok(
      isRight,
      `${path} ${event.id} ${type}: ${loudest} Hz, not ${sound.frequenciesHz.join()}`,
    );
    numChecked++;
  }
  return numChecked;
}

function energyAtAll(samples: Float32Array): number {
  return samples.reduce((sum, value) => sum + value * value, 0);
}

function checkContainer(path: string, truth: GroundTruth): void {
  const { streams, frames } = probe(path);
  const [video, audio] = streams;
  assert.equal(video!.codec_name, 'h264');
  assert.ok(video!.has_b_frames! > 0);
  assert.ok(frames.some(({ pict_type }) => pict_type === 'B'));
  assert.deepEqual([audio!.codec_name, audio!.channels, audio!.sample_rate], ['aac', 2, '16000']);
  for (const stream of [video!, audio!]) {
    assert.ok(
      Math.abs(Number(stream.duration) - truth.durationSeconds) < 0.05,
      `${stream.codec_name} ${stream.duration}`,
    );
  }
  assert.equal(frames.length, truth.frames.ptsSeconds.length);
  frames.forEach(({ pts_time }, i) => {
    assert.ok(
      Math.abs(Number(pts_time) - truth.frames.ptsSeconds[i]!) < 1e-4,
      `${path} frame ${i}: ${pts_time}`,
    );
  });
  for (const { firstFrame } of truth.shots)
    assert.equal(frames[firstFrame]!.key_frame, 1, `cut at ${firstFrame}`);
  const bytes = readFileSync(path);
  assert.ok(bytes.indexOf('moov') < bytes.indexOf('mdat'), 'index before the data');
}

describe('a generated world', () => {
  let dir = '';
  const progress: [number, number][] = [];
  before(async () => {
    dir = join(root, 'world');
    const onProgress = (done: number, total: number): void => void progress.push([done, total]);
    const summary = await generateWorld({ dir, ...BASE, onProgress });
    assert.deepEqual([summary.numClips, summary.numGenerated], [7, 7]);
  });

  test('is listed in world.json with sizes and hashes, and nothing else lies there', () => {
    const { files, ...world } = JSON.parse(
      readFileSync(join(dir, 'world.json'), 'utf8'),
    ) as WorldManifest;
    assert.deepEqual(world.splits, { train: { numClips: 5 }, 'held-out': { numClips: 2 } });
    const found = hashes(dir);
    delete found['world.json'];
    assert.deepEqual(Object.fromEntries(files.map(({ path, sha256 }) => [path, sha256])), found);
    for (const { path, sizeBytes } of files)
      assert.equal(statSync(join(dir, path)).size, sizeBytes);
    assert.deepEqual(
      progress,
      Array.from({ length: 8 }, (_, i) => [i, 7]),
    );
  });

  test('has the same bytes whoever makes it', async () => {
    const again = join(root, 'again');
    await generateWorld({ dir: again, ...BASE, numProcesses: 1 });
    assert.deepEqual(hashes(again), hashes(dir));
  });

  test('is left alone when it is complete', async () => {
    const [earlier, times] = [hashes(dir), modified(dir)];
    const summary = await generateWorld({ dir, ...BASE });
    assert.equal(summary.numGenerated, 0);
    assert.deepEqual([hashes(dir), modified(dir)], [earlier, times]);
  });

  test('gets back a file that was lost', async () => {
    const earlier = hashes(dir);
    rmSync(join(dir, 'train/train-0001.vtt'));
    const summary = await generateWorld({ dir, ...BASE });
    assert.equal(summary.numGenerated, 1);
    assert.deepEqual(hashes(dir), earlier);
  });

  test('goes on after an interruption', async () => {
    const cut = join(root, 'cut');
    const controller = new AbortController();
    const onProgress = (done: number): void => {
      if (done === 3) controller.abort(new Error('enough'));
    };
    const options: WorldOptions = { dir: cut, ...BASE };
    await assert.rejects(
      generateWorld({ ...options, onProgress, signal: controller.signal }),
      /enough/,
    );
    assert.ok(!readdirSync(cut).includes('world.json'));
    const summary = await generateWorld(options);
    assert.ok(summary.numGenerated > 0 && summary.numGenerated <= 4, `${summary.numGenerated}`);
    assert.deepEqual(hashes(cut), hashes(dir));
  });

  test('is not mixed with another in one folder', async () => {
    await assert.rejects(
      generateWorld({ dir, ...BASE, seed: 6 }),
      (error: VideoloomError) =>
        error instanceof UsageError && error.code === 'WORLD_EXISTS' && /seed/.test(error.message),
    );
  });

  test('plays as H.264 with B frames and stereo AAC, times as recorded', needsFfmpeg, () => {
    for (const path of [
      'train/train-0000',
      'train/train-0001',
      `train/train-000${IRREGULAR_INDEX}`,
      'held-out/held-out-0000',
    ]) {
      checkContainer(join(dir, `${path}.mp4`), truthAt(dir, path));
    }
  });

  test('has clips with irregular frame times', needsFfmpeg, () => {
    const path = `train/train-000${IRREGULAR_INDEX}`;
    assert.equal(truthAt(dir, path).isConstantFrameRate, false);
    const distances = (name: string): Set<number> => {
      const times = probe(join(dir, `${name}.mp4`)).frames.map(({ pts_time }) => Number(pts_time));
      return new Set(times.slice(1).map((time, i) => Math.round(1000 * (time - times[i]!))));
    };
    assert.ok(distances(path).size > 8);
    assert.ok(distances('train/train-0000').size <= 2); // 41 and 42 ms
  });

  test('shows each object in its colour where the ground truth has it', needsFfmpeg, () => {
    for (const path of [
      'train/train-0000',
      'train/train-0002',
      `train/train-000${IRREGULAR_INDEX}`,
      'held-out/held-out-0001',
    ]) {
      checkPictures(join(dir, `${path}.mp4`), truthAt(dir, path));
    }
  });

  test('sounds at each event, at its time, in its pitch and on its side', needsFfmpeg, () => {
    let numChecked = 0;
    for (let i = 0; i < BASE.trainClips; i++) {
      const path = `train/train-000${i}`;
      numChecked += checkSound(join(dir, `${path}.mp4`), truthAt(dir, path));
    }
    assert.ok(numChecked >= 6, `${numChecked}`);
  });
});

function modified(dir: string): number[] {
  return readdirSync(dir, { recursive: true, encoding: 'utf8' }).map(
    (name) => statSync(join(dir, name)).mtimeMs,
  );
}

const BACKENDS: readonly EncoderName[] = ['node-av', 'ffmpeg'];
for (const name of BACKENDS) {
  test(`the ${name} encoder makes the same bytes twice, with regular and irregular times`, async (context) => {
    let encoder;
    try {
      encoder = await openEncoder(name);
    } catch (error) {
      assert.ok(error instanceof VideoloomError && error.code === 'ENCODER_MISSING', String(error));
      context.skip(error.message);
      return;
    }
    for (const index of [0, IRREGULAR_INDEX]) {
      const place = { split: 'held-out', index } as const;
      const made: ClipFile[][] = [];
      for (const copy of ['a', 'b']) {
        made.push(await writeClip(join(root, `${name}-${copy}`), PARAMETERS, place, encoder));
      }
      assert.deepEqual(made[0], made[1]);
      if (!hasFfmpeg) continue;
      const path = `held-out/held-out-000${index}`;
      const dir = join(root, `${name}-a`);
      checkContainer(join(dir, `${path}.mp4`), truthAt(dir, path));
      checkPictures(join(dir, `${path}.mp4`), truthAt(dir, path));
      checkSound(join(dir, `${path}.mp4`), truthAt(dir, path));
    }
  });

  test(`the ${name} encoder says where it cannot write`, async (context) => {
    const encoder = await openEncoder(name).catch(() => null);
    if (encoder === null) {
      context.skip(`no ${name} on this machine`);
      return;
    }
    const { media } = clipMedia(PARAMETERS, { split: 'train', index: 0 });
    await assert.rejects(
      encoder.encode(media, join(root, 'no', 'such', 'clip.mp4')),
      (error: VideoloomError) => {
        return error.code === 'ENCODE_FAILED' && error.message.includes('clip.mp4');
      },
    );
  });
}

test('options out of range are refused with the value', async () => {
  for (const [wrong, message] of [
    [{ fps: 25 }, /fps is 25/],
    [{ width: 97 }, /width is 97/],
    [{ seconds: 1 }, /seconds is 1/],
    [{ numProcesses: 0 }, /numProcesses is 0/],
    [{ trainClips: -1 }, /trainClips is -1/],
  ] as const) {
    await assert.rejects(generateWorld({ dir: join(root, 'never'), ...BASE, ...wrong }), message);
  }
});
