/**
 * A language model alone, for systems that speak through a frozen one where no pretrained one can be had: it learns the
 * language of questions and answers from the words of the training split, and sees no clip.
 */
import * as z from 'zod';
import { openRng, shuffled } from '../../proto/random.ts';
import { shapesOnly } from '../initializer.ts';
import type { TensorTree } from '../tree.ts';
import { clipOf, factsByClip, longestOf, type Facts } from './clip-facts.ts';
import { filledTemplate } from './dialogue.ts';
import { dialogueFields, dialogueSystem } from './dialogue-system.ts';
import { languageFault, languageFields, languageOf, type LanguageConfig } from './language-part.ts';
import { defineSystem, isOneMediumWithWords, type Row } from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';

const fields = z.strictObject({
  name: z.literal('language-model').describe('A decoder-only language model, on words alone'),
  language: languageFields,
  template: z
    .string()
    .describe(
      'What the model is given: {seen} is where systems put what they see, and here what is said of the clip elsewhere',
    ),
  ...dialogueFields,
});

type LanguageModelConfig = z.infer<typeof fields>;

function partsOfLanguage(config: LanguageConfig): string[] {
  return Object.keys(languageOf(config, 1).init(shapesOnly()));
}

export const languageModel = defineSystem<LanguageModelConfig, TensorTree>({
  schema: fields,
  sampleKind: 'a picture or a clip of one video, with words',
  takes: isOneMediumWithWords,
  check: (config) => languageFault(config, partsOfLanguage(config.model.language)),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.textVocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder, index }) {
    const tokenizer = await readTokenizer(folder);
    const language = languageOf(model.language, tokenizer.vocabularySize);
    const facts = factsByClip([...index.train, ...index.heldOut], model.describe);
    return dialogueSystem({
      name: 'language-model',
      config: model,
      ...{ frameSize: data.frameSize, seed: train.seed, tokenizer, language },
      init: (initializer) => language.init(initializer),
      languagePath: '',
      languageOf: (params) => params,
      see: () => undefined,
      arrays: () => ({}),
      windowsShown: () => [],
      prompt: (row, question) =>
        filledTemplate(model.template, {
          seen: [{ words: saidOf(row, facts, { question, seed: train.seed }), isContext: true }],
          question: [{ words: question, isQuestion: true }],
        }),
    });
  },
});

/**
 * In place of what other systems see: half of the time the caption, where it tells the answer, else all other answers
 * about the clip, in an order of its own each epoch. So the model learns to find the answer to a question in what stands before it.
 */
function saidOf(
  { sample, epoch, number }: Row,
  facts: Facts,
  { question, seed }: { readonly question: string; readonly seed: number },
): string {
  const rng = openRng(seed, 'said', epoch, number);
  const own = facts.get(clipOf(sample)) ?? [];
  const caption = longestOf(own);
  // Whole words; a grounded caption has names between <p> and </p>.
  const read = ` ${caption.replaceAll(/<\/?p>/g, ' ')} `;
  const tells = own.some(
    (fact) =>
      fact.question === question && fact.answer !== caption && read.includes(` ${fact.answer} `),
  );
  if (tells && rng.uniform() < 0.5) return caption;
  const others = own.map(({ answer }) => answer).filter((answer) => answer !== caption);
  return shuffled(others, rng).join(' ');
}
