/**
 * Rotary position embedding: pairs of a head's features are turned by angles that grow with the position. Source: Su et
 * al. 2021, arXiv:2104.09864, sec. 3.4; the pairs are (i, i + W/2) as in Hugging Face's LLaMA, not (2i, 2i + 1).
 */
import * as tf from '@tensorflow/tfjs-core';

export interface RopeConfig {
  /** Features of a head, even. */
  readonly headWidth: number;
  /** Base of the wavelengths. */
  readonly theta: number;
  readonly scaling?: RopeScaling;
}

/** How a context longer than the trained one is made of it. */
export type RopeScaling =
  | { readonly kind: 'linear'; readonly factor: number }
  /** Long wavelengths alone are stretched. Source: transformers, modeling_rope_utils.py, `llama3`. */
  | {
      readonly kind: 'llama3';
      readonly factor: number;
      readonly lowFrequencyFactor: number;
      readonly highFrequencyFactor: number;
      readonly originalLength: number;
    };

/** Each [B, 1, L, W/2]. */
export type RopeAngles = { readonly cos: tf.Tensor; readonly sin: tf.Tensor };

/** Radians a position turns each pair of features by, [W/2], in float32 as PyTorch computes them. */
export function ropeFrequencies({ headWidth, theta, scaling }: RopeConfig): Float32Array {
  return Float32Array.from({ length: headWidth / 2 }, (_, i) => {
    const plain = 1 / Math.fround(theta ** Math.fround((2 * i) / headWidth));
    return scaling === undefined ? plain : scaled(Math.fround(plain), scaling);
  });
}

function scaled(frequency: number, scaling: RopeScaling): number {
  if (scaling.kind === 'linear') return frequency / scaling.factor;
  const { factor, lowFrequencyFactor: low, highFrequencyFactor: high, originalLength } = scaling;
  const wavelength = (2 * Math.PI) / frequency;
  if (wavelength < originalLength / high) return frequency;
  if (wavelength > originalLength / low) return frequency / factor;
  const smooth = (originalLength / wavelength - low) / (high - low);
  return ((1 - smooth) * frequency) / factor + smooth * frequency;
}

/** Positions [B, L] (int32) and {@link ropeFrequencies} to the angles there. */
export function ropeAngles(positions: tf.Tensor, frequencies: Float32Array): RopeAngles {
  const [batch, length] = positions.shape as [number, number];
  const angles = tf.mul(
    tf.reshape(tf.cast(positions, 'float32'), [batch, 1, length, 1]),
    tf.reshape(tf.tensor1d(frequencies), [1, 1, 1, -1]),
  );
  return { cos: tf.cos(angles), sin: tf.sin(angles) };
}

/** Queries or keys [B, A, L, W], turned. */
export function applyRope(x: tf.Tensor, { cos, sin }: RopeAngles): tf.Tensor {
  const [first, second] = tf.split(x, 2, -1) as [tf.Tensor, tf.Tensor];
  return tf.concat(
    [
      tf.sub(tf.mul(first, cos), tf.mul(second, sin)),
      tf.add(tf.mul(second, cos), tf.mul(first, sin)),
    ],
    -1,
  );
}
