/** What systems share that put what they see and hear as soft tokens into a decoder-only language model. */
import type * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { openRng } from '../../proto/random.ts';
import type { Sample } from '../../video/index/sample.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { count } from '../config-fields.ts';
import { under, type Initializer } from '../initializer.ts';
import type { TokenScores } from '../losses/next-token.ts';
import type { Decoder } from '../models/decoder.ts';
import {
  dialogueScores,
  dialogueSums,
  seeingModel,
  type DialogueBatch,
} from '../models/soft-prompt.ts';
import type { PartKinds } from '../part-kind.ts';
import type { PublishedPart } from '../pretrained/published-parts.ts';
import { referenceOf } from '../reference-parameters.ts';
import type { TensorTree } from '../tree.ts';
import type { LoraConfig } from '../tuning/lora.ts';
import { boxesJoined } from './boxes.ts';
import { assembleDialogues, dialogueGiven, turnsOf, type Piece, type Turn } from './dialogue.ts';
import { changedRow, FRAME_CHANGES, type FrameChange } from './frame-changes.ts';
import type { Language } from './language-part.ts';
import {
  forBothAnswers,
  pairSums,
  PREFERENCE,
  preferenceFields,
  preferenceOf,
  REWARD_MARGIN,
  trainedPreference,
  type PreferenceTurn,
} from './preference-part.ts';
import type {
  AnsweringParams,
  HeldOutTask,
  HostArray,
  HostBatch,
  Row,
  VideoLanguageSystem,
  WrittenTask,
} from './system.ts';
import { openTuning, tuningFields } from './tuning-part.ts';
import { wholeWords } from './whole-words.ts';

/** Fields that every such system has. */
export const dialogueFields = {
  length: count('Tokens of a conversation, with what is seen and heard; longer words are cut', 8),
  textVocabulary: count(
    'Most word pieces that a tokenizer is trained to, special tokens included',
    32,
  ),
  describe: z
    .string()
    .describe('The question that is put where the data have a caption and no question'),
  maxAnswerTokens: count('Longest answer that is written'),
  heldOut: z
    .strictObject({
      questions: z
        .array(z.string().min(1))
        .describe('The first token of the answer to each of these is a figure'),
      words: z
        .array(z.array(z.string().min(1)))
        .describe(
          'Where an answer has one of these words, each given those before it: a figure a list',
        ),
      changes: z
        .array(z.enum(FRAME_CHANGES))
        .describe('The figures again for clips with something taken away'),
    })
    .describe('What is found out about held-out clips beside the next token'),
  tuning: tuningFields.nullable().optional(),
  preference: preferenceFields
    .optional()
    .describe(
      'It learns which of two answers is preferred, beside the model that the run begins with; absent: it learns answers',
    ),
};

export type DialogueConfig = z.infer<z.ZodObject<typeof dialogueFields>>;

/** How a clip is shown: all its frames, or one of them alone. */
export type View = 'film' | 'picture';

/** What makes one such system. */
export interface DialogueParts<P extends TensorTree> {
  readonly name: string;
  readonly config: DialogueConfig;
  readonly frameSize: number;
  readonly seed: number;
  readonly tokenizer: Tokenizer;
  readonly language: Language;
  init(initializer: Initializer): P;
  /** What its parts but the language model compute, and which of them transformers has. */
  readonly kinds?: PartKinds;
  readonly published?: readonly PublishedPart[];
  /** Path of the language model among the parameters; `language` unless given. */
  readonly languagePath?: string;
  /** The decoder's parameters out of all. */
  languageOf(params: P): TensorTree;
  /** What the language model is adapted by, at the path `lora`, unless `config.tuning` takes its place. */
  readonly lora?: LoraConfig;
  /** What is seen and heard as soft tokens, [B, N, W]; undefined where there is nothing but words. */
  see(params: P, batch: TensorTree): tf.Tensor | undefined;
  /**
   * How clips are shown, `film` unless given. Of a training microbatch with both the first half is pictures; what is
   * found out about held-out clips is so for each.
   */
  readonly views?: readonly View[];
  /** What {@link see} needs of the clips; pictures come before films. */
  arrays(rows: readonly Row[], views: readonly View[]): Readonly<Record<string, HostArray>>;
  /** The windows of frames that {@link arrays} shows where a question is answered; all unless given. */
  windowsShown?(row: Row): readonly number[];
  /** Whether {@link prompt} and {@link arrays} read examples of rows. */
  readonly takesExamples?: boolean;
  /** Examples before a conversation of the data, in whose place a row has none; not where people ask. */
  examplesOf?(row: Row, question: string): readonly Row[];
  /** The figures of questions again for rows that are shown in other ways, by what these are called. */
  readonly askedAgain?: Readonly<Record<string, (rows: readonly Row[]) => readonly Row[]>>;
  /** Figures of answers that are written out. */
  readonly written?: readonly WrittenFigure[];
  /** The conversation up to the answer. */
  prompt(row: Row, question: string, view: View): readonly Piece[];
}

