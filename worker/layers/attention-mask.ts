import * as tf from '@tensorflow/tfjs-core';

/** What is added to a score so that its weight is 0 in float32. */
const HIDDEN = -1e9;

/** Hides padding from everybody: `present` [B, L] (float32, 0 at padding) as a bias of the scores, [B, 1, 1, L]. */
export function keyBias(present: tf.Tensor): tf.Tensor {
  const [batch, length] = present.shape as [number, number];
  return tf.mul(tf.sub(1, tf.reshape(present, [batch, 1, 1, length])), HIDDEN);
}

/** Hides from each position those after it, [1, 1, L, L]. */
export function causalBias(length: number): tf.Tensor {
  return lookBias(length, (from, to) => to <= from);
}

/** A bias of the scores that hides from position `from` what it may not look at, [1, 1, L, L]; a constant. */
export function lookBias(
  length: number,
  mayLook: (from: number, to: number) => boolean,
): tf.Tensor {
  const values = Float32Array.from({ length: length * length }, (_, i) =>
    mayLook(Math.floor(i / length), i % length) ? 0 : HIDDEN,
  );
  return tf.tensor(values, [1, 1, length, length]);
}
