/** Questions about clips of the world `moves`, with answers of one word but for the caption, as LLaVA and Video-ChatGPT keep them. Pure. */
import { balanced } from './controlled.ts';
import { MOVES, type MovesTruth } from './controlled-truth.ts';
import { openRng } from '../../proto/random.ts';
import { COLOUR_NAMES } from './palette.ts';

/** One record of `questions.json`. */
export interface QuestionRecord {
  /** The clip's, then what is asked about. */
  readonly id: string;
  /** Beside the file with the questions. */
  readonly video: string;
  readonly conversations: readonly [
    { readonly from: 'human'; readonly value: string },
    { readonly from: 'gpt'; readonly value: string },
  ];
}

/** What is asked of every clip. Where a question names a motion or a colour, yes and no are equally often true. */
export const QUESTION_KINDS = [
  'caption',
  'colour',
  'shape',
  'motion',
  'sound',
  'word',
  'is-motion',
  'is-colour',
] as const;
export type QuestionKind = (typeof QUESTION_KINDS)[number];

/** All questions of one clip, in the order of {@link QUESTION_KINDS}. */
export function questionsOf(truth: MovesTruth): QuestionRecord[] {
  const { id, motion, word } = truth;
  const [{ colour, shape }] = truth.objects as [MovesTruth['objects'][number]];
  const [{ sound }] = truth.tones as [MovesTruth['tones'][number]];
  const isMotion = yesOrNo('is-motion', motion, MOVES, truth);
  const isColour = yesOrNo('is-colour', colour, COLOUR_NAMES, truth);
  const asked: Readonly<Record<QuestionKind, readonly [question: string, answer: string]>> = {
    caption: ['what happens ?', truth.caption.text],
    colour: ['what colour is it ?', colour],
    shape: ['what shape is it ?', shape],
    motion: ['which way does it move ?', motion],
    sound: ['what do you hear ?', sound],
    word: ['which word is said ?', word],
    'is-motion': [`does it move ${isMotion.named} ?`, isMotion.answer],
    'is-colour': [`is it ${isColour.named} ?`, isColour.answer],
  };
  return QUESTION_KINDS.map((kind) => questionRecord(id, kind, asked[kind]));
}

/** A question about a clip as a record; `kind` tells it from the others. */
export function questionRecord(
  clip: string,
  kind: string,
  [question, answer]: readonly [question: string, answer: string],
): QuestionRecord {
  return {
    id: `${clip}-${kind}`,
    video: `${clip}.mp4`,
    conversations: [
      { from: 'human', value: `<video>\n${question}` },
      { from: 'gpt', value: answer },
    ],
  };
}

/** Of two clips in a row one gets the truth and one another value, all others equally likely. */
function yesOrNo<T extends string>(
  purpose: string,
  truth: T,
  all: readonly T[],
  { seed, split, index }: MovesTruth,
): { readonly named: T; readonly answer: 'yes' | 'no' } {
  const answer = balanced(['yes', 'no'] as const, purpose, { seed, split, index });
  if (answer === 'yes') return { named: truth, answer };
  const others = all.filter((one) => one !== truth);
  const rng = openRng(seed, `${purpose} ${split}`, index);
  return { named: others[rng.integer(others.length)]!, answer };
}
