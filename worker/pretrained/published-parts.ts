/** Parts of systems that transformers has too: how they are called and configured there, to be exported. */
import type { Blip2Sizes } from '../models/blip2.ts';
import type { ClipSizes } from '../models/clip.ts';
import type { FlavaTrainingSizes } from '../models/flava-training.ts';
import type { SiglipSizes } from '../models/siglip.ts';
import type { VisualBertSizes } from '../models/visual-bert.ts';
import type { VitSizes } from '../models/vit.ts';
import { CLIP_PIXELS, SIGLIP_PIXELS, type PixelStatistics } from '../tokens/pixels.ts';
import { blip2ConfigJson, blip2VisionWeights, blip2Weights } from './blip2.ts';
import {
  clipConfigJson,
  clipTextWeights,
  clipVisionJson,
  clipVisionWeights,
  clipWeights,
  textTowerJson,
} from './clip.ts';
import { flavaPretrainingJson, flavaPretrainingWeights } from './flava.ts';
import type { HuggingFaceConfig } from './known-models.ts';
import { siglipConfigJson, siglipTextWeights, siglipWeights } from './siglip.ts';
import { VISUAL_BERT_WEIGHTS, visualBertConfigJson } from './visual-bert.ts';
import { vitJson } from './vit.ts';
import type { HostTensor } from './tensor-source.ts';
import type { WeightTable } from './weight-table.ts';

export interface PublishedPart {
  /** Of the part among the parameters; empty: all. Parameters below it that the table has not are left out. */
  readonly path: string;
  readonly table: WeightTable;
  readonly json: HuggingFaceConfig;
  /** Whether it has a table of words, with which the run's tokenizer goes. */
  readonly hasWords: boolean;
  /** What it reads, each with `[SEP]` at its end; undefined: a language model, whose texts are as they are written. */
  readonly texts?: PublishedTexts;
  /** What it sees; undefined: nothing, or more than the three channels of a picture. */
  readonly pictures?: PublishedPictures;
  /** Why transformers cannot have it after all, to be told in place of its files. */
  readonly unfit?: string;
  /** Whether it is an adapter of peft, which is loaded beside the model that it adapts. */
  readonly isAdapter?: boolean;
  /** Tensors that are no parameter each, by their names there. @param valuesOf of the system's parameters, one a layer */
  readonly further?: (valuesOf: (name: string) => Float32Array) => ReadonlyMap<string, HostTensor>;
}

export interface PublishedTexts {
  /** Whether they begin with `[CLS]`. */
  readonly hasStart: boolean;
  /** Of a text, special tokens included. */
  readonly maxTokens: number;
}

export interface PublishedPictures {
  /** Height and width, pixels. */
  readonly size: number;
  readonly pixels: PixelStatistics;
}

function picturesOf(
  { channels, imageSize }: VitSizes,
  pixels = CLIP_PIXELS,
): Pick<PublishedPart, 'pictures'> {
  return channels === 3 ? { pictures: { size: imageSize, pixels } } : {};
}

/** transformers' `Blip2VisionEmbeddings` has as many channels whatever its config says. */
const BLIP2_CHANNELS = 3;

function blip2Fault({ channels }: VitSizes): Pick<PublishedPart, 'unfit'> {
  return channels === BLIP2_CHANNELS
    ? {}
    : {
        unfit: `it sees ${channels} channels, the frames of a window in one, and Blip2VisionModel of transformers has ${BLIP2_CHANNELS}`,
      };
}

/** CLIP as a whole; of one that sees several moments in one sequence, which transformers has not, the text tower. */
export function publishedClip(sizes: ClipSizes): PublishedPart {
  const { vision, text, embedding, endId } = sizes;
  const words = { hasWords: true, texts: { hasStart: true, maxTokens: text.length } };
  if ((vision.moments ?? 1) === 1) {
    const json = clipConfigJson(sizes);
    return { path: '', table: clipWeights(sizes), json, ...words, ...picturesOf(vision) };
  }
  const json = {
    ...{ model_type: 'clip_text_model', architectures: ['CLIPTextModelWithProjection'] },
    ...{ ...textTowerJson(text), projection_dim: embedding, eos_token_id: endId },
  };
  return { path: '', table: { weights: clipTextWeights() }, json, ...words };
}

/** As {@link publishedClip}. */
export function publishedSiglip(sizes: SiglipSizes): PublishedPart {
  const { vision, text } = sizes;
  const words = { hasWords: true, texts: { hasStart: false, maxTokens: text.length } };
  if ((vision.moments ?? 1) === 1) {
    const json = siglipConfigJson(sizes);
    const pictures = picturesOf(vision, SIGLIP_PIXELS);
    return { path: '', table: siglipWeights(sizes), json, ...words, ...pictures };
  }
  const json = {
    ...{ model_type: 'siglip_text_model', architectures: ['SiglipTextModel'] },
    ...{ ...textTowerJson(text), projection_size: vision.width },
  };
  return { path: '', table: { weights: siglipTextWeights('') }, json, ...words };
}

/** BLIP-2's first stage, whose vision tower is of the kind `vit`. */
export function publishedBlip2(sizes: Blip2Sizes): PublishedPart {
  return {
    ...{ path: '', table: blip2Weights(sizes), json: blip2ConfigJson(sizes) },
    ...{ hasWords: true, texts: { hasStart: true, maxTokens: sizes.length } },
    ...{ ...picturesOf(sizes.vision), ...blip2Fault(sizes.vision) },
  };
}

/** FLAVA with its heads. Its words are as long as the model reads, [CLS] and [SEP] included. */
export function publishedFlava(sizes: FlavaTrainingSizes): PublishedPart {
  return {
    ...{ path: '', table: flavaPretrainingWeights(sizes), json: flavaPretrainingJson(sizes) },
    ...{ hasWords: true, texts: { hasStart: true, maxTokens: sizes.text.length } },
    ...picturesOf(sizes.image),
  };
}

/** VisualBERT as a whole; its regions come from elsewhere. */
export function publishedVisualBert(sizes: VisualBertSizes): PublishedPart {
  return {
    ...{ path: '', table: VISUAL_BERT_WEIGHTS, json: visualBertConfigJson(sizes) },
    ...{ hasWords: true, texts: { hasStart: true, maxTokens: sizes.length } },
  };
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
  const fault = kind === 'vit' ? blip2Fault(sizes) : {};
  return { path, table: { weights }, json, hasWords: false, ...picturesOf(sizes), ...fault };
}
