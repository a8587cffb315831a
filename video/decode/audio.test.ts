import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { whisperLogMel } from '../audio/log-mel.ts';
import { DecodeError, openDecoderPool, type DecoderPool } from './decoder.ts';
import { isFileFault } from '../loading/file-fault.ts';
import { ffmpeg, makeFilm, WITHOUT_FFMPEG } from '../test/films.ts';
import { writeClip } from '../world/clip.ts';
import { openEncoder } from '../world/encode.ts';
import type { GroundTruth } from '../world/ground-truth.ts';

const RATE = 16_000;
const SECONDS = 6;
/** A tone that rises: no two moments sound alike, so that a shift by one sample shows. */
const at = (seconds: number): number =>
  seconds < 0 || seconds >= SECONDS
    ? 0
    : 0.5 * Math.sin(2 * Math.PI * (200 * seconds + 150 * seconds ** 2));
const CHIRP = `0.5*sin(2*PI*(200*t+150*t*t))`;

const scratch = await temporaryFolder('audio');

/** How far the sound from `startSeconds` on is from what it ought to be, leaving out what is near the sound's ends. */
function errorOf(samples: Float32Array, startSeconds: number, shift = 0): number {
  let [sum, count] = [0, 0];
  for (const [i, value] of samples.entries()) {
    const seconds = startSeconds + (i + shift) / RATE;
    if (Math.abs(seconds) < 0.05 || Math.abs(seconds - SECONDS) < 0.05) continue;
    sum += (value - at(seconds)) ** 2;
    count++;
  }
  return Math.sqrt(sum / count);
}

/** The least of the errors when the sound may be off by up to so many samples. */
function leastError(samples: Float32Array, startSeconds: number, maxShift: number): number {
  const shifts = Array.from({ length: 2 * maxShift + 1 }, (_, i) => i - maxShift);
  return Math.min(...shifts.map((shift) => errorOf(samples, startSeconds, shift)));
}

for (const backend of ['node-av', 'ffmpeg'] as const) {
  describe(`sound with ${backend}`, { skip: WITHOUT_FFMPEG }, () => {
    let pool: DecoderPool;
    before(async () => {
      pool = await openDecoderPool({ numProcesses: 1, backend });
    });
    after(() => pool.close());
    const decode = (path: string, startSeconds: number, endSeconds: number) =>
      pool.decodeAudio({ path, startSeconds, endSeconds, sampleRate: RATE, channels: 1 });

    // AAC's encoder puts 1024 samples in front, which an edit list takes off again.
    const ENCODINGS: Readonly<Record<string, readonly string[]>> = {
      'aac.mp4': ['-c:v', 'libx264', '-g', '40', '-c:a', 'aac', '-b:a', '192k'],
      'pcm.mkv': ['-c:v', 'libx264', '-c:a', 'pcm_s16le'],
      'flac.ogg': ['-vn', '-c:a', 'flac'],
    };
    for (const [name, args] of Object.entries(ENCODINGS)) {
      test(`spans of ${name} begin with the right sample`, async () => {
        const path = join(scratch, `${backend}-${name}`);
        const inputs = [
          'testsrc2=duration=6:size=64x48',
          `aevalsrc='${CHIRP}|${CHIRP}':s=44100:d=6`,
        ];
        await ffmpeg(...inputs.flatMap((input) => ['-f', 'lavfi', '-i', input]), ...args, path);
        for (const [start, end] of [
          [0, 1],
          [1.2345, 2],
          [4.1, 4.6],
          [-0.5, 0.5],
          [5.5, 7],
          [8, 8.25],
        ] as const) {
          const samples = await decode(path, start, end);
          assert.equal(samples.length, Math.round((end - start) * RATE));
          const first = Math.round(start * RATE) / RATE;
          // The ffmpeg program takes Matroska's clock of milliseconds at its word behind a seek.
          const slack = backend === 'ffmpeg' && name.endsWith('mkv') ? 16 : 0;
          const error = leastError(samples, first, slack);
          assert.ok(error < (slack > 0 ? 0.15 : 0.004), `${start}: ${error}`);
          if (end <= SECONDS) assert.ok(errorOf(samples, first, slack + 1) > 0.02);
        }
        // Spans lie on one grid: what is asked for together and apart is the same.
        const [whole, part] = await Promise.all([decode(path, 3, 5), decode(path, 4, 4.5)]);
        const overlap = whole.subarray(RATE, 1.5 * RATE);
        if (backend === 'ffmpeg') return; // resamples from where it seeks to
        const worst = part.reduce(
          (max, value, i) => Math.max(max, Math.abs(value - overlap[i]!)),
          0,
        );
        assert.ok(worst < 1e-5, `${worst}`);
      });
    }

    test('channels are mixed without getting louder; what is not there is silence', async () => {
      const path = join(scratch, `${backend}-stereo.wav`);
      await ffmpeg('-f', 'lavfi', '-i', "aevalsrc='0.8|0.4':s=16000:d=1", path);
      const samples = await decode(path, -0.5, 1.5);
      assert.ok(samples.subarray(8000, 24_000).every((value) => Math.abs(value - 0.6) < 1e-3));
      assert.ok(samples.subarray(0, 8000).every((value) => value === 0));
      assert.ok(samples.subarray(24_000).every((value) => value === 0));
      assert.equal((await decode(path, 0.5, 0.5)).length, 0);
      await assert.rejects(decode(path, 1, 0), RangeError);
      // More than memory is for: a fault of the film, which costs its clip and no run.
      await assert.rejects(decode(path, 0, 70 * 60), (error: unknown) => {
        assert.ok(error instanceof DecodeError && isFileFault(error));
        assert.equal(error.code, 'AUDIO_TOO_LONG');
        for (const part of [path, '0 to 4200 s', 'at most 4194 s', 'data.clipSeconds'])
          assert.ok(error.message.includes(part), error.message);
        return true;
      });
    });

    test('sound that begins after the pictures begins with silence', async () => {
      const path = join(scratch, `${backend}-late.mp4`);
      await ffmpeg(
        ...['-f', 'lavfi', '-i', 'testsrc2=duration=3:size=64x48'],
        ...['-itsoffset', '1', '-f', 'lavfi', '-i', `aevalsrc='${CHIRP}':s=48000:d=2`],
        ...['-c:v', 'libx264', '-c:a', 'aac', path],
      );
      const samples = await decode(path, 0, 2);
      assert.ok(samples.subarray(0, 0.98 * RATE).every((value) => Math.abs(value) < 1e-3));
      // FFmpeg's muxer rounds a late start to a millisecond.
      assert.ok(leastError(samples.subarray(1.1 * RATE), 0.1, 16) < 0.05);
    });

    test('a file without sound and one that is cut off say so', async () => {
      const silent = await makeFilm(join(scratch, `${backend}-silent.mp4`), { seconds: 1 });
      await assert.rejects(decode(silent, 0, 1), { code: 'AUDIO_NO_STREAM' });
      const path = join(scratch, `${backend}-front.mp4`);
      const sine = ['-f', 'lavfi', '-i', `sine=duration=${SECONDS}`];
      await ffmpeg(...sine, '-c:a', 'aac', '-movflags', '+faststart', path);
      const bytes = await readFile(path);
      const cut = join(scratch, `${backend}-cut.mp4`);
      await writeFile(cut, bytes.subarray(0, bytes.length * 0.6));
      assert.deepEqual(await decode(cut, 1, 2), await decode(path, 1, 2));
      await assert.rejects(decode(cut, 5, 6), { code: 'AUDIO_TRUNCATED' });
      const inside = { path, range: { offset: 0, sizeBytes: bytes.length }, channels: 1 } as const;
      const span = { startSeconds: 1, endSeconds: 2, sampleRate: RATE };
      assert.deepEqual(await pool.decodeAudio({ ...inside, ...span }), await decode(path, 1, 2));
    });
  });
}

