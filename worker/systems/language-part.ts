/** The language model that a system speaks through: its fields in recipes, and the decoder they make. */
import { z } from 'zod';
import { count } from '../config-fields.ts';
import type { Initializer } from '../initializer.ts';
import type { Decoder } from '../models/decoder.ts';
import { initLlama, llama, type LlamaConfig } from '../models/llama.ts';
import { initOpt, opt, type OptConfig } from '../models/opt.ts';
import type { TensorTree } from '../tree.ts';

export const languageFields = z
  .strictObject({
    kind: z
      .enum(['llama', 'opt'])
      .describe('llama: rotary positions, RMSNorm, gated MLP; opt: learned positions, LayerNorm'),
    width: count('Width of the language model'),
    layers: count('Its blocks'),
    heads: count('Its attention heads'),
    keyValueHeads: count('Heads of its keys and values; of opt as many as the others'),
    mlpWidth: count('Width of its MLPs'),
    maxPositions: count('Places that opt has learned positions for; llama needs none'),
    tied: z.boolean().describe('The embeddings are the head too; of opt they always are'),
  })
  .describe('The decoder-only language model');

export type LanguageConfig = z.infer<typeof languageFields>;

export interface Language {
  readonly decoder: Decoder<TensorTree>;
  init(initializer: Initializer): TensorTree;
}

export function languageOf(config: LanguageConfig, vocabularySize: number): Language {
  const { kind, width, layers: numLayers, heads: numHeads, mlpWidth } = config;
  const sizes = { vocabularySize, width, numLayers, numHeads, mlpWidth };
  if (kind === 'opt') {
    const own: OptConfig = {
      ...sizes,
      embeddingWidth: width,
      maxPositions: config.maxPositions,
      positionOffset: 2,
      normOrder: 'pre',
      activation: 'relu',
    };
    return {
      decoder: opt(own),
      init: (initializer) => initOpt(own, initializer),
    };
  }
  const own: LlamaConfig = {
    ...sizes,
    numKeyValueHeads: config.keyValueHeads,
    headWidth: width / numHeads,
    epsilon: 1e-5,
    ropeTheta: 10_000,
    isTied: config.tied,
  };
  return {
    decoder: llama(own),
    init: (initializer) => initLlama(own, initializer),
  };
}

/** What is wrong with the fields taken together, if anything. */
export function languageFault({ width, heads, keyValueHeads }: LanguageConfig): string | undefined {
  if (width % heads !== 0)
    return `model.language.width (${width}) is not a multiple of its heads (${heads})`;
  if (heads % keyValueHeads !== 0)
    return `model.language.heads (${heads}) is not a multiple of its keyValueHeads (${keyValueHeads})`;
  return undefined;
}
