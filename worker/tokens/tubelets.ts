import * as tf from '@tensorflow/tfjs-core';

/**
 * Frames of a window side by side in the channels, [N T, H, W, C] to [N, H, W, T C], so that a patch of a window is a
 * tubelet: the same place in all of its frames. Source: arXiv:2103.15691 (ViViT), sec. 3.2.
 */
export function tubelets(frames: tf.Tensor, framesPerWindow: number): tf.Tensor {
  if (framesPerWindow === 1) return frames;
  const [numFrames, height, width, channels] = frames.shape as [number, number, number, number];
  const windows = numFrames / framesPerWindow;
  const cut = tf.reshape(frames, [windows, framesPerWindow, height * width, channels]);
  const side = tf.transpose(cut, [0, 2, 1, 3]); // [N, H W, T, C]
  return tf.reshape(side, [windows, height, width, framesPerWindow * channels]);
}
