/** Rules that keep a sample, as people write them: `duration in 2..30`, `words >= 4`, `aspect <= 2`. Pure. */
import { UsageError } from '../../proto/errors.ts';
import type { MediaFile, MediaSpan, Sample } from '../index/sample.ts';
import {
  characterRepetition,
  numCharacters,
  punctuation,
  specialCharacters,
  stopWords,
  TEXT_RULES,
  wordRepetition,
  wordsOf,
} from './text-filters.ts';

/** What a rule is about: of the words, or of each medium, where undefined means that it has no such thing. */
const TEXT_FIELDS: Record<string, (sample: Sample, files: readonly MediaFile[]) => number> = {
  words: ({ text }) => wordsOf(text).length,
  characters: ({ text }) => numCharacters(text),
  'character-repetition': ({ text }) => characterRepetition(text),
  'word-repetition': ({ text }) => wordRepetition(text),
  'special-characters': ({ text }) => specialCharacters(text),
  'stop-words': ({ text }) => stopWords(text),
  punctuation: ({ text }) => punctuation(text),
  images: ({ media }, files) => media.filter(({ file }) => files[file]!.kind === 'image').length,
  media: ({ media }) => media.length,
};
const MEDIA_FIELDS: Record<string, (span: MediaSpan, file: MediaFile) => number | undefined> = {
  duration: ({ startSeconds, endSeconds }, { kind }) =>
    kind === 'video' ? endSeconds - startSeconds : undefined,
  fps: (_, { kind, framesPerSecond }) => (kind === 'video' ? framesPerSecond : undefined),
  width: (_, { width }) => width,
  height: (_, { height }) => height,
  'short-side': (_, { width, height }) => Math.min(width, height),
  aspect: (_, { width, height }) => Math.max(width, height) / Math.min(width, height),
};

/** The names that a rule may begin with. */
export const RULE_FIELDS: readonly string[] = [
  ...Object.keys(MEDIA_FIELDS),
  ...Object.keys(TEXT_FIELDS),
];

/** Rules that belong together, by name. */
export const RULE_SETS: Readonly<Record<string, readonly string[]>> = {
  ...TEXT_RULES,
  // Laurençon et al. 2023, arXiv:2306.16527, sec. 3.2.
  pictures: ['short-side >= 150', 'width <= 20000', 'height <= 20000', 'aspect <= 2'],
};

/** A condition that a sample must meet to be kept. */
export interface Rule {
  /** As it was written; the reason in the report. */
  readonly text: string;
  readonly field: string;
  readonly holds: (value: number) => boolean;
}

/** @throws UsageError USAGE */
export function parseRule(text: string): Rule {
  const number = '(-?\\d+(?:\\.\\d+)?)';
  const match = new RegExp(
    `^\\s*([a-z-]+)\\s*(?:(>=|<=|>|<|=)\\s*${number}|in\\s+${number}\\.\\.${number})\\s*$`,
  ).exec(text);
  const [, field = '', operator, value, low, high] = match ?? [];
  if (match === null || !RULE_FIELDS.includes(field)) {
    throw new UsageError(
      'USAGE',
      `\`${text}\` is no rule; write a field, then >=, <=, >, <, = and a number, or \`in 2..30\`, as in ` +
        `\`words >= 4\`; fields are ${RULE_FIELDS.join(', ')}`,
    );
  }
  const bound = Number(value);
  const tests: Record<string, (x: number) => boolean> = {
    '>=': (x) => x >= bound,
    '<=': (x) => x <= bound,
    '>': (x) => x > bound,
    '<': (x) => x < bound,
    '=': (x) => x === bound,
    in: (x) => x >= Number(low) && x <= Number(high),
  };
  return { text: text.trim(), field, holds: tests[operator ?? 'in']! };
}

/** The first rule that a sample breaks. A rule about media must hold for each that has what it is about. */
export function brokenRule(
  sample: Sample,
  files: readonly MediaFile[],
  rules: readonly Rule[],
): Rule | undefined {
  return rules.find(({ field, holds }) => {
    const ofText = TEXT_FIELDS[field];
    if (ofText !== undefined) return !holds(ofText(sample, files));
    return sample.media.some((span) => {
      const value = MEDIA_FIELDS[field]!(span, files[span.file]!);
      return value !== undefined && !holds(value);
    });
  });
}
