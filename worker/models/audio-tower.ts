/**
 * A transformer over a log-mel spectrogram: each token is all bands of some frames. Like AST (Gong et al. 2021,
 * arXiv:2104.01778), of which ImageBind's audio encoder is one, but that its patches are as high as the spectrogram.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { addPositions } from '../layers/embedding.ts';
import { encoder, initEncoder, type EncoderSizes } from '../layers/encoder.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import type { BlockParams } from '../layers/transformer-block.ts';
import type { Stacked } from '../tree.ts';

export interface AudioSizes extends EncoderSizes {
  readonly numMels: number;
  readonly numFrames: number;
  /** Tokens that the frames are shared out to; divides them. */
  readonly numSegments: number;
}

export type AudioTowerParams = {
  readonly segments: DenseParams;
  readonly position: tf.Tensor; // [S, D]
  readonly blocks: Stacked<BlockParams>;
  readonly finalNorm: LayerNormParams;
};

export function initAudioTower(sizes: AudioSizes, init: Initializer, path = ''): AudioTowerParams {
  const { numMels, numFrames, numSegments, width } = sizes;
  return {
    segments: initDense(init, `${path}segments`, (numMels * numFrames) / numSegments, width),
    position: init.normal(`${path}position`, [numSegments, width], 0.02),
    blocks: initEncoder(init, `${path}blocks`, sizes),
    finalNorm: initLayerNorm(init, `${path}finalNorm`, width),
  };
}

/** Spectrograms [B, mels x frames] to the normed states of their segments, [B, S, D]. */
export function audioTower(
  { segments, position, blocks, finalNorm }: AudioTowerParams,
  spectrograms: tf.Tensor,
  sizes: AudioSizes,
): tf.Tensor {
  const { numMels, numFrames, numSegments, epsilon } = sizes;
  const own = numFrames / numSegments;
  const cut = tf.transpose(tf.reshape(spectrograms, [-1, numMels, numSegments, own]), [0, 2, 1, 3]);
  const tokens = dense(segments, tf.reshape(cut, [-1, numSegments, numMels * own]));
  return layerNorm(finalNorm, encoder(blocks, addPositions(tokens, position), sizes), epsilon);
}
