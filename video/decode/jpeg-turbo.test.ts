import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import sharp, { type JpegOptions } from 'sharp';
import type { ImageRequest } from './decoder-backend.ts';
import { placePicture, planFrame, type Framing } from './framing.ts';
import { decodeImageInto } from './image-backend.ts';
import { openJpegTurbo, readPlainJpeg } from './jpeg-turbo.ts';

const OPTIONS = { failOn: 'warning', ignoreIcc: true } as const;
const turbo = openJpegTurbo();
const skip = turbo === undefined && 'libjpeg-turbo is not installed';

/** What sharp alone makes of a picture. */
async function bySharp(bytes: Buffer, framing: Framing): Promise<Uint8Array> {
  const { width, height } = (await sharp(bytes, OPTIONS).metadata()).autoOrient;
  const plan = planFrame({ width, height, turns: 0 }, framing);
  const { x: left, y: top, ...size } = plan.source;
  const image = sharp(bytes, OPTIONS).autoOrient().flatten({ background: '#ffffff' });
  const scaled = await (plan.isWhole ? image : image.extract({ left, top, ...size }))
    .resize({ width: plan.scaledWidth, height: plan.scaledHeight, fit: 'fill', kernel: 'cubic' })
    .toColourspace('srgb')
    .raw({ depth: 'uchar' })
    .toBuffer();
  const frame = new Uint8Array(framing.width * framing.height * 3);
  placePicture(scaled, frame, plan);
  return frame;
}

async function byUs(bytes: Buffer, framing: Framing): Promise<Uint8Array> {
  const request: ImageRequest = { path: 'picture', ...framing };
  const frame = new Uint8Array(framing.width * framing.height * 3).fill(7);
  await decodeImageInto(request, bytes, frame);
  return frame;
}

function encoded(width: number, height: number, options: JpegOptions, isGrey = false) {
  const pixels = Buffer.alloc(width * height * 3);
  for (let i = 0; i < pixels.length; i++) {
    pixels[i] = 128 + 80 * Math.sin(i / 97) + 30 * Math.sin(i / 7) + ((i * 40_503) % 16);
  }
  const image = sharp(pixels, { raw: { width, height, channels: 3 } }).blur(2);
  return (isGrey ? image.greyscale() : image).jpeg({ quality: 90, ...options }).toBuffer();
}

describe('JPEG by libjpeg-turbo', { skip }, () => {
  for (const [name, options, isGrey] of [
    ['4:2:0', {}, false],
    ['4:4:4', { chromaSubsampling: '4:4:4' }, false],
    ['progressive', { progressive: true }, false],
    ['grey', {}, true],
  ] as const) {
    it(`${name}: the pixels are those of sharp, however it is cut and scaled`, async () => {
      for (const [width, height] of [
        [224, 224],
        [501, 389],
        [449, 448],
        [897, 901],
        [32, 1000],
      ] as const) {
        const bytes = await encoded(width, height, options, isGrey);
        assert.deepEqual(readPlainJpeg(bytes), { width, height });
        for (const framing of [
          { width, height },
          { width: width + 5, height: height * 2 },
          { width: 224, height: 224 },
          { width: 112, height: 111 },
          { width: 32, height: 32, flip: true },
          { width: 100, height: 50, fit: 'cover' as const },
          { width: 100, height: 50, fit: 'contain' as const },
          { width: 96, height: 80, crop: { x: 0.1, y: 0.2, width: 0.5, height: 0.6 } },
        ]) {
          assert.ok(
            Buffer.from(await bySharp(bytes, framing)).equals(await byUs(bytes, framing)),
            `${width}x${height} to ${JSON.stringify(framing)}`,
          );
        }
      }
    });
  }

  it('turned by EXIF and CMYK are left to sharp; EXIF that turns nothing is not', async () => {
    const bytes = await encoded(64, 48, {});
    const turned = await sharp(bytes).withMetadata({ orientation: 6 }).jpeg().toBuffer();
    const upright = await sharp(bytes).withMetadata({ orientation: 1 }).jpeg().toBuffer();
    const cmyk = await sharp(bytes).toColourspace('cmyk').jpeg().toBuffer();
    assert.equal(readPlainJpeg(turned), undefined);
    assert.deepEqual(readPlainJpeg(upright), { width: 64, height: 48 });
    assert.equal(readPlainJpeg(cmyk), undefined);
    const framing = { width: 48, height: 64 };
    assert.deepEqual(await byUs(turned, framing), await bySharp(turned, framing));
  });

  it('a damaged picture is refused, or shown, whenever sharp does so', async () => {
    const bytes = await encoded(96, 80, {});
    const framing = { width: 96, height: 80 };
    let state = 7;
    const random = (bound: number): number => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return Math.floor((state / 2 ** 32) * bound);
    };
    let numRefused = 0;
    for (let i = 0; i < 300; i++) {
      const mutant = Buffer.from(bytes);
      for (let k = random(3); k >= 0; k--) mutant[random(mutant.length)]! ^= 1 << random(8);
      const cut = i % 4 === 0 ? mutant.subarray(0, random(mutant.length)) : mutant;
      const theirs = await bySharp(cut, framing).catch(() => undefined);
      const ours = await byUs(cut, framing).catch(() => undefined);
      assert.deepEqual(ours, theirs, `mutant ${i}`);
      if (theirs === undefined) numRefused++;
    }
    assert.ok(numRefused > 30 && numRefused < 290, `${numRefused} of 300 were refused`);
  });
});
