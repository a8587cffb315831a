import * as tf from '@tensorflow/tfjs-core';
import type { DenseParams } from '../layers/dense.ts';
import type { TensorTree } from '../tree.ts';

/**
 * A model that LoRA, DoRA or VeRA has adapted, with the changes in its kernels: of the same form as before it was
 * adapted, and giving the same.
 */
export function merged(tree: TensorTree): TensorTree {
  if (tree instanceof tf.Tensor) return tree;
  if (Array.isArray(tree)) return (tree as readonly TensorTree[]).map(merged);
  const { lora, scale, ...layer } = tree as DenseParams;
  if (lora !== undefined) {
    const sum = tf.add(layer.kernel, tf.matMul(lora.a, lora.b));
    const kernel = scale === undefined ? sum : tf.mul(sum, tf.expandDims(scale, -2));
    return { ...layer, kernel };
  }
  return Object.fromEntries(
    Object.entries(tree as Readonly<Record<string, TensorTree>>).map(([key, child]) => [
      key,
      merged(child),
    ]),
  );
}
