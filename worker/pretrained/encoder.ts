/** What the encoders of Hugging Face's models share: sizes in a `config.json`, names of a block's weights. */
import * as z from 'zod';
import type { Activation } from '../layers/activations.ts';
import type { EncoderSizes } from '../layers/encoder.ts';
import { PretrainedError } from './pretrained-error.ts';
import { fusedLinear, linear, norm, type Weights } from './weight-table.ts';

/** Theirs to ours. */
export const ACTIVATION_NAMES = {
  gelu: 'gelu',
  gelu_new: 'gelu-tanh',
  gelu_pytorch_tanh: 'gelu-tanh',
  quick_gelu: 'quick-gelu',
  relu: 'relu',
  silu: 'silu',
} as const satisfies Record<string, Activation>;

type ActivationName = keyof typeof ACTIVATION_NAMES;

export const activationField = z.enum(
  Object.keys(ACTIVATION_NAMES) as [ActivationName, ...ActivationName[]],
);

export function activationName(activation: Activation): ActivationName {
  const names = Object.keys(ACTIVATION_NAMES) as ActivationName[];
  return names.find((name) => ACTIVATION_NAMES[name] === activation)!;
}

export const count = z.int().positive();

/** The fields of sizes that every encoder's config has. */
export const encoderFields = {
  hidden_size: count,
  num_hidden_layers: count,
  num_attention_heads: count,
  intermediate_size: count,
  hidden_act: activationField,
  layer_norm_eps: z.number().positive(),
};

type EncoderFields = z.infer<z.ZodObject<typeof encoderFields>>;

export function encoderSizesOf(given: EncoderFields): EncoderSizes {
  return {
    width: given.hidden_size,
    numLayers: given.num_hidden_layers,
    numHeads: given.num_attention_heads,
    mlpWidth: given.intermediate_size,
    activation: ACTIVATION_NAMES[given.hidden_act],
    epsilon: given.layer_norm_eps,
  };
}

/** The fields that {@link encoderSizesOf} reads back. */
export function encoderJson(sizes: EncoderSizes): EncoderFields {
  return {
    hidden_size: sizes.width,
    num_hidden_layers: sizes.numLayers,
    num_attention_heads: sizes.numHeads,
    intermediate_size: sizes.mlpWidth,
    hidden_act: activationName(sizes.activation),
    layer_norm_eps: sizes.epsilon,
  };
}

/** @throws PretrainedError `PRETRAINED_CONFIG`, which names what is not as `what` has it */
export function parsedConfig<S extends z.ZodType>(
  schema: S,
  config: unknown,
  what: string,
): z.infer<S> {
  const parsed = schema.safeParse(config);
  if (parsed.success) return parsed.data;
  throw new PretrainedError(
    'PRETRAINED_CONFIG',
    `config.json is not of a ${what} that can be loaded here: ${z.prettifyError(parsed.error)}`,
  );
}

/** Names there of the parts of a transformer block. */
export interface BlockNames {
  readonly attentionNorm: string;
  /** Query, key and value, or one layer for all. */
  readonly qkv: readonly string[];
  readonly output: string;
  readonly mlpNorm: string;
  readonly mlpIn: string;
  readonly mlpOut: string;
}

export const BERT_BLOCK: BlockNames = {
  attentionNorm: 'attention.output.LayerNorm',
  qkv: ['attention.self.query', 'attention.self.key', 'attention.self.value'],
  output: 'attention.output.dense',
  mlpNorm: 'output.LayerNorm',
  mlpIn: 'intermediate.dense',
  mlpOut: 'output.dense',
};

export const VIT_BLOCK: BlockNames = {
  attentionNorm: 'layernorm_before',
  qkv: ['attention.attention.query', 'attention.attention.key', 'attention.attention.value'],
  output: 'attention.output.dense',
  mlpNorm: 'layernorm_after',
  mlpIn: 'intermediate.dense',
  mlpOut: 'output.dense',
};

export const CLIP_BLOCK: BlockNames = {
  attentionNorm: 'layer_norm1',
  qkv: ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'],
  output: 'self_attn.out_proj',
  mlpNorm: 'layer_norm2',
  mlpIn: 'mlp.fc1',
  mlpOut: 'mlp.fc2',
};

export const BLIP2_VISION_BLOCK: BlockNames = {
  ...CLIP_BLOCK,
  qkv: ['self_attn.qkv'],
  output: 'self_attn.projection',
};

/** The blocks at `path`, there `prefix` and the layer's number. */
export function blockWeights(path: string, prefix: string, names: BlockNames): Weights {
  const [ours, theirs] = [`${path}/*`, `${prefix}.*`];
  return {
    ...norm(`${ours}/attentionNorm`, `${theirs}.${names.attentionNorm}`),
    ...fusedLinear(
      `${ours}/attention/qkv`,
      names.qkv.map((name) => `${theirs}.${name}`),
    ),
    ...linear(`${ours}/attention/output`, `${theirs}.${names.output}`),
    ...norm(`${ours}/mlpNorm`, `${theirs}.${names.mlpNorm}`),
    ...linear(`${ours}/mlpIn`, `${theirs}.${names.mlpIn}`),
    ...linear(`${ours}/mlpOut`, `${theirs}.${names.mlpOut}`),
  };
}
