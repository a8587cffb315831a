/**
 * A language model alone, for systems that speak through a frozen one where no pretrained one can be had: it learns the
 * language of questions and answers from the words of the training split, and sees no clip.
 */
import * as z from 'zod';
import { openRng, shuffled, type Rng } from '../../proto/random.ts';
import { shownKey, type Sample } from '../../video/index/sample.ts';
import { count } from '../config-fields.ts';
import { shapesOnly } from '../initializer.ts';
import type { TensorTree } from '../tree.ts';
import { clipOf, factsByClip, longestOf, type Facts } from './clip-facts.ts';
import { filledTemplate, turnsOf, type Piece, type Turn } from './dialogue.ts';
import { dialogueFields, dialogueSystem } from './dialogue-system.ts';
import { fewShotPrompt, type ShownExample } from './few-shot.ts';
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
  examples: z
    .strictObject({
      most: count('So many at most, each number equally likely'),
      template: z.string().describe('What stands for one, with {seen}, {question} and {answer}'),
    })
    .nullable()
    .optional()
    .describe(
      'Other clips before a conversation, with its question and their own answers, in the place of {examples} of the ' +
        'template; null or absent: none, and no {examples}',
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
    const { template, examples = null } = model;
    const said = (row: Row, question: string): Piece[] => [
      {
        words: saidOf(row, facts, { question, seed: train.seed, isBrief: examples !== null }),
        isContext: true,
      },
    ];
    const asking = examples === null ? undefined : samplesByQuestion(index.train, model.describe);
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
      ...(examples !== null && {
        examplesOf(row, question) {
          const own = shownKey(row.sample);
          const alike = (asking?.get(question) ?? []).filter(({ shown }) => shown !== own);
          const rng = openRng(train.seed, 'examples', row.epoch, row.number);
          const number = alike.length === 0 ? 0 : rng.integer(examples.most + 1);
          return Array.from({ length: number }, () => {
            const { sample, number: place } = alike[rng.integer(alike.length)]!;
            return { ...row, sample, number: place };
          });
        },
      }),
      prompt(row, question) {
        const seen = said(row, question);
        if (examples === null)
          return filledTemplate(template, {
            seen,
            question: [{ words: question, isQuestion: true }],
          });
        const shown = (row.examples ?? []).map((example): ShownExample => {
          const turn = turnsOf(example.sample, model.describe)[0]!;
          return { seen: said(example, turn.question), ...turn };
        });
        const templates = { template, exampleTemplate: examples.template };
        return fewShotPrompt(templates, shown, { seen, question });
      },
    });
  },
});

interface Numbered extends Pick<Row, 'sample' | 'number'> {
  /** See {@link shownKey}. */
  readonly shown: string;
}

/** Samples with their row in the split, by what they ask first. */
function samplesByQuestion(
  samples: readonly Sample[],
  describe: string,
): ReadonlyMap<string, readonly Numbered[]> {
  const found = new Map<string, Numbered[]>();
  for (const [number, sample] of samples.entries()) {
    const { question } = turnsOf(sample, describe)[0]!;
    const asked = { sample, number, shown: shownKey(sample) };
    const own = found.get(question);
    if (own === undefined) found.set(question, [asked]);
    else own.push(asked);
  }
  return found;
}

/**
 * In place of what other systems see: half of the time the caption, where it tells the answer, else all other answers
 * about the clip, in an order of its own each epoch. So the model learns to find the answer to a question in what stands before it.
 * Where it is brief, as many or fewer of those that the answer is not made of: whose answer is whose then shows in
 * signs between clips alone, and not in how far back words stand, which is another distance where pictures are seen.
 */
function saidOf(
  { sample, epoch, number }: Row,
  facts: Facts,
  {
    question,
    seed,
    isBrief,
  }: { readonly question: string; readonly seed: number; readonly isBrief: boolean },
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
  const order = shuffled(others, rng);
  return (isBrief ? briefly(order, own, { question, rng }) : order).join(' ');
}

/** All where none of the answers is a part of the wanted one, as where that is yes or no. */
function briefly(
  answers: readonly string[],
  facts: readonly Turn[],
  { question, rng }: { readonly question: string; readonly rng: Rng },
): readonly string[] {
  const wanted = ` ${facts.find((fact) => fact.question === question)?.answer ?? ''} `;
  const isPart = (answer: string): boolean => wanted.includes(` ${answer} `);
  if (!answers.some(isPart)) return answers;
  let spare = rng.integer(answers.length);
  return answers.filter((answer) => isPart(answer) || spare-- > 0);
}
