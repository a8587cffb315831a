/** BLIP-2's first stage, image encoder and Q-Former, as Hugging Face names and configures it. */
import * as z from 'zod';
import type { Blip2Sizes } from '../models/blip2.ts';
import type { QFormerSizes } from '../models/q-former.ts';
import type { VitSizes } from '../models/vit.ts';
import { withDefaults } from './clip.ts';
import {
  BERT_BLOCK,
  BLIP2_VISION_BLOCK,
  blockWeights,
  count,
  encoderFields,
  encoderJson,
  encoderSizesOf,
  parsedConfig,
} from './encoder.ts';
import { batched, vector, vitFields, vitJson, vitSizesIn } from './vit.ts';
import {
  atLayers,
  fusedLinear,
  linear,
  norm,
  patchKernel,
  same,
  type Weights,
  type WeightTable,
} from './weight-table.ts';

/** transformers leaves out of a config what is as its own default. */
const visionDefaults = {
  hidden_size: 1408,
  intermediate_size: 6144,
  num_hidden_layers: 39,
  num_attention_heads: 16,
  image_size: 224,
  patch_size: 14,
  hidden_act: 'gelu',
  layer_norm_eps: 1e-6,
};
const qFormerDefaults = {
  vocab_size: 30522,
  hidden_size: 768,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  intermediate_size: 3072,
  hidden_act: 'gelu',
  max_position_embeddings: 512,
  layer_norm_eps: 1e-12,
  cross_attention_frequency: 2,
  encoder_hidden_size: 1408,
};

const configSchema = z.object({
  model_type: z.literal('blip-2'),
  num_query_tokens: count.default(32),
  image_text_hidden_size: count.default(256),
  vision_config: withDefaults(
    visionDefaults,
    z.object({ ...vitFields, qkv_bias: z.literal(true).default(true) }),
  ),
  qformer_config: withDefaults(
    qFormerDefaults,
    z.object({
      ...encoderFields,
      vocab_size: count,
      max_position_embeddings: count,
      cross_attention_frequency: count,
      encoder_hidden_size: count,
      use_qformer_text_input: z.boolean().default(false),
    }),
  ),
});

/** The sizes in a `config.json`. @throws PretrainedError `PRETRAINED_CONFIG` for what this BLIP-2 does not have */
export function blip2SizesOf(config: Readonly<Record<string, unknown>>): Blip2Sizes {
  const given = parsedConfig(configSchema, config, 'BLIP-2');
  const text = given.qformer_config;
  return {
    vision: vitSizesIn(given.vision_config),
    qFormer: {
      ...encoderSizesOf(text),
      contextWidth: text.encoder_hidden_size,
      crossEvery: text.cross_attention_frequency,
      hasText: text.use_qformer_text_input,
    },
    numQueries: given.num_query_tokens,
    vocabulary: text.vocab_size,
    length: text.max_position_embeddings,
    embedding: given.image_text_hidden_size,
  };
}

/** A `config.json` that {@link blip2SizesOf} reads back. */
export function blip2ConfigJson(sizes: Blip2Sizes): Record<string, unknown> {
  const { vision, qFormer } = sizes;
  return {
    model_type: 'blip-2',
    architectures: ['Blip2ForImageTextRetrieval'],
    num_query_tokens: sizes.numQueries,
    image_text_hidden_size: sizes.embedding,
    image_token_index: null,
    vision_config: { model_type: 'blip_2_vision_model', ...vitJson(vision), qkv_bias: true },
    qformer_config: {
      model_type: 'blip_2_qformer',
      ...encoderJson(qFormer),
      vocab_size: sizes.vocabulary,
      max_position_embeddings: sizes.length,
      cross_attention_frequency: qFormer.crossEvery,
      encoder_hidden_size: qFormer.contextWidth,
      use_qformer_text_input: qFormer.hasText,
    },
  };
}

