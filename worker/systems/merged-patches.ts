/**
 * What systems share that put every few patch tokens of a picture side by side, project them by one linear layer and
 * adapt the language model by LoRA. Source: MiniGPT-v2, Chen et al. 2023, arXiv:2310.09478, sec. 3.1.
 */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { count } from '../config-fields.ts';
import { under, type Initializer } from '../initializer.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import type { LoraConfig } from '../tuning/lora.ts';
import { vit, type VitParams } from '../models/vit.ts';
import { concatenateTokens } from '../tokens/concatenate-merge.ts';
import { encoderKind } from '../part-kind.ts';
import { publishedVision } from '../pretrained/published-parts.ts';
import type { TensorTree } from '../tree.ts';
import type { DialogueConfig, DialogueParts } from './dialogue-system.ts';
import {
  languageFault,
  languageFields,
  type Language,
  type LanguageFields,
} from './language-part.ts';
import {
  initVision,
  patchesPerPicture,
  unpackedPictures,
  visionFault,
  visionFields,
  visionSizes,
  type PictureShape,
} from './vision-part.ts';

export const mergedPatchesFields = {
  vision: visionFields,
  merge: count('Tokens of a row of patches that become one; 1 merges none, for comparison'),
  language: languageFields,
  lora: z
    .strictObject({
      rank: count('Rank of the change'),
      alpha: z.number().positive().describe('The change is scaled by alpha / rank'),
    })
    .describe('Of queries and values of the language model'),
};

/** `lora` is what the language model is adapted by unless `tuning` is; some systems say which of its layers are. */
export type MergedPatchesConfig = Omit<z.infer<z.ZodObject<typeof mergedPatchesFields>>, 'lora'> & {
  readonly lora: LoraConfig;
} & Pick<DialogueConfig, 'tuning'>;

export type MergedPatchesParams = {
  readonly vision: VitParams;
  readonly projection: DenseParams;
  readonly language: TensorTree;
};

/** What is wrong with the fields taken together, if anything. */
export function mergedPatchesFault({
  model,
  data: { frameSize },
  train,
}: LanguageFields & {
  readonly model: MergedPatchesConfig;
  readonly data: { readonly frameSize: number };
}): string | undefined {
  const perRow = frameSize / model.vision.patchSize;
  return (
    visionFault(model.vision, frameSize) ??
    languageFault({ model, train }) ??
    (perRow % model.merge === 0
      ? undefined
      : `a row of patches has ${perRow}, which is not a multiple of model.merge (${model.merge})`)
  );
}

/** Soft tokens of a picture. */
export function tokensPerPicture(
  { vision, merge }: MergedPatchesConfig,
  { frameSize }: PictureShape,
): number {
  return patchesPerPicture(vision, frameSize) / merge;
}

/** The parts that make such a system, and how it sees. */
export function mergedPatches(
  model: MergedPatchesConfig,
  data: PictureShape,
  language: Language,
): Pick<
  DialogueParts<MergedPatchesParams>,
  'kinds' | 'published' | 'lora' | 'init' | 'languageOf'
> & {
  /** Pictures as `packedPictures` gives them, N a row, to soft tokens [B N, tokens of a picture, W]. */
  readonly seen: (params: MergedPatchesParams, packed: tf.Tensor) => tf.Tensor;
} {
  const vision = visionSizes(model.vision, data);
  const numPatches = patchesPerPicture(model.vision, data.frameSize);
  return {
    kinds: { vision: encoderKind(vision) },
    published: [publishedVision('vision', model.vision.kind, vision)],
    lora: model.lora,
    init: (init: Initializer) => ({
      vision: initVision(model.vision, data, { init, path: 'vision' }),
      projection: initDense(
        init,
        'projection',
        model.merge * model.vision.width,
        model.language.width,
      ),
      language: language.init(under('language', init)),
    }),
    languageOf: ({ language: own }) => own,
    seen(params, packed) {
      const states = vit(params.vision, unpackedPictures(packed, data), vision);
      const patches = tf.slice(states, [0, 1, 0], [-1, numPatches, -1]);
      return dense(params.projection, concatenateTokens(patches, model.merge));
    },
  };
}
