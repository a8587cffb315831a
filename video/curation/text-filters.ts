/**
 * Figures by which web text is told from words worth training on. Pure; none needs a model or a language but the share
 * of stop words, which is of English.
 * Source: Laurençon et al. 2023, arXiv:2306.16527 (OBELICS), app. A.2.3, whose thresholds are in {@link TEXT_RULES}.
 */

/** Words as they are counted: lower case, bare of what is no letter at their ends, so that numbers are none. */
export function wordsOf(text: string): string[] {
  return text
    .toLowerCase()
    .split(/\s+/u)
    .map((word) => word.replace(EDGE_MARKS, ''))
    .filter((word) => word !== '');
}

const EDGE_MARKS = /^[^\p{L}\p{M}]+|[^\p{L}\p{M}]+$/gu;

/** Code points: accents and joined emoji count by themselves, as in Python. */
function charactersOf(text: string): string[] {
  return Array.from(text);
}

/** Code points. */
export function numCharacters(text: string): number {
  return charactersOf(text).length;
}

/**
 * Share of the most frequent n-grams of characters among all of them: of as many as the root of the number of distinct
 * ones, but of none that is there once. 0 for text that is shorter than one.
 */
export function characterRepetition(text: string, n = 10): number {
  const characters = charactersOf(text);
  const counts = countsOf(
    Array.from({ length: Math.max(0, characters.length - n + 1) }, (_, i) =>
      characters.slice(i, i + n).join(''),
    ),
  ).sort((a, b) => b - a);
  const numRepeated = counts.filter((count) => count > 1).length;
  const numTaken = Math.min(Math.floor(Math.sqrt(counts.length)), numRepeated);
  return share(sum(counts.slice(0, numTaken)), sum(counts));
}

/** Share of the n-grams of words that are there more than once. */
export function wordRepetition(text: string, n = 5): number {
  const words = wordsOf(text);
  const counts = countsOf(
    Array.from({ length: Math.max(0, words.length - n + 1) }, (_, i) =>
      words.slice(i, i + n).join(' '),
    ),
  );
  return share(sum(counts.filter((count) => count > 1)), sum(counts));
}

/** Share of the characters that are neither letters nor the marks on them: spaces, digits, punctuation, emoji. */
export function specialCharacters(text: string): number {
  const characters = charactersOf(text);
  return share(characters.filter((c) => !/[\p{L}\p{M}]/u.test(c)).length, characters.length);
}

/** Share of marks among words and marks; 1 for fewer than 12 of both, which are too few to tell. */
export function punctuation(text: string): number {
  const tokens = text.match(/[\p{L}\p{M}\p{N}_']+|\p{P}/gu) ?? [];
  if (tokens.length < MIN_TOKENS) return 1;
  return share(
    tokens.filter((token) => /^[^'_]$/u.test(token) && /\p{P}/u.test(token)).length,
    tokens.length,
  );
}

const MIN_TOKENS = 12;

/** Share of the words that bear no meaning of their own in English; lists of keywords have few. */
export function stopWords(text: string): number {
  const words = wordsOf(text);
  return share(words.filter((word) => STOP_WORDS.has(word)).length, words.length);
}

const STOP_WORDS = new Set(
  (
    'a about above after again against all also am an and any are as at be because been before being below between ' +
    'both but by can could did do does doing down during each either else even ever every few for from further had ' +
    'has have having he her here hers herself him himself his how i if in into is it its itself just like made make ' +
    'many may me might more most much must my myself neither no nor not now of off often on once one only onto or ' +
    'other our ours out over own same shall she should since so some still such than that the their theirs them then ' +
    'there these they this those though through to too toward under until up upon us very was we were what when ' +
    'where whether which while who whom whose why will with within without would yet you your yours yourself'
  ).split(' '),
);

/** Of the text of each paragraph, and with `document` of a whole document: what OBELICS keeps. */
export const TEXT_RULES = {
  paragraph: [
    'words in 4..1000',
    'character-repetition <= 0.1',
    'word-repetition <= 0.1',
    'special-characters <= 0.3',
    'stop-words >= 0.3',
    'punctuation >= 0.001',
  ],
  document: [
    'images in 1..30',
    'words in 10..2000',
    'character-repetition <= 0.1',
    'word-repetition <= 0.2',
    'special-characters <= 0.275',
    'stop-words >= 0.35',
    'punctuation >= 0.03',
  ],
} as const;

function countsOf(items: readonly string[]): number[] {
  const counts = new Map<string, number>();
  for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1);
  return [...counts.values()];
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

function share(part: number, whole: number): number {
  return whole === 0 ? 0 : part / whole;
}
