import * as tf from '@tensorflow/tfjs-core';
import { mapTree, type TensorTree } from '../tree.ts';

/** Values that a name and a shape tell, so that a reference in another language makes the same; see its fixture. */
export function formulaTensor(
  name: string,
  shape: readonly number[],
  { scale, mean = 0 }: { readonly scale: number; readonly mean?: number },
): tf.Tensor {
  const seed = Buffer.from(name).reduce((sum, code, i) => sum + code * ((i % 7) + 1), 0);
  const count = shape.reduce((a, b) => a * b, 1);
  const values = Float32Array.from(
    { length: count },
    (_, k) => mean + scale * Math.sin(seed + 1.7 * k + 0.003 * k * k),
  );
  return tf.tensor(values, [...shape]);
}

/** Weights of the same form, none of them as they begin: scales are around 1, others around 0. */
export function formulaWeights<P extends TensorTree>(params: P): P {
  return mapTree(params, ({ shape }, path) =>
    formulaTensor(path, shape, { scale: 0.4, mean: /(\/scale|headScale)$/.test(path) ? 1 : 0 }),
  );
}