/** The image encoder of all BLIP-2 models. */
export function blip2VisionWeights(
  path: string,
  prefix: string,
  { patchSize }: Pick<VitSizes, 'patchSize'>,
): Weights {
  const seen = `${prefix}embeddings`;
  return {
    [`${path}patches/kernel`]: patchKernel(`${seen}.patch_embedding.weight`, patchSize),
    [`${path}patches/bias`]: same(`${seen}.patch_embedding.bias`),
    [`${path}classToken`]: vector(`${seen}.class_embedding`),
    [`${path}position`]: batched(`${seen}.position_embedding`),
    ...blockWeights(`${path}blocks`, `${prefix}encoder.layers`, BLIP2_VISION_BLOCK),
    ...norm(`${path}finalNorm`, `${prefix}post_layernorm`),
  };
}

/** The Q-Former: its layers are ours in groups, of which the first looks at the context. */
export function qFormerWeights(
  path: string,
  prefix: string,
  { numLayers, crossEvery }: Pick<QFormerSizes, 'numLayers' | 'crossEvery'>,
): Weights {
  const numGroups = Math.floor(numLayers / crossEvery);
  const inGroups = Array.from({ length: crossEvery }, (_, i) =>
    atLayers(
      layerWeights(`${path}groups/*/${i}`, `${prefix}encoder.layer.*`),
      (group) => group * crossEvery + i,
    ),
  );
  const rest = Array.from({ length: numLayers % crossEvery }, (_, i) =>
    layerWeights(`${path}rest/${i}`, `${prefix}encoder.layer.${numGroups * crossEvery + i}`),
  );
  return Object.assign(
    { ...norm(`${path}norm`, `${prefix}layernorm`) },
    ...inGroups,
    ...rest,
  ) as Weights;
}

/** With cross-attention and texts, whether a layer has them or not. */
function layerWeights(path: string, prefix: string): Weights {
  const looks = (part: string): string => `${prefix}.${part}.attention`;
  const feedForward = (own: string, suffix: string): Weights => ({
    ...linear(`${path}/${own}/in`, `${prefix}.intermediate${suffix}.dense`),
    ...linear(`${path}/${own}/out`, `${prefix}.output${suffix}.dense`),
    ...norm(`${path}/${own}/norm`, `${prefix}.output${suffix}.LayerNorm`),
  });
  const [self, cross] = [looks('attention'), looks('crossattention')];
  return {
    ...fusedLinear(`${path}/attention/qkv`, [`${self}.query`, `${self}.key`, `${self}.value`]),
    ...linear(`${path}/attention/output`, `${prefix}.${BERT_BLOCK.output}`),
    ...norm(`${path}/attentionNorm`, `${prefix}.${BERT_BLOCK.attentionNorm}`),
    ...linear(`${path}/cross/query`, `${cross}.query`),
    ...fusedLinear(`${path}/cross/keyValue`, [`${cross}.key`, `${cross}.value`]),
    ...linear(`${path}/cross/output`, `${prefix}.crossattention.output.dense`),
    ...norm(`${path}/crossNorm`, `${prefix}.crossattention.output.LayerNorm`),
    ...feedForward('queries', '_query'),
    ...feedForward('text', ''),
  };
}

/** Names of `Blip2ForImageTextRetrieval`. */
export function blip2Weights({ vision, qFormer }: Blip2Sizes): WeightTable {
  return {
    weights: {
      ...blip2VisionWeights('vision/', 'vision_model.', vision),
      queries: batched('query_tokens'),
      'text/words': same('embeddings.word_embeddings.weight'),
      'text/position': same('embeddings.position_embeddings.weight'),
      ...qFormerWeights('qFormer/', 'qformer.', qFormer),
      ...linear('visionProjection', 'vision_projection'),
      ...linear('textProjection', 'text_projection'),
      ...linear('matchHead', 'itm_head'),
    },
    ignored: ['embeddings.position_ids'],
  };
}
