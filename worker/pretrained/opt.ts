/** OPT as Hugging Face names and configures it. */
import * as z from 'zod';
import type { OptConfig } from '../models/opt.ts';
import { PretrainedError } from './pretrained-error.ts';
import { linear, norm, same, transposed, type WeightTable } from './weight-table.ts';

/** Rows of OPT's table of positions before that of position 0. Source: transformers, OPTLearnedPositionalEmbedding. */
const POSITION_OFFSET = 2;

const configSchema = z.object({
  model_type: z.literal('opt'),
  vocab_size: z.int().positive(),
  max_position_embeddings: z.int().positive(),
  hidden_size: z.int().positive(),
  word_embed_proj_dim: z.int().positive().nullish(),
  ffn_dim: z.int().positive(),
  num_hidden_layers: z.int().positive(),
  num_attention_heads: z.int().positive(),
  do_layer_norm_before: z.boolean().default(true),
  activation_function: z.literal('relu').default('relu'),
  enable_bias: z.literal(true).default(true),
  layer_norm_elementwise_affine: z.literal(true).default(true),
  _remove_final_layer_norm: z.literal(false).default(false),
  tie_word_embeddings: z.literal(true).default(true),
});

/** The sizes in a `config.json`. @throws PretrainedError `PRETRAINED_CONFIG` for what this OPT does not have */
export function optConfigOf(config: Readonly<Record<string, unknown>>): OptConfig {
  const parsed = configSchema.safeParse(config);
  if (!parsed.success) {
    throw new PretrainedError(
      'PRETRAINED_CONFIG',
      `config.json is not of an OPT that can be loaded here: ${z.prettifyError(parsed.error)}`,
    );
  }
  const given = parsed.data;
  return {
    vocabularySize: given.vocab_size,
    maxPositions: given.max_position_embeddings,
    positionOffset: POSITION_OFFSET,
    width: given.hidden_size,
    embeddingWidth: given.word_embed_proj_dim ?? given.hidden_size,
    mlpWidth: given.ffn_dim,
    numLayers: given.num_hidden_layers,
    numHeads: given.num_attention_heads,
    normOrder: given.do_layer_norm_before ? 'pre' : 'post',
    activation: 'relu',
  };
}

/** A `config.json` that {@link optConfigOf} reads back. */
export function optConfigJson(config: OptConfig): Record<string, unknown> {
  return {
    model_type: 'opt',
    architectures: ['OPTForCausalLM'],
    vocab_size: config.vocabularySize,
    max_position_embeddings: config.maxPositions,
    hidden_size: config.width,
    word_embed_proj_dim: config.embeddingWidth,
    ffn_dim: config.mlpWidth,
    num_hidden_layers: config.numLayers,
    num_attention_heads: config.numHeads,
    do_layer_norm_before: config.normOrder === 'pre',
    activation_function: config.activation,
    tie_word_embeddings: true,
  };
}

/** Names of `OPTForCausalLM`. */
export const OPT_WEIGHTS: WeightTable = {
  weights: {
    embedding: same('model.decoder.embed_tokens.weight'),
    position: same('model.decoder.embed_positions.weight'),
    'projectIn/kernel': transposed('model.decoder.project_in.weight'),
    ...norm('blocks/*/attentionNorm', 'model.decoder.layers.*.self_attn_layer_norm'),
    ...linear('blocks/*/attention/query', 'model.decoder.layers.*.self_attn.q_proj'),
    ...linear('blocks/*/attention/key', 'model.decoder.layers.*.self_attn.k_proj'),
    ...linear('blocks/*/attention/value', 'model.decoder.layers.*.self_attn.v_proj'),
    ...linear('blocks/*/attention/output', 'model.decoder.layers.*.self_attn.out_proj'),
    ...norm('blocks/*/mlpNorm', 'model.decoder.layers.*.final_layer_norm'),
    ...linear('blocks/*/mlpIn', 'model.decoder.layers.*.fc1'),
    ...linear('blocks/*/mlpOut', 'model.decoder.layers.*.fc2'),
    ...norm('finalNorm', 'model.decoder.final_layer_norm'),
    'projectOut/kernel': transposed('model.decoder.project_out.weight'),
  },
  tied: { 'lm_head.weight': 'model.decoder.embed_tokens.weight' },
};
