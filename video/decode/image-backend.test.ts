import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { deflateSync } from 'node:zlib';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openDecoderPool, type DecoderPool } from './decoder.ts';

const FIXTURES = new URL('../test/fixtures/', import.meta.url);
/** What Pillow makes of each picture, RGB in base 64. */
const expected = JSON.parse(await readFile(new URL('pictures.json', FIXTURES), 'utf8')) as Record<
  string,
  { width: number; height: number; rgb: string }
>;
const pathOf = (name: string): string => new URL(`pictures/${name}`, FIXTURES).pathname;

describe('pictures', () => {
  let pool: DecoderPool;
  let scratch: string;
  before(async () => {
    scratch = await temporaryFolder('image-backend');
    pool = await openDecoderPool({ numProcesses: 1 });
  });
  after(() => pool.close());

  for (const [name, { width, height, rgb }] of Object.entries(expected)) {
    if (name.includes(' ')) continue; // scaled, see below
    test(`${name} is what Pillow makes of it`, async () => {
      const path = pathOf(name);
      const format = { jpg: 'jpeg', png: 'png', webp: 'webp', gif: 'gif' }[name.split('.')[1]!];
      assert.deepEqual(await pool.probeImage({ path }), { width, height, format });
      const decoded = await pool.decodeImage({ path, width, height });
      assert.deepEqual([...decoded.ptsSeconds], [0]);
      // JPEG leaves the last bit of the inverse DCT open; blending on white may round either way.
      assertClose(
        decoded.frames,
        Buffer.from(rgb, 'base64'),
        /jpg|alpha|palette|webp/.test(name) ? 2 : 0,
      );
    });
  }

  const SCALED = {
    stretch: {},
    cover: { fit: 'cover' },
    crop: { crop: { x: 0.25, y: 0.25, width: 0.5, height: 0.5 } },
  } as const;
  for (const [name, framing] of Object.entries(SCALED)) {
    test(`scaling (${name}) is that of Pillow's cubic filter but for rounding`, async () => {
      const request = { path: pathOf('large.png'), width: 24, height: 24, ...framing };
      const { frames } = await pool.decodeImage(request);
      assertClose(frames, Buffer.from(expected[`large.png ${name}`]!.rgb, 'base64'), 4);
      const flipped = await pool.decodeImage({ ...request, flip: true });
      for (const [i, value] of flipped.frames.entries()) {
        const [row, column, channel] = [Math.floor(i / 72), Math.floor(i / 3) % 24, i % 3];
        assert.equal(value, frames[(row * 24 + 23 - column) * 3 + channel]);
      }
    });
  }

  test('contain leaves black bars on both sides', async () => {
    const request = { path: pathOf('large.png'), width: 32, height: 32, fit: 'contain' } as const;
    const { frames } = await pool.decodeImage(request);
    const inner = await pool.decodeImage({ ...request, height: 24 });
    assert.ok(frames.subarray(0, 4 * 96).every((value) => value === 0));
    assert.deepEqual(frames.subarray(4 * 96, 28 * 96), inner.frames);
    assert.ok(frames.subarray(28 * 96).every((value) => value === 0));
  });

  test('what is cut off, damaged, huge or no picture is refused by name', async () => {
    const size = { width: 8, height: 8 };
    const refuses = async (code: string, name: string, bytes: Uint8Array): Promise<void> => {
      const path = join(scratch, name);
      await writeFile(path, bytes);
      await assert.rejects(
        pool.decodeImage({ path, ...size }),
        (error: Error & { code: string }) => {
          assert.equal(error.code, code, `${name}: ${error.message}`);
          assert.ok(error.message.includes(path));
          return true;
        },
      );
    };
    for (const name of [
      'orientation-1.jpg',
      'cmyk.jpg',
      'large.png',
      'lossless.webp',
      'moving.gif',
    ]) {
      const bytes = await readFile(pathOf(name));
      const cut = bytes.subarray(0, Math.floor(bytes.length * 0.6));
      await refuses('IMAGE_DAMAGED', `cut-${name}`, cut);
    }
    const flipped = Buffer.from(await readFile(pathOf('large.png')));
    flipped[1000]! ^= 0x10;
    await refuses('IMAGE_DAMAGED', 'flipped.png', flipped);
    const jpeg = Buffer.from(await readFile(pathOf('orientation-1.jpg')));
    jpeg.fill(0xff, jpeg.length - 120, jpeg.length - 100);
    await refuses('IMAGE_DAMAGED', 'flipped.jpg', jpeg);
    await refuses('IMAGE_TOO_LARGE', 'bomb.png', pngOfZeros(30_000, 30_000));
    await refuses('IMAGE_UNREADABLE', 'empty.jpg', Buffer.alloc(0));
    await refuses('IMAGE_UNREADABLE', 'text.png', Buffer.from('this is no picture'));
    const svg = '<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>';
    await refuses('IMAGE_UNREADABLE', 'drawing.png', Buffer.from(svg));
    await assert.rejects(pool.probeImage({ path: join(scratch, 'none.png') }), {
      code: 'IMAGE_NOT_FOUND',
    });
    assert.equal(pool.stats.numReplaced, 0);
  });

  test('a picture as large as is decoded fits into the memory of a process', async () => {
    const path = join(scratch, 'large.png');
    await writeFile(path, pngOfZeros(8192, 8192));
    const { frames } = await pool.decodeImage({ path, width: 16, height: 16, fit: 'cover' });
    assert.ok(frames.every((value) => value === 0));
    assert.equal(pool.stats.numReplaced, 0);
  });
});

function assertClose(actual: Uint8Array, wanted: Uint8Array, tolerance: number): void {
  assert.equal(actual.length, wanted.length);
  const worst = actual.reduce((max, value, i) => Math.max(max, Math.abs(value - wanted[i]!)), 0);
  assert.ok(worst <= tolerance, `differs by ${worst} of 255`);
}

/** A grey PNG of one bit a pixel: a few kilobytes for any size. */
function pngOfZeros(width: number, height: number): Buffer {
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head[8] = 1;
  const rows = deflateSync(Buffer.alloc((Math.ceil(width / 8) + 1) * height));
  const chunks = [chunk('IHDR', head), chunk('IDAT', rows), chunk('IEND', Buffer.alloc(0))];
  return Buffer.concat([Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'), ...chunks]);
}

function chunk(kind: string, data: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(kind), data]);
  const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(data.length);
  sum.writeUInt32BE(crc32(body));
  return Buffer.concat([length, body, sum]);
}

/** Source: PNG specification, annex D. */
function crc32(bytes: Buffer): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
