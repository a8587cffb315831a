import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { repeatLayers, scanLayers } from '../layer-loop.ts';
import { mapTree, type Stacked, type TensorTree } from '../tree.ts';
import type { Activation } from './activations.ts';
import { attentionWeights } from './attention.ts';
import { layerNorm } from './norm.ts';
import {
  initBlock,
  transformerBlock,
  type BlockOptions,
  type BlockParams,
} from './transformer-block.ts';

/** Sizes of a stack of equal transformer blocks, and what kind of blocks they are. */
export interface EncoderSizes {
  readonly width: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly mlpWidth: number;
  readonly activation: Activation;
  /** Of the norms. */
  readonly epsilon: number;
}

export function initEncoder(
  init: Initializer,
  path: string,
  { width, numLayers, mlpWidth }: Pick<EncoderSizes, 'width' | 'numLayers' | 'mlpWidth'>,
): Stacked<BlockParams> {
  return { '*': initBlock(init.layers(numLayers), `${path}/*`, width, mlpWidth / width) };
}

/** x [B, L, D] after all blocks. `bias` is added to the scores of each. */
export function encoder(
  blocks: Stacked<BlockParams>,
  x: tf.Tensor,
  { numHeads, activation, epsilon }: EncoderSizes,
  { bias, norm = 'pre' }: Pick<BlockOptions, 'bias' | 'norm'> = {},
): tf.Tensor {
  const options = { numHeads, activation, epsilon, norm };
  return repeatLayers(
    blocks,
    x,
    (block, states, [seen]) =>
      transformerBlock(block, states, seen === undefined ? options : { ...options, bias: seen }),
    { shared: bias === undefined ? [] : [bias] },
  );
}

/** The first of equal layers: what comes out of them is a hidden state of the whole. */
export function firstLayers<P extends TensorTree>(layers: Stacked<P>, count: number): Stacked<P> {
  return { '*': mapTree(layers['*'], (tensor) => tf.slice(tensor, 0, count)) };
}

/**
 * How much each token of x [B, L, D] is looked at by those that are `present` [B, L], over heads and layers, [B, L]. Of
 * pre-norm blocks; without gradients.
 */
export function attentionReceived(
  blocks: Stacked<BlockParams>,
  x: tf.Tensor,
  { numHeads, activation, epsilon }: EncoderSizes,
  { bias, present }: { readonly bias: tf.Tensor; readonly present: tf.Tensor },
): tf.Tensor {
  const options = { numHeads, activation, epsilon };
  const { made } = scanLayers(
    blocks,
    x,
    (block, states, [seen, lookers]) => {
      const normed = layerNorm(block.attentionNorm, states, epsilon);
      const weights = attentionWeights(block.attention, normed, { numHeads, bias: seen! });
      const looks = tf.mul(tf.mean(weights, 1), tf.expandDims(lookers!, 2)); // [B, L, L]
      const output = transformerBlock(block, states, { ...options, bias: seen! });
      return { output, made: { received: tf.sum(looks, 1) } };
    },
    { shared: [bias, present] },
  );
  return tf.mean(made.received, 0);
}
