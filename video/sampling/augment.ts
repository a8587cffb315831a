/** Random changes to a clip's frames that leave its words true. Drawn by counters: who draws them, and when, is all one. */
import { openRng, type Rng } from '../../proto/random.ts';
import type { Crop, Framing } from '../decode/framing.ts';

export interface AugmentOptions {
  /** The crop is the largest square, whatever `scale` and `ratio`. */
  readonly isSquare?: boolean;
  /** Share of the picture's area that the crop has, least and most; 0.08 to 1 by default. */
  readonly scale?: readonly [number, number] | undefined;
  /** Width over height of the crop in pixels, least and most; 3/4 to 4/3 by default. */
  readonly ratio?: readonly [number, number];
  /** 0.5 by default. Nothing is mirrored where the words tell left from right, see {@link tellsSides}. */
  readonly flipProbability?: number;
}

/** What is drawn for: one place of a run's data. The same for all frames of the clip. */
export interface AugmentKey {
  readonly seed: number;
  readonly epoch: number;
  /** The sample's row. */
  readonly sample: number;
}

/** The crop and flip of a clip whose frames have this size as shown; part of a DecodeRequest. */
export function augmentClip(
  key: AugmentKey,
  clip: { readonly width: number; readonly height: number; readonly text: string },
  options: AugmentOptions = {},
): Required<Pick<Framing, 'crop' | 'flip'>> {
  const rng = openRng(key.seed, 'augment', key.epoch, key.sample);
  const crop = (options.isSquare ? randomSquare : randomResizedCrop)(
    clip,
    rng.fork('crop'),
    options,
  );
  const isDrawn = rng.fork('flip').uniform() < (options.flipProbability ?? 0.5);
  return { crop, flip: isDrawn && !tellsSides(clip.text) };
}

/** Whether English words tell left from right, so that they are wrong of the mirrored picture. */
export function tellsSides(text: string): boolean {
  return /\b(left|right|clockwise|anticlockwise|counterclockwise)/i.test(text);
}

const MAX_DRAWS = 10;

/**
 * A crop of random area and shape at a random place, in whole pixels; after ten that do not fit, the largest in the
 * middle whose shape is allowed. Source: torchvision `RandomResizedCrop.get_params`, after Szegedy et al. 2015,
 * arXiv:1409.4842, sec. 6.
 */
export function randomResizedCrop(
  { width, height }: { readonly width: number; readonly height: number },
  rng: Rng,
  { scale = [0.08, 1], ratio = [3 / 4, 4 / 3] }: AugmentOptions = {},
): Crop {
  const [low, high] = [Math.log(ratio[0]), Math.log(ratio[1])];
  for (let i = 0; i < MAX_DRAWS; i++) {
    const area = width * height * (scale[0] + rng.uniform() * (scale[1] - scale[0]));
    const shape = Math.exp(low + rng.uniform() * (high - low));
    const [w, h] = [Math.round(Math.sqrt(area * shape)), Math.round(Math.sqrt(area / shape))];
    if (w < 1 || w > width || h < 1 || h > height) continue;
    const y = rng.integer(height - h + 1);
    const x = rng.integer(width - w + 1);
    return fractions({ x, y, w, h }, width, height);
  }
  const shape = Math.min(ratio[1], Math.max(ratio[0], width / height));
  const w = width / height > shape ? Math.round(height * shape) : width;
  const h = width / height < shape ? Math.round(width / shape) : height;
  const [x, y] = [Math.floor((width - w) / 2), Math.floor((height - h) / 2)];
  return fractions({ x, y, w, h }, width, height);
}

/** The largest square, at a random place, in whole pixels. Source: Radford et al. 2021, arXiv:2103.00020, sec. 2.3. */
function randomSquare(
  { width, height }: { readonly width: number; readonly height: number },
  rng: Rng,
): Crop {
  const side = Math.min(width, height);
  const [x, y] = [rng.integer(width - side + 1), rng.integer(height - side + 1)];
  return fractions({ x, y, w: side, h: side }, width, height);
}

function fractions(
  { x, y, w, h }: { x: number; y: number; w: number; h: number },
  width: number,
  height: number,
): Crop {
  return { x: x / width, y: y / height, width: w / width, height: h / height };
}
