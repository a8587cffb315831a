/** CLIP as Hugging Face names and configures it. */
import * as z from 'zod';
import type { ClipSizes } from '../models/clip.ts';
import type { TextTowerSizes } from '../models/text-tower.ts';
import type { VitSizes } from '../models/vit.ts';
import {
  blockWeights,
  CLIP_BLOCK,
  count,
  encoderFields,
  encoderJson,
  encoderSizesOf,
  parsedConfig,
} from './encoder.ts';
import { vitFields, vitJson, vitSizesIn } from './vit.ts';
import {
  norm,
  patchKernel,
  same,
  transposed,
  type Weights,
  type WeightTable,
} from './weight-table.ts';

/** The fields of the text side of two towers. */
export const textTowerFields = {
  ...encoderFields,
  vocab_size: count,
  max_position_embeddings: count,
};

type TextTowerFields = z.infer<z.ZodObject<typeof textTowerFields>>;

/** transformers leaves out of a config what is as its own default. */
const defaults = { hidden_act: 'quick_gelu', layer_norm_eps: 1e-5 };
const visionDefaults = {
  ...defaults,
  hidden_size: 768,
  intermediate_size: 3072,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  image_size: 224,
  patch_size: 32,
};
const textDefaults = {
  ...defaults,
  vocab_size: 49408,
  hidden_size: 512,
  intermediate_size: 2048,
  num_hidden_layers: 12,
  num_attention_heads: 8,
  max_position_embeddings: 77,
};

/** The id that the first release's config names as the end, whose texts really end at their largest id. */
const FIRST_RELEASE_END = 2;

const configSchema = z.object({
  model_type: z.literal('clip'),
  projection_dim: count.default(512),
  vision_config: withDefaults(visionDefaults, z.object(vitFields)),
  text_config: withDefaults(
    textDefaults,
    z.object({ ...textTowerFields, eos_token_id: z.int().default(49407) }),
  ),
});

const visionSchema = withDefaults(
  visionDefaults,
  z.object({ model_type: z.literal('clip_vision_model'), ...vitFields }),
);

/** A schema for fields beside those that are left out. */
export function withDefaults<S extends z.ZodType>(
  others: Readonly<Record<string, unknown>>,
  schema: S,
): z.ZodPreprocess<S> {
  return z.preprocess((given) => ({ ...others, ...(given as object) }), schema);
}

/** The sizes in a `config.json`. @throws PretrainedError `PRETRAINED_CONFIG` for what this CLIP does not have */
export function clipSizesOf(config: Readonly<Record<string, unknown>>): ClipSizes {
  const given = parsedConfig(configSchema, config, 'CLIP');
  const end = given.text_config.eos_token_id;
  return {
    vision: vitSizesIn(given.vision_config),
    text: textTowerSizesIn(given.text_config),
    embedding: given.projection_dim,
    endId: end === FIRST_RELEASE_END ? undefined : end,
  };
}

/** The sizes of an image tower alone. @throws PretrainedError `PRETRAINED_CONFIG` */
export function clipVisionSizesOf(config: unknown): VitSizes {
  return vitSizesIn(parsedConfig(visionSchema, config, 'CLIP image tower'));
}

export function textTowerSizesIn(given: TextTowerFields): TextTowerSizes {
  return {
    ...encoderSizesOf(given),
    vocabulary: given.vocab_size,
    length: given.max_position_embeddings,
  };
}

/** The fields that {@link textTowerSizesIn} reads back. */
export function textTowerJson(sizes: TextTowerSizes): Record<string, unknown> {
  return {
    ...encoderJson(sizes),
    vocab_size: sizes.vocabulary,
    max_position_embeddings: sizes.length,
  };
}

/** A `config.json` that {@link clipSizesOf} reads back. */
export function clipConfigJson({
  vision,
  text,
  embedding,
  endId,
}: ClipSizes): Record<string, unknown> {
  const end = endId ?? FIRST_RELEASE_END;
  return {
    model_type: 'clip',
    architectures: ['CLIPModel'],
    projection_dim: embedding,
    vision_config: clipVisionJson(vision),
    text_config: { model_type: 'clip_text_model', ...textTowerJson(text), eos_token_id: end },
  };
}

export function clipVisionJson(sizes: VitSizes): Record<string, unknown> {
  return { model_type: 'clip_vision_model', ...vitJson(sizes) };
}

/** The image tower, whose names begin with `prefix`. The misspelling is theirs. */
export function clipVisionWeights(
  path: string,
  prefix: string,
  { patchSize }: Pick<VitSizes, 'patchSize'>,
): Weights {
  return {
    [`${path}patches/kernel`]: patchKernel(`${prefix}embeddings.patch_embedding.weight`, patchSize),
    [`${path}classToken`]: same(`${prefix}embeddings.class_embedding`),
    [`${path}position`]: same(`${prefix}embeddings.position_embedding.weight`),
    ...norm(`${path}inputNorm`, `${prefix}pre_layrnorm`),
    ...blockWeights(`${path}blocks`, `${prefix}encoder.layers`, CLIP_BLOCK),
    ...norm(`${path}finalNorm`, `${prefix}post_layernorm`),
  };
}

/** The text tower, as SigLIP has it too. */
export function textTowerWeights(path: string, prefix: string): Weights {
  return {
    [`${path}words`]: same(`${prefix}embeddings.token_embedding.weight`),
    [`${path}position`]: same(`${prefix}embeddings.position_embedding.weight`),
    ...blockWeights(`${path}blocks`, `${prefix}encoder.layers`, CLIP_BLOCK),
    ...norm(`${path}finalNorm`, `${prefix}final_layer_norm`),
  };
}

/** Names of `CLIPTextModelWithProjection`, within those of {@link clipWeights}. */
export function clipTextWeights(): Weights {
  return {
    ...textTowerWeights('text/', 'text_model.'),
    'textProjection/kernel': transposed('text_projection.weight'),
  };
}

/** What older files hold beside the weights. */
export const POSITION_IDS = [
  'text_model.embeddings.position_ids',
  'vision_model.embeddings.position_ids',
];

/** Names of `CLIPModel`. */
export function clipWeights({ vision }: ClipSizes): WeightTable {
  return {
    weights: {
      ...clipVisionWeights('vision/', 'vision_model.', vision),
      ...clipTextWeights(),
      'visionProjection/kernel': transposed('visual_projection.weight'),
      logitScale: same('logit_scale'),
    },
    ignored: POSITION_IDS,
  };
}
