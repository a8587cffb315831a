/**
 * Picture files through sharp (libvips), in the decoder processes, so that a bomb or a fault in a codec costs one file.
 * Colours are what Pillow's `convert('RGB')` gives, on which the field's models are trained: ICC profiles are not
 * applied, CMYK goes by the plain formula, of 16 bits the upper 8 count. Unlike there, what is transparent becomes white.
 */
import sharp, { type Sharp } from 'sharp';
import type { DecodedFrames, ImageInfo, ImageRequest } from './decoder-backend.ts';
import { DecodeError } from './decode-error.ts';
import { placePicture, planFrame, type FramePlan } from './framing.ts';
import { openJpegTurbo, readPlainJpeg, type JpegTurbo } from './jpeg-turbo.ts';
import { placeName, readPlace, type MediaPlace } from './media-place.ts';

/** As a web page shows pictures: dark writing on nothing stays legible. */
const BACKGROUND = '#ffffff';
/** Larger files and pictures are refused before anything is decoded; the memory limit of the process holds them. */
export const MAX_FILE_BYTES = 128 * 2 ** 20;
const MAX_PIXELS = 2 ** 26;
/** Working memory that is kept from one picture to the next. */
const MAX_SCRATCH_BYTES = 16 * 2 ** 20;

sharp.cache(false);
sharp.concurrency(1); // one picture at a time: the pool's processes are the parallelism

const OPTIONS = {
  limitInputPixels: MAX_PIXELS,
  // libjpeg reports damaged pixels as warnings only and goes on with grey or shifted blocks. A picture lost for a
  // harmless warning is counted and replaced; garbage that passes for a picture is trained on.
  failOn: 'warning',
  ignoreIcc: true,
} as const;

/** Opened with the first picture; null where there is none. */
let turbo: JpegTurbo | null | undefined;
let scratch = new Uint8Array(0);

/**
 * @throws DecodeError IMAGE_NOT_FOUND, IMAGE_UNREADABLE (none of the formats), IMAGE_TOO_LARGE, IMAGE_DAMAGED (also if it
 * is cut off).
 */
export async function decodeImage(request: ImageRequest): Promise<DecodedFrames> {
  const bytes = await readImage(request);
  const { width, height } = request;
  const frames = new Uint8Array(width * height * 3);
  await decodeImageInto(request, bytes, frames);
  return { frames, ptsSeconds: Float64Array.of(0), width, height, numDecoded: 1 };
}

/**
 * Decodes a picture's bytes into a frame, RGB [height, width, 3]; what was in it is lost, also when it throws.
 * @throws as `decodeImage`.
 */
export async function decodeImageInto(
  request: ImageRequest,
  bytes: Buffer,
  frame: Uint8Array,
): Promise<void> {
  if (turbo === undefined) turbo = openJpegTurbo() ?? null;
  if (request.fit === 'contain') frame.fill(0);
  if (turbo !== null && (await decodePlainJpeg(turbo, request, bytes, frame))) return;
  const { width, height, isCmyk } = await headOf(request, bytes);
  const plan = planFrame({ width, height, turns: 0 }, request);
  try {
    const image = isCmyk
      ? await openCmyk(bytes)
      : sharp(bytes, OPTIONS).autoOrient().flatten({ background: BACKGROUND });
    placePicture(await scaledCut(image, plan), frame, plan);
  } catch (cause) {
    throw damaged(request, cause);
  }
}

function scaledCut(image: Sharp, { isWhole, source, ...plan }: FramePlan): Promise<Uint8Array> {
  const { x, y, ...size } = source;
  return (isWhole ? image : image.extract({ left: x, top: y, ...size }))
    .resize({ width: plan.scaledWidth, height: plan.scaledHeight, fit: 'fill', kernel: 'cubic' })
    .toColourspace('srgb')
    .raw({ depth: 'uchar' })
    .toBuffer();
}

/** Decodes by libjpeg-turbo and scales as sharp would have; false if that is to do all of it. */
async function decodePlainJpeg(
  decoder: JpegTurbo,
  request: ImageRequest,
  bytes: Buffer,
  frame: Uint8Array,
): Promise<boolean> {
  const picture = readPlainJpeg(bytes);
  if (picture === undefined || picture.width * picture.height > MAX_PIXELS) return false;
  const plan = planFrame({ ...picture, turns: 0 }, request);
  const { source, isWhole, scaledWidth, scaledHeight, target, flip } = plan;
  const isScaled = scaledWidth !== source.width || scaledHeight !== source.height;
  const isFrame = isWhole && !isScaled && !flip && target.width === plan.width;
  if (isFrame) return decoder.decode(bytes, picture, frame.subarray(target.y * plan.width * 3), 1);
  const shrink = isWhole
    ? shrinkOnLoad(picture.width / scaledWidth, picture.height / scaledHeight)
    : 1;
  const width = Math.ceil(picture.width / shrink);
  const height = Math.ceil(picture.height / shrink);
  const numBytes = width * height * 3;
  // Whoever comes while this one is being scaled takes memory of its own.
  const memory = scratch.length >= numBytes ? scratch : new Uint8Array(numBytes);
  scratch = new Uint8Array(0);
  const pixels = memory.subarray(0, numBytes);
  if (!decoder.decode(bytes, picture, pixels, shrink)) return false;
  if (isWhole && !isScaled) placePicture(pixels, frame, plan);
  else {
    const image = sharp(pixels, {
      raw: { width, height, channels: 3 },
      limitInputPixels: MAX_PIXELS,
    });
    // libjpeg makes a pixel of what is left at the edge; libvips leaves that out.
    const kept = {
      width: Math.floor(picture.width / shrink),
      height: Math.floor(picture.height / shrink),
    };
    const isCut = kept.width !== width || kept.height !== height;
    const cut = isCut ? { ...plan, isWhole: false, source: { x: 0, y: 0, ...kept } } : plan;
    placePicture(await scaledCut(image, cut), frame, plan);
  }
  if (memory.length <= MAX_SCRATCH_BYTES) scratch = memory;
  return true;
}

/** By how much sharp has libjpeg itself shrink a picture. Source: sharp 0.35, src/pipeline.cc, "shrink-on-load". */
function shrinkOnLoad(shrinkX: number, shrinkY: number): 1 | 2 | 4 | 8 {
  const shrink = Math.min(shrinkX, shrinkY);
  const power = shrink >= 8 ? 8 : shrink >= 4 ? 4 : shrink >= 2 ? 2 : 1;
  // Where it would leave nothing to scale, one step less, because libjpeg rounds.
  return (power > 1 && Math.floor(shrink) === power ? power / 2 : power) as 1 | 2 | 4 | 8;
}

/** Reads the head only. @throws as `decodeImage`. */
export async function probeImage(place: MediaPlace): Promise<ImageInfo> {
  const { width, height, format } = await headOf(place, await readImage(place));
  return { width, height, format };
}

/** @throws DecodeError IMAGE_NOT_FOUND, IMAGE_UNREADABLE, IMAGE_TOO_LARGE */
export function readImage(place: MediaPlace): Promise<Buffer> {
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