/** How many answers that the model writes out are right. */
export interface WrittenFigure {
  readonly name: string;
  readonly asks: (turn: Turn) => boolean;
  /** What is asked in place of the turn's question. */
  readonly question?: (turn: Turn) => string;
  readonly isRight: (turn: Turn, text: string) => boolean;
}

const OBJECTIVE = 'next-token';

/**
 * Counts pairs: a question with several worse answers counts as often.
 * @param spelt a text as the tokenizer writes it, which is how an answer comes
 */
function preferredFigure(spelt: (text: string) => string): WrittenFigure {
  return {
    name: 'preferred answer, written',
    asks: ({ rejected }) => rejected !== undefined,
    isRight: ({ answer }, text) => text === spelt(answer),
  };
}

/** What is counted of the answers to some questions. */
interface HeldOutFigure {
  readonly name: string;
  readonly asks?: (turn: Turn) => boolean;
  /** @param isFirst whether nothing of the answer stands before it */
  readonly isCounted: (label: number, isFirst: boolean) => boolean;
}

export function dialogueSystem<P extends TensorTree>(
  parts: DialogueParts<P>,
): VideoLanguageSystem<P> {
  const { name, config, tokenizer, language, seed, frameSize, languagePath = 'language' } = parts;
  const tuned = withTuning(parts);
  const { languageOf, decoder } = tuned;
  const { preference } = config;
  const shape = { tokenizer, length: config.length };
  const allViews = parts.views ?? ['film'];
  const alike = (rows: readonly Row[], view: View): View[] => rows.map(() => view);
  const withExamples = (rows: readonly Row[], turns: readonly Turn[]): readonly Row[] =>
    rows.map((row, i) =>
      parts.examplesOf === undefined
        ? row
        : { ...row, examples: parts.examplesOf(row, turns[i]!.question) },
    );
  const assemble = (
    given: readonly Row[],
    turns: readonly Turn[],
    views: readonly View[],
  ): HostBatch => {
    const rows = withExamples(given, turns);
    const dialogues = assembleDialogues(
      shape,
      rows.map((row, i): Piece[] => [
        ...parts.prompt(row, turns[i]!.question, views[i]!),
        { words: turns[i]!.answer, isAnswer: true },
      ]),
    );
    return counted({ ...dialogues, ...parts.arrays(rows, views) });
  };
  /** Both answers of a row stand side by side. */
  const assemblePairs = (
    given: readonly Row[],
    turns: readonly PreferenceTurn[],
    views: readonly View[],
  ): HostBatch => {
    const rows = withExamples(given, turns);
    const dialogues = assembleDialogues(
      shape,
      rows.flatMap((row, i) => {
        const { question, answer, rejected } = turns[i]!;
        const asked = parts.prompt(row, question, views[i]!);
        return [answer, rejected].map((words): Piece[] => [...asked, { words, isAnswer: true }]);
      }),
      { rowsOfOnePrompt: 2 },
    );
    const pairWeights = { data: new Float32Array(rows.length).fill(1), shape: [rows.length] };
    const { arrays, counts, numTokens } = counted({ ...dialogues, ...parts.arrays(rows, views) });
    const ofPreferred = dialogues.labelWeights.data.reduce(
      (sum, weight, at) => sum + (Math.floor(at / config.length) % 2 === 0 ? weight : 0),
      0,
    );
    return {
      arrays: { ...arrays, pairWeights },
      counts: {
        ...counts,
        ...{ [PREFERENCE]: rows.length, [REWARD_MARGIN]: rows.length, [OBJECTIVE]: ofPreferred },
      },
      numTokens,
    };
  };
  const answeredView = allViews.at(-1)!;
  const answered = (row: Row, question: string): readonly Piece[] =>
    parts.prompt(row, question === '' ? config.describe : question, answeredView);
  const firstTurn = (sample: Sample): Turn =>
    (preference && preferenceOf(sample)) ?? turnsOf(sample, config.describe)[0]!;
  const task = (
    { name: figure, asks, isCounted }: HeldOutFigure,
    {
      view,
      change,
      again,
    }: { readonly view: View; readonly change?: FrameChange; readonly again?: string },
  ): HeldOutTask => ({
    name: [
      figure,
      ...(allViews.length > 1 ? [`of a ${view}`] : []),
      ...(change === undefined ? [] : [change]),
      ...(again === undefined ? [] : [again]),
    ].join(', '),
    objective: OBJECTIVE,
    numClasses: tokenizer.vocabularySize,
    ...(asks === undefined ? {} : { asks: (sample) => asks(firstTurn(sample)) }),
    assemble(rows) {
      const shown =
        change === undefined
          ? rows
          : rows.map((row) => changedRow(row, change, { frameSize, seed }));
      const other = again === undefined ? undefined : parts.askedAgain?.[again];
      const turns = rows.map(({ sample }) => firstTurn(sample));
      const { arrays } = assemble(other?.(shown) ?? shown, turns, alike(rows, view));
      const [labels, weights] = [arrays['labels']!.data, arrays['labelWeights']!];
      const data = Float32Array.from(weights.data, (weight, at) =>
        weight !== 0 && isCounted(labels[at]!, weights.data[at - 1] === 0) ? 1 : 0,
      );
      return counted({ ...arrays, labelWeights: { ...weights, data } });
    },
    labels: ({ arrays }) =>
      [...arrays['labels']!.data].filter((_, at) => arrays['labelWeights']!.data[at] !== 0),
  });
  const asked = config.heldOut.questions.map((question): HeldOutFigure => ({
    name: question,
    asks: (turn) => turn.question === question,
    isCounted: (_label, isFirst) => isFirst,
  }));
  const spoken = config.heldOut.words.map((words): HeldOutFigure => {
    // Many tokenizers read a word behind another with the space before it.
    const spelt = [...words, ...words.map((word) => ` ${word}`)];
    const ids = new Set(wholeWords(tokenizer, spelt).values());
    return {
      name: `${words[0]!} or another`,
      asks: ({ answer }) => tokenizer.encode(answer).some((id) => ids.has(id)),
      isCounted: (label) => ids.has(label),
    };
  });
  // Of a tokenizer that reads spaces with words an answer begins with one.
  const decode = (ids: readonly number[]): string => boxesJoined(tokenizer.decode(ids).trimStart());
  const asking = (rows: readonly Row[], question: (row: Row) => string): HostBatch => {
    const dialogues = assembleDialogues(
      shape,
      rows.map((row) => answered(row, question(row))),
    );
    return counted({ ...dialogues, ...parts.arrays(rows, alike(rows, answeredView)) });
  };
  const writtenTask = ({ name: figure, asks, question, isRight }: WrittenFigure): WrittenTask => ({
    name: figure,
    asks: (sample) => asks(firstTurn(sample)),
    assemble: (rows) =>
      asking(rows, ({ sample }) => {
        const turn = firstTurn(sample);
        return question?.(turn) ?? turn.question;
      }),
    answerOf: (sample) => decode(tokenizer.encode(firstTurn(sample).answer)),
    isRight: (sample, text) => isRight(firstTurn(sample), text),
  });
  const pairTask = (view: View): HeldOutTask => ({
    name: ['preferred of two answers', ...(allViews.length > 1 ? [`of a ${view}`] : [])].join(', '),
    objective: PREFERENCE,
    numClasses: 2,
    asks: (sample) => preferenceOf(sample) !== undefined,
    assemble: (rows) =>
      assemblePairs(
        rows,
        rows.map(({ sample }) => preferenceOf(sample)!),
        alike(rows, view),
      ),
    // Named in whatever order, either answer is the preferred one as often.
    labels: ({ arrays }) =>
      [...arrays['pairWeights']!.data].flatMap((weight, at) => (weight === 0 ? [] : [at % 2])),
  });
  const written: readonly WrittenFigure[] = [
    ...(parts.written ?? []),
    ...(preference === undefined
      ? []
      : [preferredFigure((text) => decode(tokenizer.encode(text)))]),
  ];
  const overall: HeldOutFigure = { name: OBJECTIVE, isCounted: () => true };
  const figures = [...asked, ...spoken];
  return {
    name,
    objectives:
      preference === undefined
        ? { [OBJECTIVE]: 1 }
        : { [PREFERENCE]: 1, [REWARD_MARGIN]: 0, [OBJECTIVE]: preference.answerWeight },
    ...(preference === undefined ? {} : { needsReference: true }),
    heldOutTasks: [
      ...(preference === undefined ? [] : allViews.map(pairTask)),
      ...allViews.flatMap((view) => [overall, ...figures].map((figure) => task(figure, { view }))),
      ...config.heldOut.changes.flatMap((change) =>
        figures.map((figure) => task(figure, { view: 'film', change })),
      ),
      ...Object.keys(parts.askedAgain ?? {}).flatMap((again) =>
        asked.map((figure) => task(figure, { view: answeredView, again })),
      ),
    ],
    ...(written.length === 0 ? {} : { writtenTasks: written.map(writtenTask) }),
    init: (initializer) => tuned.init(initializer),
    kinds: { ...parts.kinds, ...tuned.kinds, [languagePath]: language.kind },
    published: [
      ...(parts.published ?? []),
      ...tuned.published,
      { path: languagePath, ...language.published, hasWords: true },
    ],
    frozen: tuned.fixed,
    decays: decaysMatrices,
    assemble(rows) {
      const views =
        allViews.length === 1
          ? alike(rows, allViews[0]!)
          : rows.map((_, at): View => (at < rows.length >> 1 ? 'picture' : 'film'));
      if (preference !== undefined) {
        const pairs = rows.map(({ sample, number }) =>
          trainedPreference(preferenceOf(sample)!, preference, { seed, number }),
        );
        return assemblePairs(rows, pairs, views);
      }
      const turns = rows.map(({ sample, epoch, number }) => {
        const all = turnsOf(sample, config.describe);
        return all[openRng(seed, 'turn', epoch, number).integer(all.length)]!;
      });
      return assemble(rows, turns, views);
    },
    answers: {
      assemble: (rows, question) => asking(rows, () => question),
      given: (row, question) => ({
        ...dialogueGiven(shape, answered(row, question)),
        ...(parts.windowsShown === undefined ? {} : { windows: parts.windowsShown(row) }),
      }),
      model: seeingModel<AnsweringParams<P>>(
        decoder,
        ({ params, frozen }) => languageOf(params, frozen),
        ({ params }, prompt) => parts.see(params, prompt),
      ),
      eosIds: [tokenizer.special.sep],
      maxNewTokens: config.maxAnswerTokens,
      ...(parts.takesExamples === undefined ? {} : { takesExamples: parts.takesExamples }),
      decode,
    },
    sums(params, frozen, batch) {
      const { pairWeights } = batch as Readonly<Record<string, tf.Tensor | undefined>>;
      // Held-out questions about words come with one answer.
      if (preference === undefined || pairWeights === undefined) {
        return {
          [OBJECTIVE]: dialogueSums(
            decoder,
            languageOf(params, frozen),
            batch as DialogueBatch,
            parts.see(params, batch),
          ),
        };
      }
      const scores = (own: P): TokenScores =>
        dialogueScores(
          decoder,
          languageOf(own, frozen),
          batch as DialogueBatch,
          forBothAnswers(parts.see(own, batch)),
        );
      const both = { policy: scores(params), reference: scores(referenceOf(params, frozen)) };
      return pairSums(both, pairWeights, { preference, answerObjective: OBJECTIVE });
    },
  };
}

