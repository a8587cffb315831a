import * as tf from '@tensorflow/tfjs-core';

/** Images [B, H, W, C] as flat patches of P x P pixels, row by row, [B, N, P P C]. H and W divide by P. */
export function patchesOf(images: tf.Tensor, size: number): tf.Tensor {
  const [batch, height, width, channels] = images.shape as [number, number, number, number];
  const [rows, columns] = [height / size, width / size];
  const cut = tf.reshape(images, [batch, rows, size, columns, size, channels]);
  const turned = tf.transpose(cut, [0, 1, 3, 2, 4, 5]); // [B, rows, columns, P, P, C]
  return tf.reshape(turned, [batch, rows * columns, size * size * channels]);
}
