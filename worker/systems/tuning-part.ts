/** What a language model is adapted by while it stays as it is: the fields in recipes, and the tuning they make. */
import * as z from 'zod';
import { count } from '../config-fields.ts';
import { shapesOnly } from '../initializer.ts';
import type { PublishedPart } from '../pretrained/published-parts.ts';
import {
  publishedDora,
  publishedLora,
  publishedPrefix,
  publishedPrompt,
  publishedVera,
  unpublishedAdapters,
  type Adapted,
} from '../pretrained/tunings.ts';
import { adapters } from '../tuning/adapters.ts';
import { dora } from '../tuning/dora.ts';
import { DEFAULT_TARGETS, lora, type LoraConfig } from '../tuning/lora.ts';
import { prefix } from '../tuning/prefix.ts';
import { prompt } from '../tuning/prompt.ts';
import type { TunedModel, Tuning } from '../tuning/tuning.ts';
import { vera } from '../tuning/vera.ts';
import type { Language } from './language-part.ts';

const targets = z
  .array(z.string().min(1))
  .min(1)
  .default(DEFAULT_TARGETS)
  .describe('Ends of paths of the dense layers that are adapted');
const lowRank = {
  rank: count('Rank of the change'),
  alpha: z.number().positive().describe('The change is scaled by alpha / rank'),
  targets,
};
const tokens = count('How many stand before every text');

export const tuningFields = z
  .discriminatedUnion('method', [
    z.strictObject({ method: z.literal('lora').describe('arXiv:2106.09685'), ...lowRank }),
    z.strictObject({
      method: z
        .literal('dora')
        .describe('arXiv:2402.09353: LoRA for directions, lengths by themselves'),
      ...lowRank,
    }),
    z.strictObject({
      method: z.literal('vera').describe('arXiv:2310.11454: two vectors a layer'),
      rank: count('Rank of the change'),
      key: z.int().min(0).default(0).describe('That the matrices which all layers share come from'),
      targets,
    }),
    z.strictObject({
      method: z.literal('adapters').describe('arXiv:1902.00751: behind attention and MLP'),
      width: count('Width of the bottlenecks'),
    }),
    z.strictObject({
      method: z.literal('prompt').describe('arXiv:2104.08691: trained vectors in place of words'),
      tokens,
    }),
    z.strictObject({
      method: z.literal('prefix').describe('arXiv:2101.00190: trained keys and values'),
      tokens,
    }),
  ])
  .describe(
    'What is trained in place of the language model, which is frozen. Where a recipe has `lora`, this takes its place',
  );

export type TuningConfig = z.infer<typeof tuningFields>;

/** Of which LoRA's layers need not be named. */
type OpenedConfig = Exclude<TuningConfig, { method: 'lora' }> | ({ method: 'lora' } & LoraConfig);

/** Tokens that stand before every text. */
export function tokensBefore(tuning: TuningConfig | null | undefined): number {
  return tuning?.method === 'prompt' || tuning?.method === 'prefix' ? tuning.tokens : 0;
}

/** @param parts paths of the language model's parameters, or of trees of them, in a system's */
export function tuningFault(
  tuning: TuningConfig | null | undefined,
  frozen: readonly string[],
  parts: readonly string[],
): string | undefined {
  if (tuning === null || tuning === undefined) return undefined;
  const trained = parts.filter((part) => !frozen.includes(part));
  return trained.length === 0
    ? undefined
    : `model.tuning is trained in place of the language model: add ${trained.join(', ')} to train.frozen`;
}

/** @param places of what is trained and of the language model among a system's parameters */
export function openTuning(
  config: OpenedConfig,
  language: Language,
  places: Pick<Adapted, 'path' | 'languagePath'>,
): { readonly tuning: Tuning; readonly published: PublishedPart } {
  const form = language.init(shapesOnly());
  const { layers, heads, width, keyValueHeads } = language.sizes;
  const model: TunedModel = { form, decoder: language.decoder, keyValueHeads };
  const adapted: Adapted = { ...places, form, table: language.published.table };
  switch (config.method) {
    case 'lora': {
      const tuning = lora(config, model);
      return { tuning, published: publishedLora(adapted, tuning.init(shapesOnly()), config) };
    }
    case 'dora': {
      const tuning = dora(config, model);
      return { tuning, published: publishedDora(adapted, tuning.init(shapesOnly()), config) };
    }
    case 'vera': {
      const tuning = vera(config, model);
      return { tuning, published: publishedVera(adapted, tuning.init(shapesOnly()), config) };
    }
    case 'adapters':
      return { tuning: adapters(config, model), published: unpublishedAdapters(adapted) };
    case 'prompt': {
      const published = publishedPrompt(adapted, config, { layers, heads, width });
      return { tuning: prompt(config, model), published };
    }
    case 'prefix': {
      const tuning = prefix(config, model);
      const keys = { layers, heads: keyValueHeads, width: (width / heads) * keyValueHeads };
      return { tuning, published: publishedPrefix(adapted, tuning.init(shapesOnly()), keys) };
    }
  }
}
