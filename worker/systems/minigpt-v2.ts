/**
 * MiniGPT-v2: one conversation for many tasks, told apart by an identifier before the question; boxes are words; every
 * four patch tokens become one soft token; the language model is adapted by LoRA. Source: Chen et al. 2023,
 * arXiv:2310.09478, sec. 3, and its released code (Vision-CAIR/MiniGPT-4, minigpt4/models/minigpt_v2.py).
 */
import type * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { boxesJoined, boxIou, boxOf } from './boxes.ts';
import { filledTemplate, type Turn } from './dialogue.ts';
import { dialogueFields, dialogueSystem, type WrittenFigure } from './dialogue-system.ts';
import { languageOf } from './language-part.ts';
import {
  mergedPatches,
  mergedPatchesFault,
  mergedPatchesFields,
  tokensPerPicture,
  type MergedPatchesParams,
} from './merged-patches.ts';
import { defineSystem, isOneMediumWithWords } from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import { anyPicture, packedPictures } from './vision-part.ts';
import { boxesFault } from './tower-fields.ts';

const fields = z.strictObject({
  name: z.literal('minigpt-v2').describe('Chen et al. 2023, arXiv:2310.09478'),
  ...mergedPatchesFields,
  lora: mergedPatchesFields.lora
    .extend({
      targets: z
        .array(z.string().min(1))
        .min(1)
        .describe('Ends of paths of the dense layers that are adapted'),
    })
    .describe('Of the language model'),
  template: z.string().describe('A conversation up to the answer, with {seen} and {question}'),
  identifiers: z
    .boolean()
    .describe('Whether questions keep the [task] that they begin with; false for comparison'),
  written: z
    .strictObject({
      tasks: z
        .array(z.string().min(1))
        .describe(
          'Tasks whose answers are written out: a box counts with half of it and of the right one together shared, other ' +
            'answers as they are; a figure each, and one of all',
        ),
      exchanged: z
        .tuple([z.string().min(1), z.string().min(1)])
        .nullable()
        .describe(
          'A task that is answered by words and one by a box, whose questions are asked again with the other identifier: ' +
            'how often the answer is then of the other kind',
        ),
    })
    .describe('What is found out about held-out clips by writing answers'),
  ...dialogueFields,
});

const IDENTIFIER = /^\[(\w+)\]\s*/;

/** What `[task]` a question begins with, if any. */
export function taskOf(question: string): string | undefined {
  return IDENTIFIER.exec(question)?.[1];
}

export const miniGptV2 = defineSystem<z.infer<typeof fields>, MergedPatchesParams>({
  schema: fields,
  sampleKind: 'a picture or a clip of one video, with words',
  takes: isOneMediumWithWords,
  check: (config) => mergedPatchesFault(config) ?? boxesFault(config.data),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.textVocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder }) {
    const tokenizer = await readTokenizer(folder);
    const language = languageOf(model.language, tokenizer.vocabularySize);
    const picture = anyPicture(train.seed, 'picture');
    const { seen, ...parts } = mergedPatches(model, data, language);
    return dialogueSystem<MergedPatchesParams>({
      name: 'minigpt-v2',
      config: model,
      ...{ frameSize: data.frameSize, seed: train.seed, tokenizer, language },
      ...parts,
      views: ['picture'],
      see: (params, batch) =>
        seen(params, (batch as Readonly<Record<string, tf.Tensor>>)['pictures']!),
      arrays: (rows) => ({ pictures: packedPictures(rows, data, picture) }),
      windowsShown: (row) => picture(row, data.windows),
      prompt: (_row, question) =>
        filledTemplate(model.template, {
          seen: [{ numSoft: tokensPerPicture(model, data) }],
          question: [
            {
              words: model.identifiers ? question : question.replace(IDENTIFIER, ''),
              isQuestion: true,
            },
          ],
        }),
      written: writtenFigures(model.written, (text) =>
        boxesJoined(tokenizer.decode(tokenizer.encode(text))),
      ),
    });
  },
});

/** @param spelt a text as the tokenizer writes it, which is how an answer comes */
function writtenFigures(
  { tasks, exchanged }: z.infer<typeof fields>['written'],
  spelt: (text: string) => string,
): WrittenFigure[] {
  const isRight = ({ answer }: Turn, text: string): boolean => {
    const wanted = boxOf(answer);
    if (wanted === undefined) return text === spelt(answer);
    const found = boxOf(text);
    return found !== undefined && boxIou(found, wanted) >= 0.5;
  };
  const of = (...names: readonly string[]) => ({
    asks: ({ question }: Turn): boolean => names.includes(taskOf(question) ?? ''),
    isRight,
  });
  const figures: WrittenFigure[] = tasks.map((name) => ({
    name: `[${name}] written`,
    ...of(name),
  }));
  if (tasks.length > 1) figures.push({ name: 'all tasks written', ...of(...tasks) });
  if (exchanged !== null) {
    const [inWords, asBox] = exchanged;
    figures.push({
      name: `[${inWords}] and [${asBox}] exchanged`,
      asks: of(inWords, asBox).asks,
      question: ({ question }) =>
        question.replace(IDENTIFIER, taskOf(question) === asBox ? `[${inWords}] ` : `[${asBox}] `),
      isRight: ({ question }, text) => (boxOf(text) === undefined) === (taskOf(question) === asBox),
    });
  }
  return figures;
}
