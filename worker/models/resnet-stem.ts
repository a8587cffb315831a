/**
 * The first three stages of a ResNet, with group norms: pictures to a map of a sixteenth of their height and width.
 * Source: He et al. 2016, arXiv:1512.03385, sec. 3.3 and 4.1, with the norms of Zellers et al. 2021, arXiv:2106.02636.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import {
  initNormedConvolution,
  normedConvolution,
  type NormedConvolutionParams,
} from '../layers/convolution.ts';

export type ResNetBlockParams = {
  readonly narrow: NormedConvolutionParams; // 1 x 1
  readonly middle: NormedConvolutionParams; // 3 x 3
  readonly wide: NormedConvolutionParams; // 1 x 1
  /** Where the number of channels changes. */
  readonly shortcut?: NormedConvolutionParams;
};

export type ResNetStemParams = {
  readonly root: NormedConvolutionParams; // 7 x 7
  readonly stages: readonly (readonly ResNetBlockParams[])[];
};

/** Height and width are divided by so much. */
export const STEM_STRIDE = 16;
const ROOT_WIDTH = 64;
const EXPANSION = 4;

/** Channels that a stem of so many stages gives. */
export function stemChannels(blocks: readonly number[]): number {
  return ROOT_WIDTH * 2 ** (blocks.length - 1) * EXPANSION;
}

/** @param blocks of each stage: 3, 4, 9 in MERLOT; 3, 4, 23 in OFA's base size */
export function initResNetStem(
  blocks: readonly number[],
  init: Initializer,
  path: string,
): ResNetStemParams {
  let numIn = ROOT_WIDTH;
  const stages = blocks.map((count, stage) => {
    const width = ROOT_WIDTH * 2 ** stage;
    return Array.from({ length: count }, (_, k): ResNetBlockParams => {
      const at = `${path}/stages/${stage}/${k}`;
      const own = (name: string, size: number, from: number, to: number): NormedConvolutionParams =>
        initNormedConvolution(init, `${at}/${name}`, { size, numIn: from, numOut: to });
      const block = {
        narrow: own('narrow', 1, numIn, width),
        middle: own('middle', 3, width, width),
        wide: own('wide', 1, width, EXPANSION * width),
        ...(k === 0 ? { shortcut: own('shortcut', 1, numIn, EXPANSION * width) } : {}),
      };
      numIn = EXPANSION * width;
      return block;
    });
  });
  const root = { size: 7, numIn: 3, numOut: ROOT_WIDTH };
  return { root: initNormedConvolution(init, `${path}/root`, root), stages };
}

/** Images [B, H, W, 3] to a map [B, H / 16, W / 16, C] for three stages. */
export function resNetStem({ root, stages }: ResNetStemParams, images: tf.Tensor): tf.Tensor {
  const entered = tf.relu(normedConvolution(root, images, 2));
  const pooled: tf.Tensor = tf.maxPool(entered as tf.Tensor4D, 3, 2, 'same');
  return stages.reduce(
    (map, blocks, stage) =>
      blocks.reduce((x, block, k) => bottleneck(block, x, stage > 0 && k === 0 ? 2 : 1), map),
    pooled,
  );
}

function bottleneck(params: ResNetBlockParams, x: tf.Tensor, stride: number): tf.Tensor {
  const { narrow, middle, wide, shortcut } = params;
  const hidden = tf.relu(normedConvolution(narrow, x));
  const seen = tf.relu(normedConvolution(middle, hidden, stride));
  const beside = shortcut === undefined ? x : normedConvolution(shortcut, x, stride);
  return tf.relu(tf.add(normedConvolution(wide, seen), beside));
}
