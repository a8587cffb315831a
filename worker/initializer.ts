import * as tf from '@tensorflow/tfjs-core';
import { openRng } from '../proto/random.ts';
import type { Initializer } from './models/layers.ts';

/**
 * Initial weights as a function of (seed, path): the same on every worker, whatever else the model has.
 * Normals are redrawn beyond two standard deviations, as BERT's are (Devlin et al. 2019, appendix A.2).
 */
export function openInitializer(seed: number): Initializer {
  return {
    normal(path, shape, std) {
      const rng = openRng(seed, `init/${path}`);
      const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
      for (let i = 0; i < values.length; i++) {
        let value = rng.normal();
        while (Math.abs(value) > 2) value = rng.normal();
        values[i] = value * std;
      }
      return tf.tensor(values, [...shape]);
    },
    fill: (_path, shape, value) => tf.fill([...shape], value),
  };
}
