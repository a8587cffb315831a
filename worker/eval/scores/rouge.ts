import type { WordedCaption } from './score.ts';

/** How much more recall counts than precision. */
const BETA = 1.2;

/**
 * ROUGE-L of one caption, between 0 and 1: by the longest common subsequence with each reference; the best precision and the best
 * recall, which may be of different references. Source: Lin 2004, aclanthology.org/W04-1013, as coco-caption computes it.
 */
export function rougeL({ words, references }: WordedCaption): number {
  if (words.length === 0) return 0;
  const common = references.map((reference) => commonLength(words, reference));
  const precision = Math.max(...common) / words.length;
  const recall = Math.max(
    ...common.map((length, at) => length / Math.max(1, references[at]!.length)),
  );
  if (precision === 0 || recall === 0) return 0;
  return ((1 + BETA ** 2) * precision * recall) / (recall + BETA ** 2 * precision);
}

/** Length of the longest common subsequence. */
function commonLength(a: readonly string[], b: readonly string[]): number {
  let above = new Array<number>(b.length + 1).fill(0);
  for (const word of a) {
    const row = [0];
    for (let j = 0; j < b.length; j++)
      row.push(word === b[j] ? above[j]! + 1 : Math.max(above[j + 1]!, row[j]!));
    above = row;
  }
  return above[b.length]!;
}
