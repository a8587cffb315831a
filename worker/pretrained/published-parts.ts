/** Parts of systems that transformers has too: how they are called and configured there, to be exported. */
import type { LoraConfig, LoraParams } from '../layers/lora.ts';
import type { Blip2Sizes } from '../models/blip2.ts';
import type { ClipSizes } from '../models/clip.ts';
import type { SiglipSizes } from '../models/siglip.ts';
import type { VitSizes } from '../models/vit.ts';
import { blip2ConfigJson, blip2VisionWeights, blip2Weights } from './blip2.ts';
import {
  clipConfigJson,
  clipTextWeights,
  clipVisionJson,
  clipVisionWeights,
  clipWeights,
  textTowerJson,
} from './clip.ts';
import type { HuggingFaceConfig } from './known-models.ts';
import { adapterJson, loraWeights } from './lora.ts';
import { siglipConfigJson, siglipTextWeights, siglipWeights } from './siglip.ts';
import { vitJson } from './vit.ts';
import type { WeightTable } from './weight-table.ts';

export interface PublishedPart {
  /** Of the part among the parameters; empty: all. Parameters below it that the table has not are left out. */
  readonly path: string;
  readonly table: WeightTable;
  readonly json: HuggingFaceConfig;
  /** Whether it has a table of words, with which the run's tokenizer goes. */
  readonly hasWords: boolean;
  /** Whether it is an adapter of peft, which is loaded beside the model that it adapts. */
  readonly isAdapter?: boolean;
}

/** CLIP as a whole; of one that sees several moments in one sequence, which transformers has not, the text tower. */
export function publishedClip(sizes: ClipSizes): PublishedPart {
  if ((sizes.vision.moments ?? 1) === 1) {
    return { path: '', table: clipWeights(sizes), json: clipConfigJson(sizes), hasWords: true };
  }
  const { text, embedding, endId } = sizes;
  const json = {
    ...{ model_type: 'clip_text_model', architectures: ['CLIPTextModelWithProjection'] },
    ...{ ...textTowerJson(text), projection_dim: embedding, eos_token_id: endId },
  };
  return { path: '', table: { weights: clipTextWeights() }, json, hasWords: true };
}

/** As {@link publishedClip}. */
export function publishedSiglip(sizes: SiglipSizes): PublishedPart {
  if ((sizes.vision.moments ?? 1) === 1) {
    return { path: '', table: siglipWeights(sizes), json: siglipConfigJson(sizes), hasWords: true };
  }
  const json = {
    ...{ model_type: 'siglip_text_model', architectures: ['SiglipTextModel'] },
    ...{ ...textTowerJson(sizes.text), projection_size: sizes.vision.width },
  };
  return { path: '', table: { weights: siglipTextWeights('') }, json, hasWords: true };
}

/** BLIP-2's first stage, whose vision tower is of the kind `vit`. */
export function publishedBlip2(sizes: Blip2Sizes): PublishedPart {
  return { path: '', table: blip2Weights(sizes), json: blip2ConfigJson(sizes), hasWords: true };
}

/** Factors of LoRA for a model of these names. @param form the factors without values */
export function publishedAdapter(
  path: string,
  form: LoraParams,
  { config, table }: { readonly config: LoraConfig; readonly table: WeightTable },
): PublishedPart {
  const json = adapterJson(form, config, table);
  return { path, table: loraWeights(form, table), json, hasWords: false, isAdapter: true };
}

/** A tower that sees single pictures: CLIP's or BLIP-2's. */
export function publishedVision(
  path: string,
  kind: 'clip' | 'vit',
  sizes: VitSizes,
): PublishedPart {
  const [weights, json] =
    kind === 'clip'
      ? [
          clipVisionWeights('', '', sizes),
          { ...clipVisionJson(sizes), architectures: ['CLIPVisionModel'] },
        ]
      : [
          blip2VisionWeights('', '', sizes),
          {
            ...{ model_type: 'blip_2_vision_model', architectures: ['Blip2VisionModel'] },
            ...{ ...vitJson(sizes), qkv_bias: true },
          },
        ];
  return { path, table: { weights }, json, hasWords: false };
}