test('the events of the demo world are heard when they happen', async () => {
  const world = { seed: 5, width: 64, height: 64, fps: 24, seconds: 6 };
  const place = { split: 'train', index: 0 } as const;
  await writeClip(scratch, world, place, await openEncoder());
  const base = join(scratch, 'train', 'train-0000');
  const { events } = JSON.parse(await readFile(`${base}.json`, 'utf8')) as GroundTruth;
  const pool = await openDecoderPool({ numProcesses: 1 });
  try {
    const samples = await pool.decodeAudio({
      ...{ path: `${base}.mp4`, startSeconds: 0, endSeconds: world.seconds },
      ...{ sampleRate: RATE, channels: 1 },
    });
    const features = whisperLogMel(samples, { numMels: 80 }); // a frame's middle is 10 ms times its number
    const numFrames = features.length / 80;
    assert.ok(events.length >= 5);
    for (const [i, { timeSeconds, sound }] of events.entries()) {
      const previousEnd = Math.max(
        0,
        ...events.slice(0, i).map((e) => e.timeSeconds + e.sound.seconds),
      );
      const band = melBandOf(sound.frequenciesHz[0]!);
      const levels = features.subarray(band * numFrames, (band + 1) * numFrames);
      const [before, onset] = [
        levels[Math.floor(timeSeconds * 100) - 3]!,
        levels[Math.ceil(timeSeconds * 100) + 2]!,
      ];
      // 0.25 is a factor of ten in power. Where another sound still rings, only that this one is there.
      if (timeSeconds - 0.03 > previousEnd)
        assert.ok(onset - before > 0.25, `${timeSeconds}: ${before} to ${onset}`);
      const loudest = Math.max(
        ...Array.from(
          { length: 80 },
          (_, mel) => features[mel * numFrames + Math.ceil(timeSeconds * 100) + 3]!,
        ),
      );
      assert.ok(loudest - onset < 0.75, `${timeSeconds}: ${loudest} above ${onset}`);
    }
  } finally {
    await pool.close();
  }
});

/** Of Whisper's 80 bands to 8 kHz the one that a frequency below 1 kHz or a little above is in. */
function melBandOf(hertz: number): number {
  const toMel = (hz: number): number =>
    hz < 1000 ? (3 * hz) / 200 : 15 + (27 * Math.log(hz / 1000)) / Math.log(6.4);
  return Math.round((toMel(hertz) / toMel(8000)) * 81) - 1;
}
