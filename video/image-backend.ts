/**
 * Picture files through sharp (libvips), in the decoder processes, so that a bomb or a fault in a codec costs one file.
 * Colours are what Pillow's `convert('RGB')` gives, on which the field's models are trained: ICC profiles are not
 * applied, CMYK goes by the plain formula, of 16 bits the upper 8 count. Unlike there, what is transparent becomes white.
 */
import sharp, { type Sharp } from 'sharp';
import type { DecodedFrames, ImageInfo, ImageRequest } from './decoder-backend.ts';
import { DecodeError } from './decode-error.ts';
import { placePicture, planFrame } from './framing.ts';
import { placeName, readPlace, type MediaPlace } from './media-place.ts';

/** As a web page shows pictures: dark writing on nothing stays legible. */
const BACKGROUND = '#ffffff';
/** Larger files and pictures are refused before anything is decoded; the memory limit of the process holds them. */
const MAX_FILE_BYTES = 128 * 2 ** 20;
const MAX_PIXELS = 2 ** 26;

sharp.cache(false);
sharp.concurrency(1); // one picture at a time: the pool's processes are the parallelism

const OPTIONS = {
  limitInputPixels: MAX_PIXELS,
  // libjpeg reports damaged pixels as warnings only and goes on with grey or shifted blocks. A picture lost for a
  // harmless warning is counted and replaced; garbage that passes for a picture is trained on.
  failOn: 'warning',
  ignoreIcc: true,
} as const;

/**
 * @throws DecodeError IMAGE_NOT_FOUND, IMAGE_UNREADABLE (none of the formats), IMAGE_TOO_LARGE, IMAGE_DAMAGED (also if it
 * is cut off).
 */
export async function decodeImage(request: ImageRequest): Promise<DecodedFrames> {
  const bytes = await readImage(request);
  const { width, height, isCmyk } = await headOf(request, bytes);
  const plan = planFrame({ width, height, turns: 0 }, request);
  try {
    let image = isCmyk
      ? await openCmyk(bytes)
      : sharp(bytes, OPTIONS).autoOrient().flatten({ background: BACKGROUND });
    if (!plan.isWhole) {
      const { x, y, ...size } = plan.source;
      image = image.extract({ left: x, top: y, ...size });
    }
    const size = { width: plan.scaledWidth, height: plan.scaledHeight };
    const scaled = await image
      .resize({ ...size, fit: 'fill', kernel: 'cubic' })
      .toColourspace('srgb')
      .raw({ depth: 'uchar' })
      .toBuffer();
    const frames = new Uint8Array(plan.width * plan.height * 3);
    placePicture(scaled, frames, plan);
    return {
      frames,
      ptsSeconds: Float64Array.of(0),
      width: plan.width,
      height: plan.height,
      numDecoded: 1,
    };
  } catch (cause) {
    throw damaged(request, cause);
  }
}

/** Reads the head only. @throws as `decodeImage`. */
export async function probeImage(place: MediaPlace): Promise<ImageInfo> {
  const { width, height, format } = await headOf(place, await readImage(place));
  return { width, height, format };
}

function readImage(place: MediaPlace): Promise<Buffer> {
  return readPlace(place, MAX_FILE_BYTES, {
    missing: 'IMAGE_NOT_FOUND',
    tooLarge: 'IMAGE_TOO_LARGE',
    unreadable: 'IMAGE_UNREADABLE',
  });
}

async function headOf(
  place: MediaPlace,
  bytes: Buffer,
): Promise<ImageInfo & { readonly isCmyk: boolean }> {
  const format = formatOf(bytes);
  if (!format) {
    throw new DecodeError(
      'IMAGE_UNREADABLE',
      place.path,
      `${placeName(place)} is no picture in JPEG, PNG, WebP or GIF`,
    );
  }
  const head = await sharp(bytes, { ...OPTIONS, limitInputPixels: false })
    .metadata()
    .catch((cause: unknown) => {
      throw damaged(place, cause);
    });
  const { width, height } = head.autoOrient;
  if (width * height > MAX_PIXELS) {
    throw new DecodeError(
      'IMAGE_TOO_LARGE',
      place.path,
      `${placeName(place)} has ${width}x${height} pixels; at most ${MAX_PIXELS} are decoded`,
    );
  }
  return { width, height, format, isCmyk: head.space === 'cmyk' };
}

/** By its first bytes: libvips knows other formats too, some of which (SVG) can name files. */
function formatOf(bytes: Buffer): ImageInfo['format'] | undefined {
  const head = bytes.toString('latin1', 0, 12);
  if (head.startsWith('\xff\xd8\xff')) return 'jpeg';
  if (head.startsWith('\x89PNG\r\n\x1a\n')) return 'png';
  if (/^GIF8[79]a/.test(head)) return 'gif';
  return /^RIFF[^]{4}WEBP$/.test(head) ? 'webp' : undefined;
}

/** Red, green and blue are what cyan, magenta and yellow leave of the light, times what black leaves of it. */
async function openCmyk(bytes: Buffer): Promise<Sharp> {
  const { data, info } = await sharp(bytes, OPTIONS)
    .autoOrient()
    .pipelineColourspace('cmyk')
    .toColourspace('cmyk')
    .raw()
    .toBuffer({ resolveWithObject: true });
  const rgb = new Uint8Array((data.length / 4) * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    const light = 255 - data[from + 3]!;
    for (let i = 0; i < 3; i++) rgb[to++] = Math.round(((255 - data[from + i]!) * light) / 255);
  }
  return sharp(rgb, { raw: { width: info.width, height: info.height, channels: 3 } });
}

function damaged(place: MediaPlace, cause: unknown): DecodeError {
  const [reason = ''] = (cause as Error).message.split('\n');
  const [code, what] = /memory/i.test(reason)
    ? (['IMAGE_TOO_LARGE', 'takes more memory than a decoder may have'] as const)
    : (['IMAGE_DAMAGED', 'is damaged or cut off'] as const);
  return new DecodeError(code, place.path, `${placeName(place)} ${what}: ${reason}`, cause);
}
