/** VisualBERT as Hugging Face names and configures it. */
import * as z from 'zod';
import type { VisualBertSizes } from '../models/visual-bert.ts';
import { bertFields, bertJson, bertPretrainingWeights, bertSizesIn } from './bert.ts';
import { count, parsedConfig } from './encoder.ts';
import { linear, same, type WeightTable } from './weight-table.ts';

const configSchema = z.object({
  model_type: z.literal('visual_bert'),
  visual_embedding_dim: count,
  bypass_transformer: z.literal(false).default(false),
  tie_word_embeddings: z.literal(true).default(true),
  ...bertFields,
});

/** The sizes in a `config.json`. @throws PretrainedError `PRETRAINED_CONFIG` for what this VisualBERT does not have */
export function visualBertSizesOf(config: Readonly<Record<string, unknown>>): VisualBertSizes {
  const given = parsedConfig(configSchema, config, 'VisualBERT');
  return { ...bertSizesIn(given), regionWidth: given.visual_embedding_dim };
}

/** A `config.json` that {@link visualBertSizesOf} reads back. */
export function visualBertConfigJson(sizes: VisualBertSizes): Record<string, unknown> {
  return {
    model_type: 'visual_bert',
    architectures: ['VisualBertForPreTraining'],
    ...bertJson(sizes),
    visual_embedding_dim: sizes.regionWidth,
  };
}

const bert = bertPretrainingWeights('visual_bert');

/** Names of `VisualBertForPreTraining`. */
export const VISUAL_BERT_WEIGHTS: WeightTable = {
  ...bert,
  weights: {
    ...bert.weights,
    ...linear('regions/projection', 'visual_bert.embeddings.visual_projection'),
    'regions/position': same('visual_bert.embeddings.visual_position_embeddings.weight'),
    'regions/segment': same('visual_bert.embeddings.visual_token_type_embeddings.weight'),
  },
};
