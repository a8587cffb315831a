import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';

export type NormedConvolutionParams = {
  readonly kernel: tf.Tensor; // [size, size, in, out]
  readonly scale: tf.Tensor; // [out]
  readonly offset: tf.Tensor; // [out]
};

/** Height and width of a kernel, and its channels. */
export interface ConvolutionSizes {
  readonly size: number;
  readonly numIn: number;
  readonly numOut: number;
}

/** Channels that one norm is over come in so many groups. Source: Wu & He 2018, arXiv:1803.08494, sec. 3.1. */
const NUM_GROUPS = 32;
const EPSILON = 1e-5;

export function initNormedConvolution(
  init: Initializer,
  path: string,
  { size, numIn, numOut }: ConvolutionSizes,
): NormedConvolutionParams {
  const std = Math.sqrt(2 / (size * size * numIn));
  return {
    kernel: init.normal(`${path}/kernel`, [size, size, numIn, numOut], std),
    scale: init.fill(`${path}/scale`, [numOut], 1),
    offset: init.fill(`${path}/offset`, [numOut], 0),
  };
}

/**
 * Images [B, H, W, C] through a convolution with standardised weights and a norm over groups of channels: no picture
 * learns anything of the others of its batch, as it would by a batch norm. H and W are divided by `stride`.
 * Source: Qiao et al. 2019, arXiv:1903.10520, sec. 2.
 */
export function normedConvolution(
  { kernel, scale, offset }: NormedConvolutionParams,
  x: tf.Tensor,
  stride = 1,
): tf.Tensor {
  const mean = tf.mean(kernel, [0, 1, 2], true);
  const centred = tf.sub(kernel, mean);
  const variance = tf.mean(tf.square(centred), [0, 1, 2], true);
  const standard = tf.mul(centred, tf.rsqrt(tf.add(variance, EPSILON)));
  const fanIn = kernel.size / kernel.shape[3]!;
  const unit = tf.mul(standard, 1 / Math.sqrt(fanIn));
  const made = tf.conv2d(x as tf.Tensor4D, unit as tf.Tensor4D, stride, 'same');
  return tf.add(tf.mul(groupNormal(made), scale), offset);
}

/** Mean 0 and deviation 1 within each group of channels of each picture. */
function groupNormal(x: tf.Tensor4D): tf.Tensor {
  const [batch, height, width, channels] = x.shape;
  const groups = Math.min(NUM_GROUPS, channels);
  const cut = tf.reshape(x, [batch, height * width, groups, channels / groups]);
  const centred = tf.sub(cut, tf.mean(cut, [1, 3], true));
  const variance = tf.mean(tf.square(centred), [1, 3], true);
  return tf.reshape(tf.mul(centred, tf.rsqrt(tf.add(variance, EPSILON))), x.shape);
}

export type ScaledConvolutionParams = {
  readonly kernel: tf.Tensor; // [size, size, in, out]
  readonly gain: tf.Tensor; // [out]
  readonly bias: tf.Tensor; // [out]
};

/** Of the squares of a kernel's column, once its mean is taken away; as the released code has it. */
const LEAST_SQUARES = 1e-4;

export function initScaledConvolution(
  init: Initializer,
  path: string,
  { size, numIn, numOut }: ConvolutionSizes,
): ScaledConvolutionParams {
  const std = Math.sqrt(1 / (size * size * numIn));
  return {
    kernel: init.normal(`${path}/kernel`, [size, size, numIn, numOut], std),
    gain: init.fill(`${path}/gain`, [numOut], 1),
    bias: init.fill(`${path}/bias`, [numOut], 0),
  };
}

/**
 * Images [B, H, W, C] through a convolution whose weights have mean 0 and squares that sum to 1 for each output, so that
 * what comes out varies as what goes in does and no norm is needed. H and W are divided by `stride`.
 * Source: Brock et al. 2021, arXiv:2101.08692, sec. 4.1 (scaled weight standardization).
 */
export function scaledConvolution(
  { kernel, gain, bias }: ScaledConvolutionParams,
  x: tf.Tensor,
  stride = 1,
): tf.Tensor {
  const centred = tf.sub(kernel, tf.mean(kernel, [0, 1, 2], true));
  const squares = tf.sum(tf.square(centred), [0, 1, 2], true);
  const unit = tf.mul(centred, tf.rsqrt(tf.maximum(squares, LEAST_SQUARES)));
  const scaled = tf.mul<tf.Tensor4D>(unit, gain);
  return tf.add(tf.conv2d(x as tf.Tensor4D, scaled, stride, 'same'), bias);
}
