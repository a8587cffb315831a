/**
 * Prefix tuning: in each layer keys and values stand before those of every text, and are trained. 2 P A parameters a
 * layer for P of them, of the width A that the layer's keys have; a model does not begin as it was. Source: Li & Liang
 * 2021, arXiv:2101.00190, sec. 4, without the network that makes them.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { DecoderAttentionParams } from '../layers/decoder-block.ts';
import type { KeyValues } from '../layers/kv-cache.ts';
import type { Stacked } from '../tree.ts';
import { namedLayers } from './dense-layers.ts';
import {
  embeddingWidth,
  promptedDecoder,
  type PromptConfig,
  type PromptedParams,
} from './prompt.ts';
import type { TunedModel, Tuning } from './tuning.ts';

/** Of a layer [K, P, W]. */
export type PrefixParams = { readonly blocks: Stacked<KeyValues> };

type Blocks = { readonly blocks: Stacked<{ readonly attention: DecoderAttentionParams }> };

export function prefix(
  { tokens }: PromptConfig,
  { form, decoder, keyValueHeads }: TunedModel,
): Tuning<PrefixParams> {
  const [keys] = namedLayers(form, ['attention/key']);
  const { numOut, numLayers } = keys!;
  const shape = [keyValueHeads, tokens, numOut / keyValueHeads];
  const width = embeddingWidth(form);
  return {
    init(init) {
      const own = init.layers(numLayers!);
      return {
        blocks: {
          '*': {
            key: own.normal('blocks/*/key', shape, 0.02),
            value: own.normal('blocks/*/value', shape, 0.02),
          },
        },
      };
    },
    fixed: {},
    adapted(params, { blocks }): PromptedParams {
      const { blocks: whole, ...others } = params as Blocks;
      const { attention, ...block } = whole['*'];
      const changed = { ...block, attention: { ...attention, prefix: blocks['*'] } };
      // Their keys and values are replaced in every layer, so it does not matter what these are.
      return {
        model: { ...others, blocks: { '*': changed } },
        prompt: tf.zeros([tokens, width]),
      };
    },
    decoder: promptedDecoder(decoder),
    kind: { tuning: 'prefix' },
  };
}
