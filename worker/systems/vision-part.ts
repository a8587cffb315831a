/** The tower that looks at frames: its fields in recipes, its parameters, and the frames as a program takes them. */
import type * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { openRng } from '../../proto/random.ts';
import { count } from '../config-fields.ts';
import type { Initializer } from '../initializer.ts';
import { CLIP_VISION } from '../models/clip.ts';
import { initVit, VIT, type VitParams, type VitParts, type VitSizes } from '../models/vit.ts';
import { CLIP_PIXELS, normalizePixels, packPixels } from '../tokens/pixels.ts';
import { tubelets } from '../tokens/tubelets.ts';
import type { HostArray, Row } from './system.ts';

export const visionFields = z
  .strictObject({
    kind: z
      .enum(['vit', 'clip'])
      .describe('clip: without a bias of the patches, with a norm before the blocks'),
    patchSize: count('Height and width of a patch, pixels; divides data.frameSize'),
    width: count('Width of the vision tower'),
    layers: count('Its blocks'),
    heads: count('Its attention heads'),
    mlpWidth: count('Width of its MLPs'),
    epsilon: z
      .number()
      .positive()
      .default(1e-5)
      .describe('Of its norms, as pretrained weights want it'),
  })
  .describe(
    'The vision transformer that looks at each picture: a frame, or the frames of a window',
  );

export type VisionConfig = z.infer<typeof visionFields>;

/**
 * Which frames make a picture: those of a window, of which a patch is a tubelet, the same place in all of them. With one
 * frame a window a picture is a frame. Source: Qwen2-VL, Wang et al. 2024, arXiv:2409.12191, sec. 2.1.
 */
export interface PictureShape {
  readonly frameSize: number;
  readonly framesPerWindow: number;
}

export function visionSizes(
  { kind, patchSize, width, layers, heads, mlpWidth, epsilon }: VisionConfig,
  { frameSize, framesPerWindow }: PictureShape,
): VitSizes {
  return {
    ...{ imageSize: frameSize, patchSize, channels: 3 * framesPerWindow, width, mlpWidth },
    ...{ numLayers: layers, numHeads: heads, epsilon },
    activation: kind === 'clip' ? 'quick-gelu' : 'gelu',
  };
}

export function initVision(
  config: VisionConfig,
  picture: PictureShape,
  { init, path }: { readonly init: Initializer; readonly path: string },
): VitParams {
  const parts = partsOfVision(config);
  return initVit(visionSizes(config, picture), init, { parts, path: `${path}/` });
}

export function partsOfVision({ kind }: VisionConfig): VitParts {
  return kind === 'clip' ? CLIP_VISION : VIT;
}

/** What is wrong with the fields taken together, if anything. */
export function visionFault(
  { patchSize, width, heads }: VisionConfig,
  frameSize: number,
): string | undefined {
  if (frameSize % patchSize !== 0)
    return `data.frameSize (${frameSize}) is not a multiple of model.vision.patchSize (${patchSize})`;
  if (frameSize % 2 !== 0) return `data.frameSize (${frameSize}) is odd`;
  if (width % heads !== 0)
    return `model.vision.width (${width}) is not a multiple of its heads (${heads})`;
  return undefined;
}

/** Patches of a picture. */
export function patchesPerPicture({ patchSize }: VisionConfig, frameSize: number): number {
  return (frameSize / patchSize) ** 2;
}

/** Chosen pictures of each row, four bytes in an int32: [B, N bytes / 4]. */
export function packedPictures(
  rows: readonly Row[],
  shape: PictureShape,
  choose: (row: Row, numPictures: number) => readonly number[],
): HostArray {
  const pictureBytes = bytesOf(shape);
  const chosen = rows.map((row) => choose(row, row.frames.length / pictureBytes));
  const perRow = chosen[0]?.length ?? 0;
  const bytes = new Uint8Array(rows.length * perRow * pictureBytes);
  for (const [i, { frames }] of rows.entries()) {
    for (const [place, picture] of chosen[i]!.entries()) {
      const from = frames.subarray(picture * pictureBytes, (picture + 1) * pictureBytes);
      bytes.set(from, (i * perRow + place) * pictureBytes);
    }
  }
  return { data: packPixels(bytes), shape: [rows.length, (perRow * pictureBytes) / 4] };
}

/** One picture, another one each epoch; for {@link packedPictures}. */
export function anyPicture(seed: number, purpose: string) {
  return ({ epoch, number }: Row, numPictures: number): number[] => [
    openRng(seed, `picture/${purpose}`, epoch, number).integer(numPictures),
  ];
}

/** All pictures, in their order. */
export function allPictures(_row: Row, numPictures: number): number[] {
  return Array.from({ length: numPictures }, (_, i) => i);
}

/** {@link packedPictures} as the tower takes them, [B N, S, S, 3 T]. */
export function unpackedPictures(packed: tf.Tensor, shape: PictureShape): tf.Tensor {
  const { frameSize, framesPerWindow } = shape;
  const numPictures = packed.size / (bytesOf(shape) / 4);
  const frames = normalizePixels(
    packed,
    [numPictures * framesPerWindow, frameSize, frameSize, 3],
    CLIP_PIXELS,
  );
  return tubelets(frames, framesPerWindow);
}

function bytesOf({ frameSize, framesPerWindow }: PictureShape): number {
  return framesPerWindow * frameSize * frameSize * 3;
}
