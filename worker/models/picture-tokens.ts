/** How a picture becomes tokens: patches through a linear map, or the map that a ResNet's first stages make of it. */
import type * as tf from '@tensorflow/tfjs-core';
import { reshape } from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { patchesOf } from '../layers/patches.ts';
import { initResNetStem, resNetStem, stemChannels, type ResNetStemParams } from './resnet-stem.ts';

export interface PictureTokenSizes {
  readonly width: number;
  readonly patchSize: number;
  /** Rows, and columns, of tokens. */
  readonly gridSize: number;
  /** Blocks of each stage of the ResNet, whose stride is the patch size; undefined: patches as they are. */
  readonly stem: readonly number[] | undefined;
}

export type PictureTokenParams = {
  readonly stem?: ResNetStemParams;
  readonly projection: DenseParams; // P P 3, or the stem's channels, to D
};

export function initPictureTokens(
  { width, patchSize, stem }: PictureTokenSizes,
  init: Initializer,
  path: string,
): PictureTokenParams {
  const numIn = stem === undefined ? patchSize ** 2 * 3 : stemChannels(stem);
  return {
    ...(stem === undefined ? {} : { stem: initResNetStem(stem, init, `${path}/stem`) }),
    projection: initDense(init, `${path}/projection`, numIn, width),
  };
}

/** Pictures [N, H, W, 3] to tokens, row by row, [N, grid x grid, D]. */
export function pictureTokens(
  { stem, projection }: PictureTokenParams,
  pictures: tf.Tensor,
  { patchSize, gridSize }: PictureTokenSizes,
): tf.Tensor {
  if (stem === undefined) return dense(projection, patchesOf(pictures, patchSize));
  const map = resNetStem(stem, pictures);
  return dense(projection, reshape(map, [pictures.shape[0], gridSize ** 2, -1]));
}
