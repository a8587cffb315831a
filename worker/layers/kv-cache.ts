/** Keys and values of the tokens so far, in slots whose number is fixed, so that every step has the same shapes. */
import * as tf from '@tensorflow/tfjs-core';

/** Of one layer [B, K, S, W], or of all layers [layers, B, K, S, W], for K heads and S slots. */
export type KeyValues = { readonly key: tf.Tensor; readonly value: tf.Tensor };

/** With empty slots behind the filled ones, `numSlots` in all; of all layers. */
export function withEmptySlots({ key, value }: KeyValues, numSlots: number): KeyValues {
  const grown = (x: tf.Tensor): tf.Tensor => {
    const paddings = x.shape.map((size, axis): [number, number] => [
      0,
      axis === SLOT_AXIS ? numSlots - size : 0,
    ]);
    return tf.pad(x, paddings);
  };
  return { key: grown(key), value: grown(value) };
}

/** With `made` [layers, B, K, 1, W] in slot `slot` (a scalar int32). */
export function withSlot(cache: KeyValues, slot: tf.Tensor, made: KeyValues): KeyValues {
  const numSlots = cache.key.shape[SLOT_AXIS]!;
  const isHere = tf.reshape(slotMask(slot, numSlots), [1, 1, 1, numSlots, 1]);
  const put = (x: tf.Tensor, row: tf.Tensor): tf.Tensor => tf.where(isHere, row, x);
  return { key: put(cache.key, made.key), value: put(cache.value, made.value) };
}

/** True at `slot`, [S]. */
export function slotMask(slot: tf.Tensor, numSlots: number): tf.Tensor {
  return tf.equal(tf.range(0, numSlots, 1, 'int32'), slot);
}

/** The rows at `rows` (int32) of the batch; of all layers. */
export function cacheRows({ key, value }: KeyValues, rows: tf.Tensor): KeyValues {
  return { key: tf.gather(key, rows, BATCH_AXIS), value: tf.gather(value, rows, BATCH_AXIS) };
}

const BATCH_AXIS = 1;
const SLOT_AXIS = 3;
