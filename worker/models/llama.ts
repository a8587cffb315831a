/**
 * LLaMA: a decoder with rotary positions, RMSNorm before each part, a gated MLP and grouped-query attention. Source:
 * Touvron et al. 2023, arXiv:2302.13971, sec. 2.2, and arXiv:2307.09288, sec. 2.2; transformers, modeling_llama.py.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { decoderAttention, type DecoderAttentionParams } from '../layers/decoder-block.ts';
import { dense, type DenseParams } from '../layers/dense.ts';
import { embed } from '../layers/embedding.ts';
import { initRmsNorm, rmsNorm, type RmsNormParams } from '../layers/rms-norm.ts';
import { ropeAngles, ropeFrequencies, type RopeScaling } from '../layers/rope.ts';
import { swiglu, type SwigluParams } from '../layers/swiglu.ts';
import { tiedLogits } from '../layers/tied-head.ts';
import type { Stacked } from '../tree.ts';
import { decoderOf, type Decoder } from './decoder.ts';

export interface LlamaConfig {
  readonly vocabularySize: number;
  readonly width: number;
  readonly mlpWidth: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKeyValueHeads: number;
  readonly headWidth: number;
  readonly epsilon: number;
  readonly ropeTheta: number;
  readonly ropeScaling?: RopeScaling;
  /** The embeddings are the head too. */
  readonly isTied: boolean;
}

export type LlamaBlockParams = {
  readonly attentionNorm: RmsNormParams;
  readonly attention: DecoderAttentionParams;
  readonly mlpNorm: RmsNormParams;
  readonly mlp: SwigluParams;
};

export type LlamaParams = {
  readonly embedding: tf.Tensor; // [V, D]
  readonly blocks: Stacked<LlamaBlockParams>;
  readonly finalNorm: RmsNormParams;
  /** Where it is not the embedding, [D, V]. */
  readonly head?: DenseParams;
};

export function initLlama(
  {
    vocabularySize,
    width,
    mlpWidth,
    numLayers,
    numHeads,
    numKeyValueHeads,
    headWidth,
    isTied,
  }: LlamaConfig,
  init: Initializer,
): LlamaParams {
  const layer = init.layers(numLayers);
  const kernel = (path: string, numIn: number, numOut: number): DenseParams => ({
    kernel: layer.normal(`blocks/*/${path}/kernel`, [numIn, numOut], 1 / Math.sqrt(numIn)),
  });
  return {
    embedding: init.normal('embedding', [vocabularySize, width], 0.02),
    blocks: {
      '*': {
        attentionNorm: initRmsNorm(layer, 'blocks/*/attentionNorm', width),
        attention: {
          query: kernel('attention/query', width, numHeads * headWidth),
          key: kernel('attention/key', width, numKeyValueHeads * headWidth),
          value: kernel('attention/value', width, numKeyValueHeads * headWidth),
          output: kernel('attention/output', numHeads * headWidth, width),
        },
        mlpNorm: initRmsNorm(layer, 'blocks/*/mlpNorm', width),
        mlp: {
          gate: kernel('mlp/gate', width, mlpWidth),
          up: kernel('mlp/up', width, mlpWidth),
          down: kernel('mlp/down', mlpWidth, width),
        },
      },
    },
    finalNorm: initRmsNorm(init, 'finalNorm', width),
    ...(isTied
      ? {}
      : { head: { kernel: init.normal('head/kernel', [width, vocabularySize], 0.02) } }),
  };
}

export function llama(config: LlamaConfig): Decoder<LlamaParams> {
  const { epsilon, numHeads, numKeyValueHeads, headWidth, ropeTheta, ropeScaling } = config;
  const frequencies = ropeFrequencies({
    headWidth,
    theta: ropeTheta,
    ...(ropeScaling === undefined ? {} : { scaling: ropeScaling }),
  });
  return decoderOf<LlamaParams, LlamaBlockParams>({
    name: 'llama',
    embed: ({ embedding }, ids) => embed(embedding, ids),
    enter: (_params, embeddings) => embeddings,
    rope: (positions) => ropeAngles(positions, frequencies),
    blocksOf: ({ blocks }) => blocks,
    block(params, x, context) {
      const { output, made } = decoderAttention(
        params.attention,
        rmsNorm(params.attentionNorm, x, epsilon),
        { ...context, numHeads, numKeyValueHeads },
      );
      const attended = tf.add(x, output);
      const mixed = swiglu(params.mlp, rmsNorm(params.mlpNorm, attended, epsilon));
      return { output: tf.add(attended, mixed), made };
    },
    leave: ({ finalNorm }, x) => rmsNorm(finalNorm, x, epsilon),
    logits: ({ head, embedding }, states) =>
      head === undefined ? tiedLogits(embedding, states) : dense(head, states),
  });
}