/** The parts of a system that its language model has to do with, which is adapted where the config says so. */
function withTuning<P extends TensorTree>(
  parts: DialogueParts<P>,
): Pick<VideoLanguageSystem<P>, 'init'> & {
  readonly languageOf: (params: P, frozen: TensorTree) => TensorTree;
  readonly decoder: Decoder<TensorTree>;
  readonly kinds: PartKinds;
  readonly published: readonly PublishedPart[];
  readonly fixed: Readonly<Record<string, HostArray>>;
} {
  const { config, language, languagePath = 'language', lora } = parts;
  const own =
    config.tuning ?? (lora === undefined ? undefined : { method: 'lora' as const, ...lora });
  if (own === undefined) {
    return {
      init: (initializer) => parts.init(initializer),
      languageOf: (params) => parts.languageOf(params),
      decoder: language.decoder,
      kinds: {},
      published: [],
      fixed: {},
    };
  }
  // Where runs with LoRA have always had it.
  const path = own === config.tuning ? 'tuning' : 'lora';
  const { tuning, published } = openTuning(own, language, { path, languagePath });
  return {
    init: (initializer) =>
      Object.assign({}, parts.init(initializer), {
        [path]: tuning.init(under(path, initializer)),
      }),
    languageOf(params, frozen) {
      const trained = (params as Readonly<Record<string, TensorTree>>)[path]!;
      return tuning.adapted(parts.languageOf(params), trained, frozen);
    },
    decoder: tuning.decoder,
    kinds: { [path]: tuning.kind },
    published: [published],
    fixed: tuning.fixed,
  };
}

/**
 * Weight decay on matrices, LoRA's two factors among them as with transformers' trainer and peft, but on no tables of
 * embeddings.
 */
export function decaysMatrices(path: string, shape: readonly number[]): boolean {
  return shape.length > 1 && /(^|\/)kernel$|^(lora|tuning)\/.*\/[ab]$/.test(path);
}

function counted(arrays: HostBatch['arrays']): HostBatch {
  const sum = (name: string): number => [...arrays[name]!.data].reduce((a, b) => a + b, 0);
  return { arrays, counts: { [OBJECTIVE]: sum('labelWeights') }, numTokens: sum('present') };
}
