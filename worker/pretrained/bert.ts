/** BERT as Hugging Face names and configures it, with its heads for pre-training. */
import * as z from 'zod';
import type { BertSizes } from '../models/bert.ts';
import {
  BERT_BLOCK,
  blockWeights,
  count,
  encoderFields,
  encoderJson,
  encoderSizesOf,
  parsedConfig,
} from './encoder.ts';
import { linear, norm, same, type Weights, type WeightTable } from './weight-table.ts';

/** The fields of a text encoder with words, positions and segments. */
export const bertFields = {
  ...encoderFields,
  vocab_size: count,
  max_position_embeddings: count,
  type_vocab_size: count.default(2),
  position_embedding_type: z.literal('absolute').default('absolute'),
};

type BertFields = z.infer<z.ZodObject<typeof bertFields>>;

const configSchema = z.object({
  model_type: z.literal('bert'),
  is_decoder: z.literal(false).default(false),
  tie_word_embeddings: z.literal(true).default(true),
  ...bertFields,
});

/** The sizes in a `config.json`. @throws PretrainedError `PRETRAINED_CONFIG` for what this BERT does not have */
export function bertSizesOf(config: Readonly<Record<string, unknown>>): BertSizes {
  return bertSizesIn(parsedConfig(configSchema, config, 'BERT'));
}

export function bertSizesIn(given: BertFields): BertSizes {
  return {
    ...encoderSizesOf(given),
    vocabulary: given.vocab_size,
    length: given.max_position_embeddings,
    numSegments: given.type_vocab_size,
  };
}

/** The fields that {@link bertSizesIn} reads back. */
export function bertJson(sizes: BertSizes): Record<string, unknown> {
  return {
    ...encoderJson(sizes),
    vocab_size: sizes.vocabulary,
    max_position_embeddings: sizes.length,
    type_vocab_size: sizes.numSegments,
  };
}

/** A `config.json` that {@link bertSizesOf} reads back. */
export function bertConfigJson(sizes: BertSizes): Record<string, unknown> {
  return { model_type: 'bert', architectures: ['BertForPreTraining'], ...bertJson(sizes) };
}

/** Words, positions, segments and their norm. */
export function bertEmbeddingWeights(path: string, prefix: string): Weights {
  return {
    [`${path}/words`]: same(`${prefix}.word_embeddings.weight`),
    [`${path}/position`]: same(`${prefix}.position_embeddings.weight`),
    [`${path}/segment`]: same(`${prefix}.token_type_embeddings.weight`),
    ...norm(`${path}/norm`, `${prefix}.LayerNorm`),
  };
}

/** Names of `BertForPreTraining` and of those that are BERT within, at `prefix`. */
export function bertPretrainingWeights(prefix: string): WeightTable {
  return {
    weights: {
      ...bertEmbeddingWeights('bert/embedding', `${prefix}.embeddings`),
      ...blockWeights('bert/blocks', `${prefix}.encoder.layer`, BERT_BLOCK),
      ...linear('bert/pooler', `${prefix}.pooler.dense`),
      ...linear('wordHead/dense', 'cls.predictions.transform.dense'),
      ...norm('wordHead/norm', 'cls.predictions.transform.LayerNorm'),
      'wordHead/bias': same('cls.predictions.bias'),
      ...linear('pairHead', 'cls.seq_relationship'),
    },
    ignored: [`${prefix}.embeddings.position_ids`],
    tied: {
      'cls.predictions.decoder.weight': `${prefix}.embeddings.word_embeddings.weight`,
      'cls.predictions.decoder.bias': 'cls.predictions.bias',
    },
  };
}

export const BERT_WEIGHTS = bertPretrainingWeights('bert');
