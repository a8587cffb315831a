/** FLAVA's three encoders as Hugging Face names and configures them. */
import * as z from 'zod';
import type { FlavaTrainingSizes } from '../models/flava-training.ts';
import type { FlavaSizes } from '../models/flava.ts';
import { bertEmbeddingWeights, bertFields, bertJson, bertSizesIn } from './bert.ts';
import { withDefaults } from './clip.ts';
import {
  blockWeights,
  count,
  encoderFields,
  encoderJson,
  encoderSizesOf,
  parsedConfig,
  VIT_BLOCK,
} from './encoder.ts';
import { vector, vitEncoderWeights, vitFields, vitJson, vitSizesIn } from './vit.ts';
import { linear, nested, norm, same, type WeightTable, type Weights } from './weight-table.ts';

/** transformers leaves out of a config what is as its own default. */
const defaults = {
  hidden_size: 768,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  intermediate_size: 3072,
  hidden_act: 'gelu',
  layer_norm_eps: 1e-12,
};

const hasBias = { qkv_bias: z.literal(true).default(true) };

const configSchema = z.object({
  model_type: z.literal('flava'),
  projection_dim: count.default(768),
  image_config: withDefaults(
    { ...defaults, image_size: 224, patch_size: 16 },
    z.object({ ...vitFields, ...hasBias, mask_token: z.literal(true).default(true) }),
  ),
  text_config: withDefaults(
    { ...defaults, vocab_size: 30522, max_position_embeddings: 512 },
    z.object({ ...bertFields, ...hasBias }),
  ),
  multimodal_config: withDefaults(
    { ...defaults, num_hidden_layers: 6 },
    z.object({ ...encoderFields, ...hasBias, use_cls_token: z.literal(true).default(true) }),
  ),
});

/** The sizes in a `config.json`. @throws PretrainedError `PRETRAINED_CONFIG` for what this FLAVA does not have */
export function flavaSizesOf(config: Readonly<Record<string, unknown>>): FlavaSizes {
  const given = parsedConfig(configSchema, config, 'FLAVA');
  return {
    image: vitSizesIn(given.image_config),
    text: bertSizesIn(given.text_config),
    joint: encoderSizesOf(given.multimodal_config),
    embedding: given.projection_dim,
  };
}

/** A `config.json` that {@link flavaSizesOf} reads back. */
export function flavaConfigJson({
  image,
  text,
  joint,
  embedding,
}: FlavaSizes): Record<string, unknown> {
  const own = { qkv_bias: true };
  return {
    model_type: 'flava',
    architectures: ['FlavaModel'],
    projection_dim: embedding,
    hidden_size: joint.width,
    image_config: { model_type: 'flava_image_model', ...vitJson(image), ...own, mask_token: true },
    text_config: { model_type: 'flava_text_model', ...bertJson(text), ...own },
    multimodal_config: {
      model_type: 'flava_multimodal_model',
      ...encoderJson(joint),
      ...own,
      use_cls_token: true,
    },
  };
}

/** Names of `FlavaModel`. */
export function flavaWeights({ image }: FlavaSizes): WeightTable {
  const [seen, read, both] = ['image_model', 'text_model', 'multimodal_model'];
  return {
    weights: {
      ...vitEncoderWeights('image/', `${seen}.`, image),
      'image/maskToken': vector(`${seen}.embeddings.mask_token`),
      ...linear('image/pooler', `${seen}.pooler.dense`),
      ...bertEmbeddingWeights('text/embedding', `${read}.embeddings`),
      ...blockWeights('text/blocks', `${read}.encoder.layer`, VIT_BLOCK),
      ...norm('text/finalNorm', `${read}.layernorm`),
      ...linear('text/pooler', `${read}.pooler.dense`),
      'joint/classToken': vector(`${both}.cls_token`),
      ...blockWeights('joint/blocks', `${both}.encoder.layer`, VIT_BLOCK),
      ...norm('joint/finalNorm', `${both}.layernorm`),
      ...linear('joint/pooler', `${both}.pooler.dense`),
      ...linear('imageToJoint', 'image_to_mm_projection'),
      ...linear('textToJoint', 'text_to_mm_projection'),
      ...linear('imageProjection', 'image_projection'),
      ...linear('textProjection', 'text_projection'),
      logitScale: same('logit_scale'),
    },
    ignored: [`${read}.embeddings.position_ids`],
  };
}

/** A `config.json` of `FlavaForPreTraining`, whose visual words are ours: it makes none of its own. */
export function flavaPretrainingJson(sizes: FlavaTrainingSizes): Record<string, unknown> {
  const { image_config: image, ...rest } = flavaConfigJson(sizes);
  return {
    ...rest,
    architectures: ['FlavaForPreTraining'],
    init_codebook: false,
    image_config: { ...(image as object), vocab_size: sizes.codes },
  };
}

/** Names of `FlavaForPreTraining`; the poolers that it has beside these are read by none of its losses. */
export function flavaPretrainingWeights(sizes: FlavaSizes): WeightTable {
  const { weights, ignored = [] } = flavaWeights(sizes);
  const head = (path: string, name: string): Weights => ({
    ...linear(`${path}/dense`, `${name}.transform.dense`),
    ...norm(`${path}/norm`, `${name}.transform.LayerNorm`),
    [`${path}/bias`]: same(`${name}.decoder.bias`),
    [`${path}/table`]: same(`${name}.decoder.weight`),
  });
  return {
    weights: {
      ...nested(weights, { path: '', prefix: 'flava.' }),
      ...linear('joint/pooler', 'itm_head.pooler.dense'),
      ...linear('heads/match', 'itm_head.seq_relationship'),
      ...head('heads/image', 'mim_head'),
      ...head('heads/text', 'mlm_head'),
      ...head('heads/jointImage', 'mmm_image_head'),
      ...head('heads/jointText', 'mmm_text_head'),
    },
    ignored: ignored.map((name) => `flava.${name}`),
  };
}
