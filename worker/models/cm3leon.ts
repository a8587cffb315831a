/**
 * CM3leon: one decoder over words and codes of pictures alike, as OPT is but without biases, dropout and parameters of
 * norms. Source: Yu et al. 2023, arXiv:2309.02591, sec. 2.3.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { decoderAttention, type DecoderAttentionParams } from '../layers/decoder-block.ts';
import { dense, type DenseParams } from '../layers/dense.ts';
import { embed } from '../layers/embedding.ts';
import { standardize } from '../layers/norm.ts';
import { tiedLogits } from '../layers/tied-head.ts';
import type { Stacked } from '../tree.ts';
import { decoderOf, type Decoder } from './decoder.ts';

export interface Cm3leonSizes {
  /** Words, codes and special tokens together. */
  readonly vocabulary: number;
  /** Most tokens of a sequence. */
  readonly positions: number;
  readonly width: number;
  readonly mlpWidth: number;
  readonly numLayers: number;
  readonly numHeads: number;
}

export type Cm3leonBlockParams = {
  readonly attention: DecoderAttentionParams;
  readonly mlpIn: DenseParams;
  readonly mlpOut: DenseParams;
};

export type Cm3leonParams = {
  readonly embedding: tf.Tensor; // [V, D], the head too
  readonly position: tf.Tensor; // [P, D]
  readonly blocks: Stacked<Cm3leonBlockParams>;
};

/** Standard deviations of the first weights, and where their normals are cut. Source: sec. 2.3. */
const [STD, POSITION_STD, CUT] = [0.006, 0.0002, 3];

/** What leads back into the sum of a block begins as zero. */
export function initCm3leon(
  { vocabulary, positions, width, mlpWidth, numLayers }: Cm3leonSizes,
  init: Initializer,
): Cm3leonParams {
  const layer = init.layers(numLayers);
  const inward = (path: string, numOut: number): DenseParams => ({
    kernel: layer.normal(`blocks/*/${path}/kernel`, [width, numOut], STD, CUT),
  });
  const outward = (path: string, numIn: number): DenseParams => ({
    kernel: layer.fill(`blocks/*/${path}/kernel`, [numIn, width], 0),
  });
  return {
    embedding: init.normal('embedding', [vocabulary, width], STD, CUT),
    position: init.normal('position', [positions, width], POSITION_STD, CUT),
    blocks: {
      '*': {
        attention: {
          query: inward('attention/query', width),
          key: inward('attention/key', width),
          value: inward('attention/value', width),
          output: outward('attention/output', width),
        },
        mlpIn: inward('mlpIn', mlpWidth),
        mlpOut: outward('mlpOut', mlpWidth),
      },
    },
  };
}

export function cm3leonDecoder({ numHeads }: Cm3leonSizes): Decoder<Cm3leonParams> {
  return decoderOf<Cm3leonParams, Cm3leonBlockParams>({
    name: 'cm3leon',
    embed: ({ embedding }, ids) => embed(embedding, ids),
    enter: ({ position }, embeddings, positions) => tf.add(embeddings, embed(position, positions)),
    blocksOf: ({ blocks }) => blocks,
    block({ attention, mlpIn, mlpOut }, x, context) {
      const { output, made } = decoderAttention(attention, standardize(x), {
        ...context,
        numHeads,
        numKeyValueHeads: numHeads,
      });
      const attended = tf.add(x, output);
      const hidden = tf.relu(dense(mlpIn, standardize(attended)));
      return { output: tf.add(attended, dense(mlpOut, hidden)), made };
    },
    leave: (_params, x) => standardize(x),
    logits: ({ embedding }, states) => tiedLogits(embedding, states),
  });
}
