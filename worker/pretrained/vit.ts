/** ViT as Hugging Face names and configures it. */
import * as z from 'zod';
import type { VitSizes } from '../models/vit.ts';
import {
  blockWeights,
  count,
  encoderFields,
  encoderJson,
  encoderSizesOf,
  parsedConfig,
  VIT_BLOCK,
} from './encoder.ts';
import {
  linear,
  norm,
  patchKernel,
  same,
  shaped,
  type Weight,
  type Weights,
  type WeightTable,
} from './weight-table.ts';

/** The fields of an encoder of images. */
export const vitFields = {
  ...encoderFields,
  image_size: count,
  patch_size: count,
  num_channels: count.default(3),
};

type VitFields = z.infer<z.ZodObject<typeof vitFields>>;

const configSchema = z.object({
  model_type: z.literal('vit'),
  qkv_bias: z.literal(true).default(true),
  ...vitFields,
});

/** The sizes in a `config.json`. @throws PretrainedError `PRETRAINED_CONFIG` for what this ViT does not have */
export function vitSizesOf(config: Readonly<Record<string, unknown>>): VitSizes {
  return vitSizesIn(parsedConfig(configSchema, config, 'ViT'));
}

export function vitSizesIn(given: VitFields): VitSizes {
  return {
    ...encoderSizesOf(given),
    imageSize: given.image_size,
    patchSize: given.patch_size,
    channels: given.num_channels,
  };
}

/** The fields that {@link vitSizesIn} reads back. */
export function vitJson(sizes: VitSizes): Record<string, unknown> {
  return {
    ...encoderJson(sizes),
    image_size: sizes.imageSize,
    patch_size: sizes.patchSize,
    num_channels: sizes.channels,
  };
}

/** A `config.json` that {@link vitSizesOf} reads back. */
export function vitConfigJson(sizes: VitSizes): Record<string, unknown> {
  return { model_type: 'vit', architectures: ['ViTModel'], qkv_bias: true, ...vitJson(sizes) };
}

/** A vector [D], there [1, 1, D]. */
export function vector(name: string): Weight {
  return shaped(name, (shape) => [1, 1, ...shape]);
}

/** A table [N, D], there [1, N, D]. */
export function batched(name: string): Weight {
  return shaped(name, (shape) => [1, ...shape]);
}

/** The encoder of `ViTModel` and FLAVA's, which is made like it. */
export function vitEncoderWeights(
  path: string,
  prefix: string,
  { patchSize }: Pick<VitSizes, 'patchSize'>,
): Weights {
  const patches = `${prefix}embeddings.patch_embeddings.projection`;
  return {
    [`${path}patches/kernel`]: patchKernel(`${patches}.weight`, patchSize),
    [`${path}patches/bias`]: same(`${patches}.bias`),
    [`${path}classToken`]: vector(`${prefix}embeddings.cls_token`),
    [`${path}position`]: batched(`${prefix}embeddings.position_embeddings`),
    ...blockWeights(`${path}blocks`, `${prefix}encoder.layer`, VIT_BLOCK),
    ...norm(`${path}finalNorm`, `${prefix}layernorm`),
  };
}

/** Names of `ViTModel`; of `vit` and, where the model has it, its `pooler`. */
export function vitWeights(sizes: VitSizes): WeightTable {
  return {
    weights: { ...vitEncoderWeights('vit/', '', sizes), ...linear('pooler', 'pooler.dense') },
  };
}
