import * as tf from '@tensorflow/tfjs-core';

import { checkDivisible } from './token-error.ts';

/**
 * Every `group` tokens that follow one another made one, side by side: [B, N, D] to [B, N / group, group D]; a
 * projection to the wanted width follows. The group is consecutive in raster order, so it lies in one row of patches
 * wherever the row's length is a multiple of it.
 *
 * Source: MiniGPT-v2, arXiv:2310.09478, sec. 3.1, and MiniGPT4-Video, arXiv:2404.03413, sec. 3: groups of 4.
 * @throws TokenError `TOKENS_NOT_DIVISIBLE`
 */
export function concatenateTokens(x: tf.Tensor, group: number): tf.Tensor {
  const [batch, numTokens, width] = x.shape as [number, number, number];
  checkDivisible('concatenateTokens, number of tokens', numTokens, group);
  return tf.reshape(x, [batch, numTokens / group, group * width]);
}
