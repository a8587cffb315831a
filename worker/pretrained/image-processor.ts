/** Pictures as a pretrained model takes them: what its `preprocessor_config.json` says is done to them. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import * as z from 'zod';
import { messageOf } from '../../proto/errors.ts';
import { resample, type PictureSize, type ResampleFilter } from '../../video/sampling/resample.ts';
import { count } from './encoder.ts';
import { PretrainedError } from './pretrained-error.ts';

/** By Pillow's numbers. */
const FILTERS: Readonly<Record<number, ResampleFilter>> = {
  1: 'lanczos',
  2: 'bilinear',
  3: 'bicubic',
  4: 'box',
};

const shortestEdge = z.strictObject({ shortest_edge: count });
const both = z.strictObject({ height: count, width: count });
const perChannel = z.array(z.number()).length(3);

/** Older files have one number: of the shorter edge of what is cropped, of both edges else. */
const configSchema = z.object({
  do_resize: z.boolean().default(true),
  size: z.union([shortestEdge, both, count]),
  resample: z.int().min(1).max(4).default(3),
  do_center_crop: z.boolean().default(false),
  crop_size: z.union([both, count]).optional(),
  do_rescale: z.boolean().default(true),
  rescale_factor: z.number().default(1 / 255),
  do_normalize: z.boolean().default(true),
  image_mean: perChannel.default([0.5, 0.5, 0.5]),
  image_std: perChannel.default([0.5, 0.5, 0.5]),
});

/** RGB pixels [H, W, 3] of 8 bits, flat. */
export interface Picture extends PictureSize {
  readonly pixels: Uint8Array;
}

export interface ImageProcessor {
  /** A picture as the model takes it: [H', W', 3] float32, flat. */
  process(picture: Picture): PictureSize & { readonly values: Float32Array };
}

/** @throws PretrainedError `PRETRAINED_UNREADABLE`, `PRETRAINED_CONFIG` for what cannot be done here */
export async function readImageProcessor(folder: string): Promise<ImageProcessor> {
  const file = path.join(folder, 'preprocessor_config.json');
  let config: unknown;
  try {
    config = JSON.parse(await readFile(file, 'utf8'));
  } catch (error) {
    throw new PretrainedError(
      'PRETRAINED_UNREADABLE',
      `${file} cannot be read: ${messageOf(error)}. Give a folder as save_pretrained of an image processor writes it`,
      error,
    );
  }
  return openImageProcessor(config);
}

/**
 * Resizes, crops the middle, scales and normalizes, each if the config says so, with the bits of transformers' own.
 * Source: transformers, image_processing_backends.py (PilBackend) and image_transforms.py.
 *
 * @throws PretrainedError `PRETRAINED_CONFIG`
 */
export function openImageProcessor(config: unknown): ImageProcessor {
  const parsed = configSchema.safeParse(config);
  if (!parsed.success) {
    throw new PretrainedError(
      'PRETRAINED_CONFIG',
      `preprocessor_config.json says what cannot be done here: ${z.prettifyError(parsed.error)}`,
    );
  }
  const given = parsed.data;
  const filter = FILTERS[given.resample]!;
  return {
    process(picture) {
      let now = picture;
      if (given.do_resize) now = resized(now, sizeAfter(now, given), filter);
      if (given.do_center_crop) now = cropped(now, edges(given.crop_size ?? 224));
      return { width: now.width, height: now.height, values: normalized(now.pixels, given) };
    },
  };
}

function edges(size: number | { readonly height: number; readonly width: number }): PictureSize {
  return typeof size === 'number' ? { width: size, height: size } : size;
}

function sizeAfter(
  { width, height }: PictureSize,
  { size, do_center_crop: isCropped }: z.infer<typeof configSchema>,
): PictureSize {
  const shortest =
    typeof size === 'number'
      ? isCropped
        ? size
        : undefined
      : 'shortest_edge' in size
        ? size.shortest_edge
        : undefined;
  if (shortest === undefined) return edges(size as number | { height: number; width: number });
  const longest = Math.trunc((shortest * Math.max(width, height)) / Math.min(width, height));
  return width <= height
    ? { width: shortest, height: longest }
    : { width: longest, height: shortest };
}

function resized(picture: Picture, size: PictureSize, filter: ResampleFilter): Picture {
  const pixels = resample(picture.pixels, picture, size, { filter });
  return { width: size.width, height: size.height, pixels };
}

/** The middle; black around a picture that is smaller. */
function cropped({ pixels, width, height }: Picture, size: PictureSize): Picture {
  const out = new Uint8Array(size.width * size.height * 3);
  const [left, top] = [offset(width, size.width), offset(height, size.height)];
  for (let y = 0; y < size.height; y++) {
    const row = y + top;
    if (row < 0 || row >= height) continue;
    const first = Math.max(0, -left);
    const end = Math.min(size.width, width - left);
    const from = (row * width + left) * 3;
    out.set(pixels.subarray(from + first * 3, from + end * 3), (y * size.width + first) * 3);
  }
  return { width: size.width, height: size.height, pixels: out };
}

/** Where the crop begins in the picture; before it where the picture is smaller. */
function offset(have: number, want: number): number {
  return Math.floor((have - want) / 2);
}

function normalized(pixels: Uint8Array, given: z.infer<typeof configSchema>): Float32Array {
  const scale = given.do_rescale ? given.rescale_factor : 1;
  const [mean, std] = [given.image_mean.map(Math.fround), given.image_std.map(Math.fround)];
  return Float32Array.from(pixels, (value, i) => {
    const scaled = Math.fround(value * scale);
    if (!given.do_normalize) return scaled;
    return Math.fround(scaled - mean[i % 3]!) / std[i % 3]!;
  });
}
