/** CLIP: two towers and InfoNCE over the global batch. Source: Radford et al. 2021, arXiv:2103.00020. */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { count } from '../config-fields.ts';
import { infoNceSums, LOGIT_SCALE_BOUNDS } from '../losses/contrastive.ts';
import {
  clipImages,
  clipTexts,
  initClip,
  type ClipParams,
  type ClipSizes,
} from '../models/clip.ts';
import { encoderKind } from '../part-kind.ts';
import { publishedClip } from '../pretrained/published-parts.ts';
import { CLIP_PIXELS } from '../tokens/pixels.ts';
import {
  channelsOf,
  clipEmbeddings,
  momentsOf,
  retrievalFields,
  retrievalSystem,
} from './retrieval.ts';
import { defineSystem, isOneMediumWithWords } from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import {
  checkBlocks,
  checkVision,
  textFields,
  textSizes,
  visionFields,
  visionSizes,
} from './tower-fields.ts';
import type { RunConfig } from '../config-fields.ts';

const fields = z.strictObject({
  name: z.literal('clip').describe('Radford et al. 2021, arXiv:2103.00020'),
  vision: visionFields.describe('The tower that sees'),
  text: textFields.describe('The tower that reads; each word sees those before it'),
  embedding: count('Width of the space that clips and texts share'),
  ...retrievalFields,
});

type ClipConfig = z.infer<typeof fields>;

export const clip = defineSystem<ClipConfig, ClipParams>({
  schema: fields,
  sampleKind: 'a picture or a clip of one video, with words',
  takes: isOneMediumWithWords,
  check: ({ model: { vision, text }, data }) =>
    checkVision('model.vision', vision, data) ?? checkBlocks('model.text', text),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.text.vocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder, index }) {
    const tokenizer = await readTokenizer(folder);
    const sizes = clipSizes(model, data, tokenizer.special.sep);
    const shape = { data, frames: model.frames, pixels: CLIP_PIXELS };
    return retrievalSystem({
      ...{
        name: 'clip',
        seed: train.seed,
        tokenizer,
        splits: index,
        hasStart: true,
      },
      maxTokens: model.text.maxTokens,
      tokensOfClip: data.windows * (data.frameSize / model.vision.patchSize) ** 2 + 1,
      parameters: ['logitScale'],
      kinds: { vision: encoderKind(sizes.vision), text: encoderKind(sizes.text) },
      published: [publishedClip(sizes)],
      init: (initializer) => initClip(sizes, initializer),
      clips: (params, pixels) =>
        clipEmbeddings(pixels, shape, (images) => clipImages(params, images, sizes)),
      texts: (params, ids) => clipTexts(params, { ids }, sizes),
      bounds: { logitScale: LOGIT_SCALE_BOUNDS },
      sums: ({ logitScale }, pairs) =>
        infoNceSums(pairs, tf.exp(logitScale), model.contrastChunk ?? undefined),
    });
  },
});

export function clipSizes(
  { vision, text, embedding, frames }: ClipConfig,
  data: RunConfig['data'],
  endId: number,
): ClipSizes {
  const kind = { activation: 'quick-gelu', epsilon: 1e-5 } as const;
  const [channels, moments] = [channelsOf(frames, data), momentsOf(frames, data)];
  return {
    vision: visionSizes(vision, { imageSize: data.frameSize, channels, moments }, kind),
    text: textSizes(text, kind),
    embedding,
    endId,
  };
}
