import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { addPositions, prependToken } from '../layers/embedding.ts';
import { encoder, initEncoder, type EncoderSizes } from '../layers/encoder.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import { patchesOf } from '../layers/patches.ts';
import type { BlockParams } from '../layers/transformer-block.ts';
import type { Stacked } from '../tree.ts';

export interface VitSizes extends EncoderSizes {
  /** A border that is left over by whole patches is not seen, as by a convolution; with several moments there is none. */
  readonly imageSize: number;
  readonly patchSize: number;
  readonly channels: number;
  /** Pictures one below the other that make one sequence, as the moments of a clip do; 1 unless given. */
  readonly moments?: number;
}

/** Which of the parts that differ between vision transformers one has. */
export interface VitParts {
  readonly hasClassToken: boolean;
  /** Where there are several class tokens, their number. */
  readonly numClassTokens?: number;
  readonly hasPatchBias: boolean;
  /** A norm before the first block: CLIP's. */
  readonly hasInputNorm: boolean;
}

export const VIT: VitParts = { hasClassToken: true, hasPatchBias: true, hasInputNorm: false };

export type VitParams = {
  readonly patches: DenseParams; // P P C to D
  readonly classToken?: tf.Tensor; // [D], or [K, D] of several
  readonly position: tf.Tensor; // [N, D], those of class tokens first
  readonly inputNorm?: LayerNormParams;
  readonly blocks: Stacked<BlockParams>;
  readonly finalNorm: LayerNormParams;
};

/** Source: Dosovitskiy et al. 2021, arXiv:2010.11929, sec. 3.1. */
export function initVit(
  sizes: VitSizes,
  init: Initializer,
  { parts = VIT, path = '' }: { readonly parts?: VitParts; readonly path?: string } = {},
): VitParams {
  const { width, imageSize, patchSize, channels, moments = 1 } = sizes;
  const { hasClassToken, numClassTokens, hasPatchBias, hasInputNorm } = parts;
  const { kernel, bias } = initDense(init, `${path}patches`, patchSize ** 2 * channels, width);
  const numTokens = hasClassToken ? (numClassTokens ?? 1) : 0;
  const length = moments * Math.floor(imageSize / patchSize) ** 2 + numTokens;
  const tokenShape = numClassTokens === undefined ? [width] : [numClassTokens, width];
  return {
    patches: hasPatchBias ? { kernel, bias: bias! } : { kernel },
    ...(hasClassToken && { classToken: init.normal(`${path}classToken`, tokenShape, 0.02) }),
    position: init.normal(`${path}position`, [length, width], 0.02),
    ...(hasInputNorm && { inputNorm: initLayerNorm(init, `${path}inputNorm`, width) }),
    blocks: initEncoder(init, `${path}blocks`, sizes),
    finalNorm: initLayerNorm(init, `${path}finalNorm`, width),
  };
}

/** What the first block gets of images [B, H, W, C]: [B, N, D]. */
export function vitTokens(
  params: VitParams,
  images: tf.Tensor,
  { patchSize, epsilon }: VitSizes,
  { changePatches }: { readonly changePatches?: (patches: tf.Tensor) => tf.Tensor } = {},
): tf.Tensor {
  const { classToken, position, inputNorm } = params;
  const patches = dense(params.patches, patchesOf(images, patchSize));
  const changed = changePatches === undefined ? patches : changePatches(patches);
  const tokens = classToken === undefined ? changed : prependToken(classToken, changed);
  const placed = addPositions(tokens, position);
  return inputNorm === undefined ? placed : layerNorm(inputNorm, placed, epsilon);
}

/**
 * The states of all tokens, [B, N, D], as the last block leaves them: before the final norm.
 * With fewer layers (`firstLayers`) those of a layer within, such as the second to last.
 */
export function vitStates(
  params: VitParams,
  images: tf.Tensor,
  sizes: VitSizes,
  options: Parameters<typeof vitTokens>[3] = {},
): tf.Tensor {
  return encoder(params.blocks, vitTokens(params, images, sizes, options), sizes);
}

/** The normed states of all tokens, [B, N, D]. */
export function vit(params: VitParams, images: tf.Tensor, sizes: VitSizes): tf.Tensor {
  return layerNorm(params.finalNorm, vitStates(params, images, sizes), sizes.epsilon);
}
