import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { addPositions, embed } from '../layers/embedding.ts';
import { encoder, initEncoder, type EncoderSizes } from '../layers/encoder.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import type { BlockParams } from '../layers/transformer-block.ts';
import type { Stacked } from '../tree.ts';

export interface TextTowerSizes extends EncoderSizes {
  readonly vocabulary: number;
  /** The longest text. */
  readonly length: number;
}

/** The text side of CLIP and SigLIP: a pre-norm encoder over words and positions. */
export type TextTowerParams = {
  readonly words: tf.Tensor; // [V, D]
  readonly position: tf.Tensor; // [L, D]
  readonly blocks: Stacked<BlockParams>;
  readonly finalNorm: LayerNormParams;
};

/** Source: Radford et al. 2021, the released code: words of deviation 0.02, positions of 0.01. */
export function initTextTower(
  sizes: TextTowerSizes,
  init: Initializer,
  path: string,
): TextTowerParams {
  const { width, vocabulary, length } = sizes;
  return {
    words: init.normal(`${path}/words`, [vocabulary, width], 0.02),
    position: init.normal(`${path}/position`, [length, width], 0.01),
    blocks: initEncoder(init, `${path}/blocks`, sizes),
    finalNorm: initLayerNorm(init, `${path}/finalNorm`, width),
  };
}

/** The normed states of ids [B, L] (int32): [B, L, D]. `bias` says who may look at whom. */
export function textTower(
  { words, position, blocks, finalNorm }: TextTowerParams,
  ids: tf.Tensor,
  sizes: TextTowerSizes,
  { bias }: { readonly bias?: tf.Tensor } = {},
): tf.Tensor {
  const x = addPositions(embed(words, ids), position);
  const states = encoder(blocks, x, sizes, bias === undefined ? {} : { bias });
  return layerNorm(finalNorm, states, sizes.epsilon);
}
