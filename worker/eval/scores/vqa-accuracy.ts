import { CONTRACTIONS } from './contractions.ts';

/**
 * VQA accuracy of an answer, between 0 and 1: for each annotator, whether at least three of the others said so, or the
 * third of how many did. Source: Goyal et al. 2017, arXiv:1612.00837, and the evaluation code of VQA v2.
 */
export function vqaAccuracy(answer: string, answers: readonly string[]): number {
  const own = normalizedAnswer(answer);
  // The evaluation code takes annotations as they are where all are the same.
  const isAgreed = new Set(answers).size <= 1;
  const others = answers.map((each) => (isAgreed ? each : withoutPunctuation(each)));
  if (others.length === 1) return own === normalizedAnswer(answers[0]!) ? 1 : 0;
  const matching = others.filter((each) => each === own).length;
  const scores = others.map((each) => Math.min(1, (matching - (each === own ? 1 : 0)) / 3));
  return scores.reduce((sum, score) => sum + score, 0) / scores.length;
}

/** Lower case, without punctuation and articles, numbers as digits, contractions with their apostrophe. */
export function normalizedAnswer(text: string): string {
  const plain = withoutPunctuation(text.replaceAll(/[\n\t]/g, ' ').trim());
  return plain
    .toLowerCase()
    .split(/\s+/)
    .filter((word) => word !== '')
    .map((word) => NUMBERS.get(word) ?? word)
    .filter((word) => !ARTICLES.has(word))
    .map((word) => CONTRACTIONS.get(word) ?? word)
    .join(' ');
}

/** Marks at the edge of a word go, as do all of a text that has a comma between digits; others become spaces. */
function withoutPunctuation(text: string): string {
  let plain = text;
  for (const mark of PUNCTUATION) {
    const isAtEdge = text.includes(`${mark} `) || text.includes(` ${mark}`);
    plain = plain.replaceAll(mark, isAtEdge || /\d,\d/.test(text) ? '' : ' ');
  }
  // The original means to keep a period before a digit, and keeps it there alone.
  return plain.replaceAll(/\.(?!\d)/g, '');
}

const PUNCTUATION = Array.from(';/[]"{}()=+\\_-><@`,?!');
const ARTICLES = new Set(['a', 'an', 'the']);
const NUMBERS = new Map(
  ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten']
    .map((word, number): [string, string] => [word, String(number)])
    .concat([['none', '0']]),
);
