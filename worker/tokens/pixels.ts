import * as tf from '@tensorflow/tfjs-core';

/** Mean and standard deviation of each channel, of pixels in [0, 1]. */
export interface PixelStatistics {
  readonly mean: readonly [number, number, number];
  readonly std: readonly [number, number, number];
}

/** Source: Radford et al. 2021, arXiv:2103.00020, the released preprocessing. */
export const CLIP_PIXELS: PixelStatistics = {
  mean: [0.48145466, 0.4578275, 0.40821073],
  std: [0.26862954, 0.26130258, 0.27577711],
};

/** Source: google/siglip-base-patch16-224, preprocessor_config.json: pixels from -1 to 1. */
export const SIGLIP_PIXELS: PixelStatistics = { mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] };

/**
 * RGB bytes as the device takes them: four in an int32, little-endian, so that a quarter of what float32 takes goes
 * over. The number of bytes must divide by 4.
 */
export function packPixels(bytes: Uint8Array): Int32Array {
  if (bytes.length % 4 !== 0) {
    throw new RangeError(`${bytes.length} bytes are no whole number of int32`);
  }
  return bytes.byteOffset % 4 === 0
    ? new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
    : new Int32Array(bytes.slice().buffer);
}

/**
 * Packed pixels to what a model takes, inside of the compiled step: (pixel / 255 - mean) / std.
 * @param packed int32, as many as {@link packPixels} made
 * @param shape of the pixels, [..., 3]
 */
export function normalizePixels(
  packed: tf.Tensor,
  shape: readonly number[],
  { mean, std }: PixelStatistics,
): tf.Tensor {
  return tf.tidy(() => {
    const flat = tf.reshape(packed, [-1]);
    const byteAt = (place: number): tf.Tensor =>
      tf.mod(tf.floorDiv(flat, tf.scalar(place, 'int32')), tf.scalar(256, 'int32'));
    const bytes = tf.stack([1, 2 ** 8, 2 ** 16, 2 ** 24].map(byteAt), 1);
    const pixels = tf.cast(tf.reshape(bytes, [...shape]), 'float32');
    const scale = std.map((deviation) => 1 / (255 * deviation));
    const shift = mean.map((value, channel) => -value / std[channel]!);
    return tf.add(tf.mul(pixels, tf.tensor1d(scale)), tf.tensor1d(shift));
  });
}
