import * as tf from '@tensorflow/tfjs-core';

import { checkDivisible, TokenError } from './token-error.ts';

/** Tokens of a clip, numbered frame by frame, row by row. */
export interface TokenGrid {
  readonly frames: number;
  readonly height: number;
  readonly width: number;
}

export function numCells({ frames, height, width }: TokenGrid): number {
  return frames * height * width;
}

/**
 * Means over windows of each frame: [B, T H W, D] to [B, T (H / h) (W / w), D]. The windows do not overlap.
 *
 * @throws TokenError `TOKENS_SHAPE_MISMATCH`, `TOKENS_NOT_DIVISIBLE`
 */
export function poolSpace(
  x: tf.Tensor,
  grid: TokenGrid,
  window: { readonly height: number; readonly width: number },
): tf.Tensor {
  const [batch, width] = sizesOf(x, grid);
  checkDivisible('poolSpace, height of the grid', grid.height, window.height);
  checkDivisible('poolSpace, width of the grid', grid.width, window.width);
  // Axis by axis: the arrays stay of rank 4, and each mean reads what lies together.
  const rows = batch * grid.frames * (grid.height / window.height);
  const across = meanOver(x, [rows, window.height, grid.width * width]);
  const down = meanOver(across, [rows * (grid.width / window.width), window.width, width]);
  const numTokens = numCells(grid) / (window.height * window.width);
  return tf.reshape(down, [batch, numTokens, width]);
}

/**
 * Means over runs of `numFrames` frames, place by place: [B, T H W, D] to [B, (T / numFrames) H W, D].
 *
 * @throws TokenError `TOKENS_SHAPE_MISMATCH`, `TOKENS_NOT_DIVISIBLE`
 */
export function poolTime(x: tf.Tensor, grid: TokenGrid, numFrames: number): tf.Tensor {
  const [batch, width] = sizesOf(x, grid);
  checkDivisible('poolTime, number of frames', grid.frames, numFrames);
  const frame = grid.height * grid.width * width;
  const pooled = meanOver(x, [batch * (grid.frames / numFrames), numFrames, frame]);
  return tf.reshape(pooled, [batch, numCells(grid) / numFrames, width]);
}

function meanOver(x: tf.Tensor, shape: [outer: number, averaged: number, inner: number]) {
  return tf.mean(tf.reshape(x, shape), 1);
}

function sizesOf(x: tf.Tensor, grid: TokenGrid): [batch: number, width: number] {
  const [batch, numTokens, width] = x.shape as [number, number, number];
  if (numTokens === numCells(grid)) return [batch, width];
  const { frames, height, width: columns } = grid;
  throw new TokenError(
    'TOKENS_SHAPE_MISMATCH',
    `There are ${numTokens} tokens, but a grid of ${frames} frames of ${height} x ${columns} has ${numCells(grid)}. ` +
      'Cut off [CLS] and text tokens before.',
  );
}
