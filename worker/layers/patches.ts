import * as tf from '@tensorflow/tfjs-core';

/**
 * Images [B, H, W, C] as flat patches of P x P pixels, row by row, [B, N, P P C]. What whole patches leave over at the
 * right and the bottom is left out.
 */
export function patchesOf(images: tf.Tensor, size: number): tf.Tensor {
  const [batch, height, width, channels] = images.shape as [number, number, number, number];
  const [rows, columns] = [Math.floor(height / size), Math.floor(width / size)];
  const isWhole = rows * size === height && columns * size === width;
  const whole = isWhole
    ? images
    : tf.slice(images, [0, 0, 0, 0], [batch, rows * size, columns * size, channels]);
  const cut = tf.reshape(whole, [batch, rows, size, columns, size, channels]);
  const turned = tf.transpose(cut, [0, 1, 3, 2, 4, 5]); // [B, rows, columns, P, P, C]
  return tf.reshape(turned, [batch, rows * columns, size * size * channels]);
}
