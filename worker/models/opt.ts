/**
 * OPT, of GPT's family: a decoder with learned positions and LayerNorm before or behind each part. Source: Zhang et al.
 * 2022, arXiv:2205.01068, sec. 2.1; transformers, modeling_opt.py.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { ACTIVATIONS, type Activation } from '../layers/activations.ts';
import { decoderAttention, type DecoderAttentionParams } from '../layers/decoder-block.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { embed } from '../layers/embedding.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import { tiedLogits } from '../layers/tied-head.ts';
import type { Stacked } from '../tree.ts';
import { decoderOf, type Decoder } from './decoder.ts';

export interface OptConfig {
  readonly vocabularySize: number;
  readonly maxPositions: number;
  /** The table of positions has this many more rows in front: 2 in OPT, 0 in GPT-2. */
  readonly positionOffset: number;
  readonly width: number;
  /** Of the embeddings; a projection leads from it to `width` and back where they differ. */
  readonly embeddingWidth: number;
  readonly mlpWidth: number;
  readonly numLayers: number;
  readonly numHeads: number;
  /** Whether a norm stands before each part, or behind it (OPT-350m). */
  readonly normOrder: 'pre' | 'post';
  readonly activation: Activation;
}

export type OptBlockParams = {
  readonly attentionNorm: LayerNormParams;
  readonly attention: DecoderAttentionParams;
  readonly mlpNorm: LayerNormParams;
  readonly mlpIn: DenseParams;
  readonly mlpOut: DenseParams;
};

export type OptParams = {
  readonly embedding: tf.Tensor; // [V, W], the head too
  readonly position: tf.Tensor; // [offset + P, D]
  readonly projectIn?: DenseParams; // W to D
  readonly blocks: Stacked<OptBlockParams>;
  /** With the norms in front. */
  readonly finalNorm?: LayerNormParams;
  readonly projectOut?: DenseParams; // D to W
};

export function initOpt(config: OptConfig, init: Initializer): OptParams {
  const { vocabularySize, maxPositions, positionOffset, width, embeddingWidth, mlpWidth } = config;
  const layer = init.layers(config.numLayers);
  const own = (path: string, numIn: number, numOut: number): DenseParams =>
    initDense(layer, `blocks/*/${path}`, numIn, numOut);
  const projection = (path: string, numIn: number, numOut: number): DenseParams => ({
    kernel: init.normal(`${path}/kernel`, [numIn, numOut], 1 / Math.sqrt(numIn)),
  });
  const isProjected = embeddingWidth !== width;
  return {
    embedding: init.normal('embedding', [vocabularySize, embeddingWidth], 0.02),
    position: init.normal('position', [positionOffset + maxPositions, width], 0.02),
    ...(isProjected ? { projectIn: projection('projectIn', embeddingWidth, width) } : {}),
    blocks: {
      '*': {
        attentionNorm: initLayerNorm(layer, 'blocks/*/attentionNorm', width),
        attention: {
          query: own('attention/query', width, width),
          key: own('attention/key', width, width),
          value: own('attention/value', width, width),
          output: own('attention/output', width, width),
        },
        mlpNorm: initLayerNorm(layer, 'blocks/*/mlpNorm', width),
        mlpIn: own('mlpIn', width, mlpWidth),
        mlpOut: own('mlpOut', mlpWidth, width),
      },
    },
    ...(config.normOrder === 'pre' ? { finalNorm: initLayerNorm(init, 'finalNorm', width) } : {}),
    ...(isProjected ? { projectOut: projection('projectOut', width, embeddingWidth) } : {}),
  };
}

export function opt(config: OptConfig): Decoder<OptParams> {
  const { numHeads, positionOffset, normOrder, activation } = config;
  const isPre = normOrder === 'pre';
  const activate = ACTIVATIONS[activation];
  return decoderOf<OptParams, OptBlockParams>({
    name: 'opt',
    embed: ({ embedding }, ids) => embed(embedding, ids),
    enter({ projectIn, position }, embeddings, positions) {
      const words = projectIn === undefined ? embeddings : dense(projectIn, embeddings);
      const rows = tf.add(positions, tf.scalar(positionOffset, 'int32'));
      return tf.add(words, embed(position, rows));
    },
    blocksOf: ({ blocks }) => blocks,
    block(params, x, context) {
      const before = (norm: LayerNormParams, y: tf.Tensor): tf.Tensor =>
        isPre ? layerNorm(norm, y) : y;
      const behind = (norm: LayerNormParams, y: tf.Tensor): tf.Tensor =>
        isPre ? y : layerNorm(norm, y);
      const { output, made } = decoderAttention(params.attention, before(params.attentionNorm, x), {
        ...context,
        numHeads,
        numKeyValueHeads: numHeads,
      });
      const attended = behind(params.attentionNorm, tf.add(x, output));
      const hidden = activate(dense(params.mlpIn, before(params.mlpNorm, attended)));
      const next = tf.add(attended, dense(params.mlpOut, hidden));
      return { output: behind(params.mlpNorm, next), made };
    },
    leave({ finalNorm, projectOut }, x) {
      const normal = finalNorm === undefined ? x : layerNorm(finalNorm, x);
      return projectOut === undefined ? normal : dense(projectOut, normal);
    },
    logits: ({ embedding }, states) => tiedLogits(embedding, states),
  });
}
