import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { applyPasses } from '../traced-passes.ts';

export type LayerNormParams = {
  readonly scale: tf.Tensor; // [D]
  readonly offset: tf.Tensor; // [D]
};

export function initLayerNorm(init: Initializer, path: string, width: number): LayerNormParams {
  return {
    scale: init.fill(`${path}/scale`, [width], 1),
    offset: init.fill(`${path}/offset`, [width], 0),
  };
}

/** Over the last axis. Source: Ba et al. 2016, arXiv:1607.06450, sec. 3. */
export function layerNorm(params: LayerNormParams, x: tf.Tensor, epsilon = 1e-5): tf.Tensor {
  return tf.add(tf.mul(standardize(x, epsilon), params.scale), params.offset);
}

/**
 * Rows of mean 0 and variance 1, over the last axis: layer norm without parameters. The gradient is written out: it needs
 * x and two numbers a row, where that of the single operations needs several arrays of the size of x.
 */
export function standardize(x: tf.Tensor, epsilon = 1e-5): tf.Tensor {
  return applyPasses(
    {
      forward() {
        const { centred, inverse } = statisticsOf(x, epsilon);
        return { output: tf.mul(centred, inverse), residuals: [x] };
      },
      backward(dy, [saved]) {
        // A compiler finds that it has them.
        const { centred, inverse } = statisticsOf(saved!, epsilon);
        const normal = tf.mul(centred, inverse);
        const common = tf.mean(dy, -1, true);
        const along = tf.mean(tf.mul(dy, normal), -1, true);
        return [tf.mul(tf.sub(tf.sub(dy, common), tf.mul(normal, along)), inverse)];
      },
    },
    [x],
  );
}

/** x less its row's mean, [..., D], and one over the row's standard deviation, [..., 1]. */
function statisticsOf(x: tf.Tensor, epsilon: number): { centred: tf.Tensor; inverse: tf.Tensor } {
  const centred = tf.sub(x, tf.mean(x, -1, true));
  const variance = tf.mean(tf.square(centred), -1, true);
  return { centred, inverse: tf.rsqrt(tf.add(variance, epsilon)) };
}
