import * as tf from '@tensorflow/tfjs-core';

/** Rows of a table [V, D] for ids [B, L] (int32): [B, L, D]. */
export function embed(table: tf.Tensor, ids: tf.Tensor): tf.Tensor {
  return tf.reshape(tf.gather(table, tf.reshape(ids, [-1])), [...ids.shape, table.shape[1]!]);
}

/** x [B, L, D] plus the first L rows of a table of positions. */
export function addPositions(x: tf.Tensor, table: tf.Tensor): tf.Tensor {
  const length = x.shape[1]!;
  return tf.add(x, length === table.shape[0] ? table : tf.slice(table, 0, length));
}

/** The same learned vector [D], or several [K, D], in front of every row of x: [B, 1 + L, D], [B, K + L, D]. */
export function prependToken(token: tf.Tensor, x: tf.Tensor): tf.Tensor {
  const [batch, , width] = x.shape as [number, number, number];
  return tf.concat([tf.tile(tf.reshape(token, [1, -1, width]), [batch, 1, 1]), x], 1);
}

/** The same learned vector [D] behind every row of x: [B, L + 1, D]. */
export function appendToken(token: tf.Tensor, x: tf.Tensor): tf.Tensor {
  const [batch, , width] = x.shape as [number, number, number];
  return tf.concat([x, tf.tile(tf.reshape(token, [1, 1, width]), [batch, 1, 1])], 1);
}

/** One position of each row, [B, D]. */
export function tokenAt(x: tf.Tensor, position: number): tf.Tensor {
  const [batch, , width] = x.shape as [number, number, number];
  return tf.reshape(tf.slice(x, [0, position, 0], [-1, 1, -1]), [batch, width]);
}
