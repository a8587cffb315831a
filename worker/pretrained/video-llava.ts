/** Video-LLaVA as Hugging Face names and configures it. */
import * as z from 'zod';
import type { VideoLlavaSizes } from '../models/video-llava.ts';
import { clipVisionJson, clipVisionSizesOf, clipVisionWeights } from './clip.ts';
import { ACTIVATION_NAMES, activationField, activationName, parsedConfig } from './encoder.ts';
import { llamaConfigJson, llamaConfigOf, llamaWeights } from './llama.ts';
import type { TensorSource } from './tensor-source.ts';
import { linear, nested, type WeightTable } from './weight-table.ts';

const part = z.record(z.string(), z.unknown());

const configSchema = z.object({
  model_type: z.literal('video_llava'),
  vision_config: part,
  text_config: part,
  image_token_index: z.int(),
  video_token_index: z.int(),
  projector_hidden_act: activationField.default('gelu'),
  multimodal_projector_bias: z.literal(true).default(true),
  vision_feature_layer: z.int().negative().default(-2),
  vision_feature_select_strategy: z.literal('default').default('default'),
});

export interface VideoLlavaConfig {
  readonly sizes: VideoLlavaSizes;
  /** Ids in whose places the soft tokens of a picture and of a clip stand. */
  readonly imageId: number;
  readonly videoId: number;
}

/** What a `config.json` says. @throws PretrainedError `PRETRAINED_CONFIG` for what this Video-LLaVA does not have */
export function videoLlavaConfigOf(config: Readonly<Record<string, unknown>>): VideoLlavaConfig {
  const given = parsedConfig(configSchema, config, 'Video-LLaVA');
  return {
    sizes: {
      vision: clipVisionSizesOf(given.vision_config),
      language: llamaConfigOf(given.text_config),
      activation: ACTIVATION_NAMES[given.projector_hidden_act],
      // Theirs counts states from the end, the last one being -1.
      blocksLeftOut: -1 - given.vision_feature_layer,
    },
    imageId: given.image_token_index,
    videoId: given.video_token_index,
  };
}

/** A `config.json` that {@link videoLlavaConfigOf} reads back. */
export function videoLlavaConfigJson(
  { sizes, imageId, videoId }: VideoLlavaConfig,
  maxPositions: number,
): Record<string, unknown> {
  return {
    model_type: 'video_llava',
    architectures: ['VideoLlavaForConditionalGeneration'],
    vision_config: clipVisionJson(sizes.vision),
    text_config: llamaConfigJson(sizes.language, maxPositions),
    image_token_index: imageId,
    video_token_index: videoId,
    projector_hidden_act: activationName(sizes.activation),
    multimodal_projector_bias: true,
    vision_feature_layer: -1 - sizes.blocksLeftOut,
    vision_feature_select_strategy: 'default',
    tie_word_embeddings: sizes.language.isTied,
  };
}

/** Names of `VideoLlavaForConditionalGeneration`: those of transformers 5, or those that released files have. */
export function videoLlavaWeights(
  { vision, language }: VideoLlavaSizes,
  shapes: TensorSource['shapes'] = new Map(),
): WeightTable {
  const isReleased = [...shapes.keys()].some((name) =>
    name.startsWith('image_tower.vision_model.'),
  );
  const inner = isReleased ? 'vision_model.' : '';
  const llama = llamaWeights(language);
  return {
    weights: {
      ...clipVisionWeights('imageTower/', `image_tower.${inner}`, vision),
      ...clipVisionWeights('videoTower/', `video_tower.${inner}`, vision),
      ...linear('projection/in', 'multi_modal_projector.linear_1'),
      ...linear('projection/out', 'multi_modal_projector.linear_2'),
      ...nested(llama.weights, { path: 'language/', prefix: 'language_model.' }),
    },
    ignored: [
      `image_tower.${inner}embeddings.position_ids`,
      `video_tower.${inner}embeddings.position_ids`,
      ...(llama.ignored ?? []).map((name) => `language_model.${name}`),
    ],
    tied: Object.fromEntries(
      Object.entries(llama.tied ?? {}).map((pair) => pair.map((name) => `language_model.${name}`)),
    ) as Record<string, string>,
  };
}
