/** What systems share of which the queries that looked at one picture become a soft prompt through one linear layer. */
import type * as tf from '@tensorflow/tfjs-core';
import { under } from '../initializer.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { imageQueries, initQueries, type ImageQueryParams } from '../models/image-queries.ts';
import { encoderKind } from '../part-kind.ts';
import { publishedVision } from '../pretrained/published-parts.ts';
import type { TensorTree } from '../tree.ts';
import * as z from 'zod';
import { filledTemplate } from './dialogue.ts';
import { dialogueFields, dialogueSystem } from './dialogue-system.ts';
import { changedRow, withFramesOfOthers } from './frame-changes.ts';
import { languageFault, languageFields, languageOf } from './language-part.ts';
import { qFormerFault, qFormerFields, qFormerSizes } from './q-former-part.ts';
import {
  isOneMediumWithWords,
  type SystemContext,
  type SystemDefinition,
  type VideoLanguageSystem,
} from './system.ts';
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

/** Fields that every such system has, beside its name. */
export const queryPromptFields = {
  vision: visionFields,
  qFormer: qFormerFields,
  language: languageFields,
  template: z.string().describe('A conversation up to the answer, with {seen} and {question}'),
  ...dialogueFields,
};

export type QueryPromptConfig = z.infer<z.ZodObject<typeof queryPromptFields>> & {
  readonly name: string;
  /** All pictures are grey. */
  readonly blind?: boolean;
  /** Each row has the picture of another; see {@link ofOthers}. */
  readonly permuted?: boolean;
};

export type QueryPromptParams = ImageQueryParams & {
  readonly projection: DenseParams;
  readonly language: TensorTree;
};

/** What their definitions have in common. */
export const queryPromptSystem = {
  sampleKind: 'a picture or a clip of one video, with words',
  takes: isOneMediumWithWords,
  check: ({ model, data, train }) =>
    visionFault(model.vision, data.frameSize) ??
    qFormerFault(model.qFormer) ??
    languageFault({ model, train }),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.textVocabulary);
    return `${vocabularySize} word pieces`;
  },
} as const satisfies Partial<SystemDefinition<QueryPromptConfig>>;

export async function openQueryPrompt({
  config: { model, data, train },
  folder,
}: SystemContext<QueryPromptConfig>): Promise<VideoLanguageSystem<QueryPromptParams>> {
  const tokenizer = await readTokenizer(folder);
  const language = languageOf(model.language, tokenizer.vocabularySize);
  const { frameSize } = data;
  const { blind = false, permuted = false } = model;
  const vision = visionSizes(model.vision, data);
  const qFormer = qFormerSizes(model.qFormer, {
    contextWidth: model.vision.width,
    hasText: false,
  });
  const picture = anyPicture(train.seed, 'picture');
  const system = dialogueSystem<QueryPromptParams>({
    name: model.name,
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
      const shown = blind ? rows.map((row) => changedRow(row, 'blank', blank)) : rows;
      return { pictures: packedPictures(shown, data, picture) };
    },
    windowsShown: (row) => (blind ? [] : picture(row, data.windows)),
    prompt: (_row, question) =>
      filledTemplate(model.template, {
        seen: [{ numSoft: model.qFormer.queries }],
        question: [{ words: question, isQuestion: true }],
      }),
  });
  // What is asked of a run is asked about its own picture, however it was trained.
  return permuted
    ? { ...system, assemble: (rows) => system.assemble(withFramesOfOthers(rows)) }
    : system;
}
