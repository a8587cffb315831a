/**
 * BLIP-2, second stage: what the Q-Former's queries have read becomes a soft prompt of a frozen language model.
 * Source: Li et al. 2023, arXiv:2301.12597, sec. 3.3, for decoder-only language models.
 */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { under } from '../initializer.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { imageQueries, initQueries, type ImageQueryParams } from '../models/image-queries.ts';
import { encoderKind } from '../part-kind.ts';
import { publishedVision } from '../pretrained/published-parts.ts';
import type { TensorTree } from '../tree.ts';
import { filledTemplate } from './dialogue.ts';
import { dialogueFields, dialogueSystem } from './dialogue-system.ts';
import { changedRow } from './frame-changes.ts';
import { languageFault, languageFields, languageOf } from './language-part.ts';
import { qFormerFault, qFormerFields, qFormerSizes } from './q-former-part.ts';
import { defineSystem, isClipWithWords } from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import {
  anyPicture,
  initVision,
  packedPictures,
  unpackedPictures,
  visionFault,
  visionFields,
  visionSizes,
} from './vision-part.ts';

const fields = z.strictObject({
  name: z
    .literal('blip2-generation')
    .describe('Li et al. 2023, arXiv:2301.12597, the second stage'),
  vision: visionFields,
  qFormer: qFormerFields,
  language: languageFields,
  blind: z.boolean().describe('All pictures are grey; for comparison'),
  template: z.string().describe('A conversation up to the answer, with {seen} and {question}'),
  ...dialogueFields,
});

type Blip2GenerationConfig = z.infer<typeof fields>;

type Blip2GenerationParams = ImageQueryParams & {
  readonly projection: DenseParams;
  readonly language: TensorTree;
};

export const blip2Generation = defineSystem<Blip2GenerationConfig, Blip2GenerationParams>({
  schema: fields,
  sampleKind: 'a clip of one video with words',
  takes: isClipWithWords,
  check: ({ model, data }) =>
    visionFault(model.vision, data.frameSize) ??
    qFormerFault(model.qFormer) ??
    languageFault(model),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.textVocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder }) {
    const tokenizer = await readTokenizer(folder);
    const language = languageOf(model.language, tokenizer.vocabularySize);
    const { frameSize } = data;
    const vision = visionSizes(model.vision, data);
    const qFormer = qFormerSizes(model.qFormer, {
      contextWidth: model.vision.width,
      hasText: false,
    });
    const picture = anyPicture(train.seed, 'picture');
    return dialogueSystem<Blip2GenerationParams>({
      name: 'blip2-generation',
      config: model,
      ...{ frameSize, seed: train.seed, tokenizer, language },
      views: ['picture'],
      kinds: { vision: encoderKind(vision), qFormer: encoderKind(qFormer, 'behind') },
      published: [publishedVision('vision', model.vision.kind, vision)],
      init: (init) => ({
        vision: initVision(model.vision, data, { init, path: 'vision' }),
        ...initQueries(qFormer, model.qFormer.queries, init),
        projection: initDense(init, 'projection', model.qFormer.width, model.language.width),
        language: language.init(under('language', init)),
      }),
      languageOf: ({ language: own }) => own,
      see(params, batch) {
        const { pictures } = batch as Readonly<Record<string, tf.Tensor>>;
        const images = unpackedPictures(pictures!, data);
        return dense(params.projection, imageQueries(params, images, { vision, qFormer }));
      },
      arrays(rows) {
        const blank = { frameSize, seed: train.seed };
        const shown = model.blind ? rows.map((row) => changedRow(row, 'blank', blank)) : rows;
        return { pictures: packedPictures(shown, data, picture) };
      },
      windowsShown: (row) => (model.blind ? [] : picture(row, data.windows)),
      prompt: (_row, question) =>
        filledTemplate(model.template, {
          seen: [{ numSoft: model.qFormer.queries }],
          question: [{ words: question, isQuestion: true }],
        }),
    });
  },
});
