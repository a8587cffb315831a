/** Which rows of a global batch belong together, by numbers that they bring along. */
import * as tf from '@tensorflow/tfjs-core';

/**
 * Numbers of rows, [G, K] or [G], float32 because that is what rows are exchanged in. Rows belong together where all K
 * are equal: one number of float32 has 24 bits, too few to tell apart the texts of a large batch.
 */
export type GroupIds = tf.Tensor;

/** 1 where a row of `some`, [c, K] or [c], belongs to one of `all`, [G, K] or [G]: [c, G]; no gradient. */
export function belongTogether(some: GroupIds, all: GroupIds): tf.Tensor {
  const same = tf.customGrad((...given) => {
    const [own, others] = given as tf.Tensor[];
    const [rows, columns] = [asRows(own!), tf.transpose(asRows(others!))];
    const equal = Array.from({ length: rows.shape[1] }, (_, k) =>
      tf.cast(
        tf.equal(tf.slice(rows, [0, k], [-1, 1]), tf.slice(columns, [k, 0], [1, -1])),
        'float32',
      ),
    );
    const value = equal.reduce((both, next) => tf.mul(both, next));
    return { value, gradFunc: () => [tf.zerosLike(own!), tf.zerosLike(others!)] };
  });
  return same(some, all);
}

/** 1 where the row of `some` belongs to the row of `others` at its place: [c]; no gradient is asked. */
export function belongsToOwn(some: GroupIds, others: GroupIds): tf.Tensor {
  return tf.min(tf.cast(tf.equal(asRows(some), asRows(others)), 'float32'), -1);
}

function asRows(ids: GroupIds): tf.Tensor2D {
  return tf.reshape(ids, [ids.shape[0], -1]);
}
