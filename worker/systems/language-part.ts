/** The language model that a system speaks through: its fields in recipes, and the decoder they make. */
import * as z from 'zod';
import { count } from '../config-fields.ts';
import type { Initializer } from '../initializer.ts';
import type { Decoder } from '../models/decoder.ts';
import { initLlama, llama, type LlamaConfig } from '../models/llama.ts';
import { initOpt, opt, type OptConfig } from '../models/opt.ts';
import { llamaKind, optKind, type PartKind } from '../part-kind.ts';
import type { HuggingFaceConfig } from '../pretrained/known-models.ts';
import { llamaConfigJson, llamaWeights } from '../pretrained/llama.ts';
import { OPT_WEIGHTS, optConfigJson } from '../pretrained/opt.ts';
import type { WeightTable } from '../pretrained/weight-table.ts';
import type { TensorTree } from '../tree.ts';
import { tokensBefore, tuningFault, type TuningConfig } from './tuning-part.ts';

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
    epsilon: z
      .number()
      .positive()
      .default(1e-5)
      .describe('Of the norms of llama, as pretrained weights want it; 1e-6 in LLaMA-1 and Vicuna'),
    ropeTheta: z
      .number()
      .positive()
      .default(10_000)
      .describe("Base of llama's rotary positions, as pretrained weights want it"),
    tied: z.boolean().describe('The embeddings are the head too; of opt they always are'),
  })
  .describe('The decoder-only language model');

export type LanguageConfig = z.infer<typeof languageFields>;

export interface Language {
  readonly decoder: Decoder<TensorTree>;
  readonly kind: PartKind;
  readonly sizes: Pick<LanguageConfig, 'width' | 'layers' | 'heads' | 'keyValueHeads'>;
  /** How transformers names and configures it. */
  readonly published: { readonly table: WeightTable; readonly json: HuggingFaceConfig };
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
      kind: optKind(own),
      sizes: { ...config, keyValueHeads: numHeads },
      published: { table: OPT_WEIGHTS, json: optConfigJson(own) },
      init: (initializer) => initOpt(own, initializer),
    };
  }
  const own: LlamaConfig = {
    ...sizes,
    numKeyValueHeads: config.keyValueHeads,
    headWidth: width / numHeads,
    epsilon: config.epsilon,
    ropeTheta: config.ropeTheta,
    isTied: config.tied,
  };
  return {
    decoder: llama(own),
    kind: llamaKind(own),
    sizes: config,
    published: { table: llamaWeights(own), json: llamaConfigJson(own, config.maxPositions) },
    init: (initializer) => initLlama(own, initializer),
  };
}

/** The fields of a config that have to do with its language model. */
export interface LanguageFields {
  readonly model: {
    readonly language: LanguageConfig;
    readonly tuning?: TuningConfig | null | undefined;
    /** Tokens of a conversation, and of the answer that is written behind it. */
    readonly length: number;
    readonly maxAnswerTokens: number;
  };
  readonly train: { readonly frozen: readonly string[] };
}

/**
 * What is wrong with the fields taken together, if anything.
 * @param parts as {@link tuningFault}'s
 */
export function languageFault(
  { model: { language, tuning, length, maxAnswerTokens }, train }: LanguageFields,
  parts: readonly string[] = ['language'],
): string | undefined {
  const { kind, width, heads, keyValueHeads, maxPositions } = language;
  if (width % heads !== 0)
    return `model.language.width (${width}) is not a multiple of its heads (${heads})`;
  if (heads % keyValueHeads !== 0)
    return `model.language.heads (${heads}) is not a multiple of its keyValueHeads (${keyValueHeads})`;
  if (kind === 'llama' && (width / heads) % 2 !== 0)
    return (
      `model.language.width (${width}) is an odd number (${width / heads}) for each of its heads (${heads}), and llama's ` +
      `rotary positions turn pairs: set it to a multiple of ${2 * heads}`
    );
  const before = tokensBefore(tuning);
  const needed = before + length + maxAnswerTokens;
  if (kind === 'opt' && needed > maxPositions)
    return (
      `model.language.maxPositions (${maxPositions}) has no place for ` +
      (before === 0 ? '' : `model.tuning.tokens (${before}), `) +
      `model.length (${length}) tokens and an answer of ` +
      `model.maxAnswerTokens (${maxAnswerTokens}): set it to ${needed} or more, or make those shorter`
    );
  return tuningFault(tuning, train.frozen, parts);
}
