/** Two answers about a clip of the world `moves`, of which one is preferred, as TRL and LLaVA-Hound keep them. Pure. */
import { openRng } from '../../proto/random.ts';
import { MOVES, type MovesTruth } from './controlled-truth.ts';

/** One record of `preferences.json`. */
export interface PreferenceRecord {
  /** The clip's, then what the other answer lacks. */
  readonly id: string;
  /** Beside the file with the preferences. */
  readonly video: string;
  readonly prompt: string;
  readonly chosen: string;
  readonly rejected: string;
}

/** What is always preferred: asked this, to say which way it moves, in one word and truly. */
const QUESTION = 'what happens ?';

/** To be brief: a caption is as true. To be true: another motion is as brief. To the point: what else is true is no answer. */
export const PREFERENCE_KINDS = ['brief', 'true', 'to-the-point'] as const;

/** The preferences of one clip, in the order of {@link PREFERENCE_KINDS}. */
export function preferencesOf(truth: MovesTruth): PreferenceRecord[] {
  const { id, motion, word, caption, seed, split, index } = truth;
  const [{ colour, shape }] = truth.objects as [MovesTruth['objects'][number]];
  const [{ sound }] = truth.tones as [MovesTruth['tones'][number]];
  const rng = openRng(seed, `preferences ${split}`, index);
  const anyOf = (answers: readonly string[]): string => answers[rng.integer(answers.length)]!;
  const rejected: Readonly<Record<(typeof PREFERENCE_KINDS)[number], string>> = {
    brief: caption.text,
    true: anyOf(MOVES.filter((other) => other !== motion)),
    'to-the-point': anyOf([colour, shape, sound, word]),
  };
  return PREFERENCE_KINDS.map((kind) => ({
    id: `${id}-${kind}`,
    video: `${id}.mp4`,
    prompt: `<video>\n${QUESTION}`,
    chosen: motion,
    rejected: rejected[kind],
  }));
}
