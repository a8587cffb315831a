/** SigLIP as Hugging Face names and configures it. */
import * as z from 'zod';
import type { SiglipSizes } from '../models/siglip.ts';
import {
  POSITION_IDS,
  textTowerFields,
  textTowerJson,
  textTowerSizesIn,
  textTowerWeights,
  withDefaults,
} from './clip.ts';
import { blockWeights, CLIP_BLOCK, count, parsedConfig } from './encoder.ts';
import { vector, vitFields, vitJson, vitSizesIn } from './vit.ts';
import {
  linear,
  norm,
  patchKernel,
  same,
  transposed,
  type Weights,
  type WeightTable,
} from './weight-table.ts';

/** transformers leaves out of a config what is as its own default. */
const defaults = {
  hidden_size: 768,
  intermediate_size: 3072,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  hidden_act: 'gelu_pytorch_tanh',
  layer_norm_eps: 1e-6,
};

const configSchema = z.object({
  model_type: z.literal('siglip'),
  vision_config: withDefaults(
    { ...defaults, image_size: 224, patch_size: 16 },
    z.object({ ...vitFields, vision_use_head: z.literal(true).default(true) }),
  ),
  text_config: withDefaults(
    { ...defaults, vocab_size: 32000, max_position_embeddings: 64 },
    z.object({ ...textTowerFields, projection_size: count.optional() }),
  ),
});

/** The sizes in a `config.json`. @throws PretrainedError `PRETRAINED_CONFIG` for what this SigLIP does not have */
export function siglipSizesOf(config: Readonly<Record<string, unknown>>): SiglipSizes {
  const { vision_config: vision, text_config: text } = parsedConfig(configSchema, config, 'SigLIP');
  return { vision: vitSizesIn(vision), text: textTowerSizesIn(text) };
}

/** A `config.json` that {@link siglipSizesOf} reads back. */
export function siglipConfigJson({ vision, text }: SiglipSizes): Record<string, unknown> {
  return {
    model_type: 'siglip',
    architectures: ['SiglipModel'],
    vision_config: { model_type: 'siglip_vision_model', ...vitJson(vision) },
    text_config: {
      model_type: 'siglip_text_model',
      ...textTowerJson(text),
      projection_size: vision.width,
    },
  };
}

/** The text tower with its head, whose names begin with `prefix`. */
export function siglipTextWeights(prefix: string): Weights {
  return { ...textTowerWeights('text/', prefix), ...linear('textHead', `${prefix}head`) };
}

/** Names of `SiglipModel`. */
export function siglipWeights({ vision }: SiglipSizes): WeightTable {
  const seen = 'vision_model.embeddings';
  const head = 'vision_model.head';
  return {
    weights: {
      'vision/patches/kernel': patchKernel(`${seen}.patch_embedding.weight`, vision.patchSize),
      'vision/patches/bias': same(`${seen}.patch_embedding.bias`),
      'vision/position': same(`${seen}.position_embedding.weight`),
      ...blockWeights('vision/blocks', 'vision_model.encoder.layers', CLIP_BLOCK),
      ...norm('vision/finalNorm', 'vision_model.post_layernorm'),
      'visionHead/probe': vector(`${head}.probe`),
      'visionHead/attention/qkv/kernel': transposed(`${head}.attention.in_proj_weight`),
      'visionHead/attention/qkv/bias': same(`${head}.attention.in_proj_bias`),
      ...linear('visionHead/attention/output', `${head}.attention.out_proj`),
      ...norm('visionHead/mlpNorm', `${head}.layernorm`),
      ...linear('visionHead/mlpIn', `${head}.mlp.fc1`),
      ...linear('visionHead/mlpOut', `${head}.mlp.fc2`),
      ...siglipTextWeights('text_model.'),
      logitScale: same('logit_scale'),
      logitBias: same('logit_bias'),
    },
    ignored: POSITION_IDS,
  };
}
