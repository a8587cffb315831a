import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import { openRng } from '../../proto/random.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openDecoderPool, type DecoderPool } from '../decode/decoder.ts';
import { fixedRateTimes, sceneTimes } from './frame-sampler.ts';
import { sceneCuts } from './scene-cuts.ts';
import { ffmpeg, realFilms, WITHOUT_FFMPEG } from '../test/films.ts';

const films = await realFilms();

describe('scene cuts', { skip: WITHOUT_FFMPEG }, () => {
  let pool: DecoderPool;
  let scratch: string;
  before(async () => {
    scratch = await temporaryFolder('scene-cuts');
    pool = await openDecoderPool({ numProcesses: 1 });
  });
  after(() => pool.close());

  async function cutsOf(path: string, framesPerSecond: number): Promise<number[]> {
    const { durationSeconds } = await pool.probe({ path });
    const span = { startSeconds: 0, endSeconds: durationSeconds };
    const timesSeconds = fixedRateTimes(span, { framesPerSecond, maxFrames: 1000 });
    return sceneCuts(await pool.decode({ path, timesSeconds, width: 48, height: 27 }));
  }

  test('are found where films were joined, and nowhere else', async () => {
    // Each moves: a test picture, a zoom, a turning gradient, noise, bars that turn.
    const sources = [
      'testsrc2=size=160x120:rate=25',
      'mandelbrot=size=160x120:rate=25',
      'gradients=size=160x120:rate=25:c0=green:c1=yellow:nb_colors=2:seed=3',
      'color=0x806020:size=160x120:rate=25,noise=alls=40:allf=t',
      'smptebars=size=160x120:rate=25,rotate=t',
    ];
    for (const seed of [1, 2, 3]) {
      const rng = openRng(seed, 'scenes');
      const order = Array.from({ length: 7 }, (_, i) => (i * (1 + (seed % 4)) + seed) % 5);
      const lengths = order.map(() => 1 + rng.integer(50) / 25);
      const args = order.flatMap((source, i) => [
        ...['-f', 'lavfi', '-t', lengths[i]!.toFixed(2), '-i', sources[source]!],
      ]);
      const film = join(scratch, `scenes-${seed}.mp4`);
      const joined = `concat=n=${order.length},format=yuv420p`;
      await ffmpeg(...args, '-filter_complex', joined, '-c:v', 'libx264', film);
      const starts = lengths.map((_, i) => lengths.slice(0, i).reduce((sum, x) => sum + x, 0));
      const expected = starts.slice(1);
      for (const rate of [4, 8]) {
        const cuts = await cutsOf(film, rate);
        assert.equal(cuts.length, expected.length, `${cuts.join()} not ${expected.join()}`);
        for (const [i, cut] of cuts.entries())
          assert.ok(cut > expected[i]! - 0.05 && cut <= expected[i]! + 1 / rate + 0.05);
      }
      const middles = sceneTimes(
        await cutsOf(film, 8),
        { startSeconds: 0, endSeconds: starts.at(-1)! + lengths.at(-1)! },
        100,
      );
      for (const [i, middle] of middles.entries())
        assert.ok(Math.abs(middle - starts[i]! - lengths[i]! / 2) < 0.15);
    }
  });

  test(
    'of a real film are those of ffmpeg',
    { skip: 'skip' in films ? films.skip : false },
    async () => {
      if ('skip' in films) return;
      const film = join(films.folder, 'bikes.mp4');
      const { stderr } = await promisify(execFile)('ffmpeg', [
        ...[
          '-hide_banner',
          '-i',
          film,
          '-vf',
          "select='gt(scene,0.25)',showinfo",
          '-f',
          'null',
          '-',
        ],
      ]);
      const expected = [...stderr.matchAll(/pts_time:([\d.]+)/g)].map(([, time]) => Number(time));
      const cuts = await cutsOf(film, 8);
      assert.ok(expected.length > 0);
      assert.equal(cuts.length, expected.length, `${cuts.join()} not ${expected.join()}`);
      for (const [i, cut] of cuts.entries()) assert.ok(Math.abs(cut - expected[i]!) < 0.17);
    },
  );

  test('are none in a film that stands still or fewer than two frames', () => {
    const [width, height] = [4, 4];
    const frames = new Uint8Array(3 * 48).fill(90);
    const still = { frames, ptsSeconds: Float64Array.of(0, 1, 2), width, height, numDecoded: 3 };
    assert.deepEqual(sceneCuts(still), []);
    const none = { ...still, frames: frames.subarray(0, 0), ptsSeconds: new Float64Array() };
    assert.deepEqual(sceneCuts(none), []);
    const changed = frames.slice();
    changed.fill(200, 96);
    assert.deepEqual(sceneCuts({ ...still, frames: changed }), [2]);
  });
});
