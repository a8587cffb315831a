import * as tf from '@tensorflow/tfjs-core';

/**
 * Tokens at `indices` [B, K] (int32) of x [B, N, ...]: [B, K, ...]. So the compiled step keeps the visible patches
 * alone: its shapes depend on K, which is fixed, and not on which they are.
 */
export function gatherTokens(x: tf.Tensor, indices: tf.Tensor): tf.Tensor {
  const [batch, length, ...rest] = x.shape as [number, number, ...number[]];
  const count = indices.shape[1]!;
  const rows = rowsOfAll(indices, length);
  const flat = tf.reshape(x, [batch * length, ...rest]);
  return tf.reshape(tf.gather(flat, rows), [batch, count, ...rest]);
}

/** Indices [B, K] into rows of `length` each, as indices into all rows one after another: [B K] int32. */
export function rowsOfAll(indices: tf.Tensor, length: number): tf.Tensor1D {
  const [batch, count] = indices.shape as [number, number];
  const offsets = tf.reshape(tf.mul(tf.range(0, batch, 1, 'int32'), tf.scalar(length, 'int32')), [
    batch,
    1,
  ]);
  return tf.cast(tf.reshape(tf.add(indices, offsets), [batch * count]), 'int32');
}
