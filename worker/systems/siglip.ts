/** SigLIP: two towers and a sigmoid for every pair of the global batch. Source: Zhai et al. 2023, arXiv:2303.15343. */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import type { RunConfig } from '../config-fields.ts';
import { sigmoidSums } from '../losses/contrastive.ts';
import {
  initSiglip,
  siglipImages,
  siglipTexts,
  type SiglipParams,
  type SiglipSizes,
} from '../models/siglip.ts';
import { encoderKind } from '../part-kind.ts';
import { publishedSiglip } from '../pretrained/published-parts.ts';
import { SIGLIP_PIXELS } from '../tokens/pixels.ts';
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
  checkPixels,
  checkVision,
  textFields,
  textSizes,
  visionFields,
  visionSizes,
} from './tower-fields.ts';

const fields = z.strictObject({
  name: z.literal('siglip').describe('Zhai et al. 2023, arXiv:2303.15343'),
  vision: visionFields.describe('The tower that sees; a learned query reads its tokens'),
  text: textFields.describe('The tower that reads; its last position speaks for the text'),
  initialBias: z
    .number()
    .describe(
      'What is added to similarities at first; it is learned. About minus the logarithm of the rows of a global batch, ' +
        'else the first steps go into pulling all clips and texts together',
    ),
  ...retrievalFields,
});

type SiglipConfig = z.infer<typeof fields>;

export const siglip = defineSystem<SiglipConfig, SiglipParams>({
  schema: fields,
  sampleKind: 'a picture or a clip of one video, with words',
  takes: isOneMediumWithWords,
  check({ model: { vision, text, frames }, data }) {
    // Released towers of patches of 14 see 384 pixels. Moments that stand one below the other leave no border.
    const mayHaveBorder = momentsOf(frames, data) === 1 && vision.patchSize <= data.frameSize;
    const fault = mayHaveBorder
      ? (checkPixels(data) ?? checkBlocks('model.vision', vision))
      : checkVision('model.vision', vision, data);
    return fault ?? checkBlocks('model.text', text);
  },
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.text.vocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder, index }) {
    const tokenizer = await readTokenizer(folder);
    const sizes = siglipSizes(model, data);
    const shape = { data, frames: model.frames, pixels: SIGLIP_PIXELS };
    return retrievalSystem({
      ...{
        name: 'siglip',
        seed: train.seed,
        tokenizer,
        splits: index,
        hasStart: false,
      },
      maxTokens: model.text.maxTokens,
      tokensOfClip: data.windows * Math.floor(data.frameSize / model.vision.patchSize) ** 2,
      parameters: ['logitScale', 'logitBias'],
      kinds: {
        vision: encoderKind(sizes.vision),
        visionHead: encoderKind(sizes.vision),
        text: encoderKind(sizes.text),
      },
      published: [publishedSiglip(sizes)],
      init: (initializer) => initSiglip(sizes, initializer, { bias: model.initialBias }),
      clips: (params, pixels) =>
        clipEmbeddings(pixels, shape, (images) => siglipImages(params, images, sizes)),
      texts: (params, ids) => siglipTexts(params, { ids }, sizes),
      sums: ({ logitScale, logitBias }, pairs) =>
        sigmoidSums(pairs, tf.exp(logitScale), logitBias, model.contrastChunk ?? undefined),
    });
  },
});

export function siglipSizes(
  { vision, text, frames }: Pick<SiglipConfig, 'vision' | 'text' | 'frames'>,
  data: RunConfig['data'],
): SiglipSizes {
  const kind = { activation: 'gelu-tanh', epsilon: 1e-6 } as const;
  const [channels, moments] = [channelsOf(frames, data), momentsOf(frames, data)];
  return {
    vision: visionSizes(vision, { imageSize: data.frameSize, channels, moments }, kind),
    text: textSizes(text, kind),
  };
}
