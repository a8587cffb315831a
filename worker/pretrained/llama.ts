/** LLaMA as Hugging Face names and configures it, and those of its kin that differ in nothing but sizes (SmolLM, Vicuna). */
import * as z from 'zod';
import type { RopeScaling } from '../layers/rope.ts';
import type { LlamaConfig } from '../models/llama.ts';
import { withDefaults } from './clip.ts';
import { PretrainedError } from './pretrained-error.ts';
import { same, transposed, type WeightTable } from './weight-table.ts';

const scalingSchema = z.discriminatedUnion('rope_type', [
  z.object({ rope_type: z.literal('default') }),
  z.object({ rope_type: z.literal('linear'), factor: z.number().positive() }),
  z.object({
    rope_type: z.literal('llama3'),
    factor: z.number().positive(),
    low_freq_factor: z.number().positive(),
    high_freq_factor: z.number().positive(),
    original_max_position_embeddings: z.int().positive(),
  }),
]);

/** transformers leaves out of a config within another one what is as its own default. */
const defaults = {
  vocab_size: 32_000,
  hidden_size: 4096,
  intermediate_size: 11_008,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  hidden_act: 'silu',
  rms_norm_eps: 1e-6,
};

const fields = z.object({
  model_type: z.literal('llama'),
  vocab_size: z.int().positive(),
  hidden_size: z.int().positive(),
  intermediate_size: z.int().positive(),
  num_hidden_layers: z.int().positive(),
  num_attention_heads: z.int().positive(),
  num_key_value_heads: z.int().positive().optional(),
  head_dim: z.int().positive().nullish(),
  hidden_act: z.literal('silu'),
  rms_norm_eps: z.number().positive(),
  attention_bias: z.literal(false).default(false),
  mlp_bias: z.literal(false).default(false),
  tie_word_embeddings: z.boolean().default(false),
  // The older form, then the one of transformers 5.
  rope_theta: z.number().positive().default(10_000),
  rope_scaling: z.record(z.string(), z.unknown()).nullish(),
  rope_parameters: z.record(z.string(), z.unknown()).nullish(),
});
const configSchema = withDefaults(defaults, fields);

/** The sizes in a `config.json`. @throws PretrainedError `PRETRAINED_CONFIG` for what this LLaMA does not have */
export function llamaConfigOf(config: Readonly<Record<string, unknown>>): LlamaConfig {
  const parsed = configSchema.safeParse(config);
  if (!parsed.success) throw badConfig(z.prettifyError(parsed.error));
  const given = parsed.data;
  const rope = given.rope_parameters ?? given.rope_scaling ?? {};
  const theta = z.number().positive().default(given.rope_theta).safeParse(rope['rope_theta']);
  const scaling = scalingSchema.safeParse({
    ...rope,
    rope_type: rope['rope_type'] ?? rope['type'] ?? 'default',
  });
  if (!scaling.success) throw badConfig(`rope_parameters: ${z.prettifyError(scaling.error)}`);
  if (!theta.success) throw badConfig(`rope_theta: ${z.prettifyError(theta.error)}`);
  const ropeScaling = scalingOf(scaling.data);
  return {
    vocabularySize: given.vocab_size,
    width: given.hidden_size,
    mlpWidth: given.intermediate_size,
    numLayers: given.num_hidden_layers,
    numHeads: given.num_attention_heads,
    numKeyValueHeads: given.num_key_value_heads ?? given.num_attention_heads,
    headWidth: given.head_dim ?? given.hidden_size / given.num_attention_heads,
    epsilon: given.rms_norm_eps,
    ropeTheta: theta.data,
    ...(ropeScaling === undefined ? {} : { ropeScaling }),
    isTied: given.tie_word_embeddings,
  };
}

function scalingOf(given: z.infer<typeof scalingSchema>): RopeScaling | undefined {
  switch (given.rope_type) {
    case 'default':
      return undefined;
    case 'linear':
      return { kind: 'linear', factor: given.factor };
    case 'llama3':
      return {
        kind: 'llama3',
        factor: given.factor,
        lowFrequencyFactor: given.low_freq_factor,
        highFrequencyFactor: given.high_freq_factor,
        originalLength: given.original_max_position_embeddings,
      };
  }
}

/** A `config.json` that {@link llamaConfigOf} reads back. */
export function llamaConfigJson(
  config: LlamaConfig,
  maxPositions: number,
): Record<string, unknown> {
  const { ropeScaling: scaling } = config;
  const scaled =
    scaling?.kind === 'llama3'
      ? {
          rope_type: 'llama3',
          factor: scaling.factor,
          low_freq_factor: scaling.lowFrequencyFactor,
          high_freq_factor: scaling.highFrequencyFactor,
          original_max_position_embeddings: scaling.originalLength,
        }
      : { rope_type: scaling?.kind ?? 'default', ...(scaling && { factor: scaling.factor }) };
  return {
    model_type: 'llama',
    architectures: ['LlamaForCausalLM'],
    vocab_size: config.vocabularySize,
    hidden_size: config.width,
    intermediate_size: config.mlpWidth,
    num_hidden_layers: config.numLayers,
    num_attention_heads: config.numHeads,
    num_key_value_heads: config.numKeyValueHeads,
    head_dim: config.headWidth,
    hidden_act: 'silu',
    rms_norm_eps: config.epsilon,
    max_position_embeddings: maxPositions,
    tie_word_embeddings: config.isTied,
    rope_parameters: { ...scaled, rope_theta: config.ropeTheta },
  };
}

/** Names of `LlamaForCausalLM`. */
export function llamaWeights({ isTied }: Pick<LlamaConfig, 'isTied'>): WeightTable {
  const layer = 'model.layers.*';
  return {
    weights: {
      embedding: same('model.embed_tokens.weight'),
      'blocks/*/attentionNorm/scale': same(`${layer}.input_layernorm.weight`),
      'blocks/*/attention/query/kernel': transposed(`${layer}.self_attn.q_proj.weight`),
      'blocks/*/attention/key/kernel': transposed(`${layer}.self_attn.k_proj.weight`),
      'blocks/*/attention/value/kernel': transposed(`${layer}.self_attn.v_proj.weight`),
      'blocks/*/attention/output/kernel': transposed(`${layer}.self_attn.o_proj.weight`),
      'blocks/*/mlpNorm/scale': same(`${layer}.post_attention_layernorm.weight`),
      'blocks/*/mlp/gate/kernel': transposed(`${layer}.mlp.gate_proj.weight`),
      'blocks/*/mlp/up/kernel': transposed(`${layer}.mlp.up_proj.weight`),
      'blocks/*/mlp/down/kernel': transposed(`${layer}.mlp.down_proj.weight`),
      'finalNorm/scale': same('model.norm.weight'),
      'head/kernel': transposed('lm_head.weight'),
    },
    ignored: [`${layer}.self_attn.rotary_emb.inv_freq`],
    tied: isTied ? { 'lm_head.weight': 'model.embed_tokens.weight' } : {},
  };
}

function badConfig(what: string): PretrainedError {
  return new PretrainedError(
    'PRETRAINED_CONFIG',
    `config.json is not of a LLaMA that can be loaded here: ${what}`,
  );
}
