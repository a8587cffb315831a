/**
 * A ResNet without norms: each block scales what goes through it to variance 1 by a number that is known before training.
 * Source: Brock et al. 2021, arXiv:2101.08692, sec. 3 and 4, and their released code (google-deepmind/deepmind-research,
 * nfnets/nf_resnet.py), without stochastic depth and dropout: training here draws nothing on the device.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import {
  initScaledConvolution,
  scaledConvolution,
  type ScaledConvolutionParams,
} from '../layers/convolution.ts';

export interface NfResNetSizes {
  readonly channels: number;
  /** Channels of the first convolution; stage s gives 4 x 2^s times as many, and narrows to a quarter of that within. */
  readonly width: number;
  /** Blocks of each stage: 3, 4, 6, 3 in NF-ResNet-50. */
  readonly blocks: readonly number[];
}

export type NfResNetBlockParams = {
  readonly narrow: ScaledConvolutionParams; // 1 x 1
  readonly middle: ScaledConvolutionParams; // 3 x 3
  readonly wide: ScaledConvolutionParams; // 1 x 1
  /** Where the number of channels changes. */
  readonly shortcut?: ScaledConvolutionParams; // 1 x 1
  /** What the block adds is multiplied by it: 0 at first (SkipInit). */
  readonly gain: tf.Tensor; // []
};

export type NfResNetParams = {
  readonly root: ScaledConvolutionParams; // 7 x 7
  readonly stages: readonly (readonly NfResNetBlockParams[])[];
};

const EXPANSION = 4;
/** How much of the variance a block adds. */
const ALPHA = 0.2;
/** ReLU of a normal of mean 0 and variance 1, times this, has variance 1: the released code's estimate of 1.7129. */
const RELU_GAIN = 1.7139588594436646;

/** Channels that such a net gives. */
export function nfResNetChannels({ width, blocks }: NfResNetSizes): number {
  return EXPANSION * width * 2 ** (blocks.length - 1);
}

export function initNfResNet(
  { channels, width, blocks }: NfResNetSizes,
  init: Initializer,
  path: string,
): NfResNetParams {
  let numIn = width;
  const stages = blocks.map((count, stage) => {
    const inner = width * 2 ** stage;
    const numOut = EXPANSION * inner;
    return Array.from({ length: count }, (_, k): NfResNetBlockParams => {
      const at = `${path}/stages/${stage}/${k}`;
      const own = (name: string, size: number, from: number, to: number) =>
        initScaledConvolution(init, `${at}/${name}`, { size, numIn: from, numOut: to });
      const block = {
        narrow: own('narrow', 1, numIn, inner),
        middle: own('middle', 3, inner, inner),
        wide: own('wide', 1, inner, numOut),
        ...(k === 0 ? { shortcut: own('shortcut', 1, numIn, numOut) } : {}),
        gain: init.fill(`${at}/gain`, [], 0),
      };
      numIn = numOut;
      return block;
    });
  });
  const root = initScaledConvolution(init, `${path}/root`, {
    ...{ size: 7, numIn: channels, numOut: width },
  });
  return { root, stages };
}

/** Images [B, H, W, C], of variance 1, to one vector each: [B, channels of the last stage]. */
export function nfResNet({ root, stages }: NfResNetParams, images: tf.Tensor): tf.Tensor {
  let x: tf.Tensor = tf.maxPool(scaledConvolution(root, images, 2) as tf.Tensor4D, 3, 2, 'same');
  let variance = 1;
  for (const [stage, blocks] of stages.entries()) {
    for (const [k, block] of blocks.entries()) {
      const stride = stage > 0 && k === 0 ? 2 : 1;
      x = residual(block, x, { stride, deviation: Math.sqrt(variance) });
      // Behind a convolution as shortcut it is 1 again.
      variance = (k === 0 ? 1 : variance) + ALPHA ** 2;
    }
  }
  return tf.mean(activated(x), [1, 2]);
}

function residual(
  { narrow, middle, wide, shortcut, gain }: NfResNetBlockParams,
  x: tf.Tensor,
  { stride, deviation }: { readonly stride: number; readonly deviation: number },
): tf.Tensor {
  const entered = tf.div(activated(x), deviation);
  const beside = shortcut === undefined ? x : scaledConvolution(shortcut, entered, stride);
  const hidden = activated(scaledConvolution(narrow, entered));
  const seen = activated(scaledConvolution(middle, hidden, stride));
  return tf.add(tf.mul(scaledConvolution(wide, seen), tf.mul(gain, ALPHA)), beside);
}

function activated(x: tf.Tensor): tf.Tensor {
  return tf.mul(tf.relu(x), RELU_GAIN);
}
