import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openDecoderPool, type DecodeRequest, type DecoderPool } from './decoder.ts';
import { planFrame, type Framing } from './framing.ts';
import { ffmpeg, makeFilm, WITHOUT_FFMPEG } from '../test/films.ts';

const run = promisify(execFile);

test('cuts are in shown coordinates and whole pixels, fits keep the shape', () => {
  const quarter = { x: 0, y: 0, width: 0.5, height: 0.25 };
  const of = (turns: 0 | 1 | 2 | 3, framing: Partial<Framing>, pixelAspect = 1) => {
    const picture = { width: 160, height: 120, turns, pixelAspect, grid: 2 } as const;
    return planFrame(picture, { width: 64, height: 64, ...framing });
  };
  assert.deepEqual(of(0, { crop: quarter }).source, { x: 0, y: 0, width: 80, height: 30 });
  // Upright it is 120 wide and 160 high: its upper left lies at the lower left of what is coded.
  assert.deepEqual(of(1, { crop: quarter }).source, { x: 0, y: 60, width: 40, height: 60 });
  assert.deepEqual(of(2, { crop: quarter }).source, { x: 80, y: 90, width: 80, height: 30 });
  assert.deepEqual(of(3, { crop: quarter }).source, { x: 120, y: 0, width: 40, height: 60 });
  assert.deepEqual(of(0, { fit: 'cover' }).source, { x: 20, y: 0, width: 120, height: 120 });
  assert.deepEqual(of(0, { fit: 'contain' }).target, { x: 0, y: 8, width: 64, height: 48 });
  assert.deepEqual(of(1, { fit: 'contain' }).target, { x: 8, y: 0, width: 48, height: 64 });
  // Pixels shown half as wide again as high: 240 x 120.
  assert.deepEqual(of(0, { fit: 'contain' }, 1.5).target, { x: 0, y: 16, width: 64, height: 32 });
  assert.deepEqual(of(0, { fit: 'cover' }, 1.5).source, { x: 40, y: 0, width: 80, height: 120 });
  assert.ok(of(0, {}).isWhole && of(0, { fit: 'contain' }).isWhole);
});

/** The same by ffmpeg's own filters, in the order in which they are written. */
const FRAMINGS: Readonly<Record<string, { framing: Partial<Framing>; filters: string }>> = {
  crop: {
    framing: { crop: { x: 0.25, y: 0.1, width: 0.5, height: 0.7 } },
    filters: 'crop=80:84:40:12,scale=48:32',
  },
  'crop and flip': {
    framing: { crop: { x: 0.5, y: 0.5, width: 0.5, height: 0.5 }, flip: true },
    filters: 'crop=80:60:80:60,scale=48:32,hflip',
  },
  cover: { framing: { fit: 'cover' }, filters: 'crop=160:107:0:6:exact=1,scale=48:32' },
  contain: { framing: { fit: 'contain' }, filters: 'scale=43:32,format=rgb24,pad=48:32:2:0' },
};

for (const backend of ['node-av', 'ffmpeg'] as const) {
  describe(`framing with ${backend}`, { skip: WITHOUT_FFMPEG }, () => {
    let pool: DecoderPool;
    let scratch: string;
    let film: string;
    before(async () => {
      scratch = await temporaryFolder('framing');
      film = await makeFilm(join(scratch, 'film.mp4'), { seconds: 1 });
      pool = await openDecoderPool({ numProcesses: 1, backend });
    });
    after(() => pool.close());

    const decode = async (path: string, framing: Partial<DecodeRequest>): Promise<Uint8Array> => {
      const request = { path, timesSeconds: [0.5], width: 48, height: 32, ...framing };
      return (await pool.decode(request)).frames;
    };
    /** The frame shown at 0.5 s. */
    const filtered = async (path: string, filters: string): Promise<Uint8Array> => {
      const flags = 'bicubic+accurate_rnd+bitexact+full_chroma_int+full_chroma_inp';
      const scaled = filters.replace(/scale=\d+:\d+/, (scale) => `${scale}:flags=${flags}`);
      const vf = `select=eq(n\\,12),${scaled},format=rgb24`;
      const args = ['-v', 'error', '-i', path, '-vf', vf, '-frames:v', '1', '-f', 'rawvideo', '-'];
      return (await run('ffmpeg', args, { encoding: 'buffer' })).stdout;
    };
    const assertClose = (
      actual: Uint8Array,
      wanted: Uint8Array,
      what = '',
      tolerance = 2,
    ): void => {
      assert.equal(actual.length, wanted.length);
      const worst = actual.reduce(
        (max, value, i) => Math.max(max, Math.abs(value - wanted[i]!)),
        0,
      );
      assert.ok(worst <= tolerance, `${what} differs by ${worst} of 255`);
    };

    for (const [name, { framing, filters }] of Object.entries(FRAMINGS)) {
      test(`${name} is what ffmpeg's filters make`, async () => {
        assertClose(await decode(film, framing), await filtered(film, filters));
      });
    }

    test('crops of a film turned on its side are of the upright picture', async () => {
      const turned = join(scratch, 'turned.mp4');
      await ffmpeg('-i', film, '-c', 'copy', '-metadata:s:v:0', 'rotate=90', turned);
      const framing = { crop: { x: 0.5, y: 0, width: 0.5, height: 0.5 }, flip: true };
      const wanted = await filtered(turned, 'crop=60:80:60:0,scale=48:32,hflip'); // turns by itself
      // We turn the smaller picture: colour, which has half the resolution, is scaled along other axes.
      assertClose(await decode(turned, framing), wanted, 'turned', 4);
    });

    test('pictures of other pixel formats are cut at the same place', async () => {
      for (const [format, codec] of [
        ['yuv444p', 'libx264'],
        ['yuv422p10le', 'libx264'],
        ['rgb24', 'png'],
        ['gray', 'ffv1'],
      ] as const) {
        const path = join(scratch, `${format}.mkv`);
        await ffmpeg('-i', film, '-c:v', codec, '-pix_fmt', format, path);
        const { framing, filters } = FRAMINGS['crop']!;
        assertClose(await decode(path, framing), await filtered(path, filters), format);
      }
    });
  });
}
