/** The tower that looks at frames: its fields in recipes, its parameters, and the frames as a program takes them. */
import type * as tf from '@tensorflow/tfjs-core';
import { z } from 'zod';
import { openRng } from '../../proto/random.ts';
import { count } from '../config-fields.ts';
import type { Initializer } from '../initializer.ts';
import { CLIP_VISION } from '../models/clip.ts';
import { initVit, VIT, type VitParams, type VitParts, type VitSizes } from '../models/vit.ts';
import { CLIP_PIXELS, normalizePixels, packPixels } from '../tokens/pixels.ts';
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
  .describe('The vision transformer that looks at each frame');

export type VisionConfig = z.infer<typeof visionFields>;

export function visionSizes(
  { kind, patchSize, width, layers, heads, mlpWidth, epsilon }: VisionConfig,
  frameSize: number,
): VitSizes {
  return {
    ...{ imageSize: frameSize, patchSize, channels: 3, width, mlpWidth },
    ...{ numLayers: layers, numHeads: heads, epsilon },
    activation: kind === 'clip' ? 'quick-gelu' : 'gelu',
  };
}

export function initVision(
  config: VisionConfig,
  frameSize: number,
  { init, path }: { readonly init: Initializer; readonly path: string },
): VitParams {
  const parts = partsOfVision(config);
  return initVit(visionSizes(config, frameSize), init, { parts, path: `${path}/` });
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

/** Patches of a frame. */
export function patchesPerFrame({ patchSize }: VisionConfig, frameSize: number): number {
  return (frameSize / patchSize) ** 2;
}

/** Chosen frames of each row, four bytes in an int32: [B, F S S 3 / 4]. */
export function packedFrames(
  rows: readonly Row[],
  frameSize: number,
  choose: (row: Row, numFrames: number) => readonly number[],
): HostArray {
  const frameBytes = frameSize * frameSize * 3;
  const chosen = rows.map((row) => choose(row, row.frames.length / frameBytes));
  const perRow = chosen[0]?.length ?? 0;
  const bytes = new Uint8Array(rows.length * perRow * frameBytes);
  for (const [i, { frames }] of rows.entries()) {
    for (const [place, frame] of chosen[i]!.entries()) {
      const from = frames.subarray(frame * frameBytes, (frame + 1) * frameBytes);
      bytes.set(from, (i * perRow + place) * frameBytes);
    }
  }
  return { data: packPixels(bytes), shape: [rows.length, (perRow * frameBytes) / 4] };
}

/** One frame, another one each epoch; for {@link packedFrames}. */
export function anyFrame(seed: number, purpose: string) {
  return ({ epoch, number }: Row, numFrames: number): number[] => [
    openRng(seed, `picture/${purpose}`, epoch, number).integer(numFrames),
  ];
}

/** All frames, in their order. */
export function allFrames(_row: Row, numFrames: number): number[] {
  return Array.from({ length: numFrames }, (_, i) => i);
}

/** {@link packedFrames} as the tower takes them, [B F, S, S, 3]. */
export function unpackedFrames(packed: tf.Tensor, frameSize: number): tf.Tensor {
  const numFrames = packed.size / ((frameSize * frameSize * 3) / 4);
  return normalizePixels(packed, [numFrames, frameSize, frameSize, 3], CLIP_PIXELS);
}
