import { ngramCounts } from './ngrams.ts';
import type { WordedCaption } from './score.ts';

/** The longest n-gram that counts. */
export const BLEU_ORDERS = 4;

/** What BLEU adds up over a corpus: of one caption, or of many together. */
export interface BleuCounts {
  /** n-grams of the candidate that are in a reference, each at most as often as in one of them, by n - 1. */
  readonly matched: readonly number[];
  /** n-grams of the candidate, by n - 1. */
  readonly guessed: readonly number[];
  readonly length: number;
  /** Of the reference whose length is closest, the shorter one of two. */
  readonly referenceLength: number;
}

export function bleuCounts({ words, references }: WordedCaption): BleuCounts {
  const own = ngramCounts(words, BLEU_ORDERS);
  const others = references.map((reference) => ngramCounts(reference, BLEU_ORDERS));
  const matched = own.map((counts, at) => {
    let sum = 0;
    for (const [ngram, count] of counts)
      sum += Math.min(count, Math.max(...others.map((each) => each[at]!.get(ngram) ?? 0)));
    return sum;
  });
  const lengths = references.map(({ length }) => length);
  const distance = (length: number): number => Math.abs(length - words.length);
  const referenceLength = lengths.reduce((best, length) =>
    distance(length) < distance(best) || (distance(length) === distance(best) && length < best)
      ? length
      : best,
  );
  return {
    matched,
    guessed: own.map((_, at) => Math.max(0, words.length - at)),
    length: words.length,
    referenceLength,
  };
}

/**
 * BLEU-1 to BLEU-4 of a corpus, between 0 and 1: geometric mean of the precisions up to n, times a penalty for brevity.
 * Source: Papineni et al. 2002, doi:10.3115/1073083.1073135; constants against division by zero as coco-caption has them.
 */
export function corpusBleu(corpus: readonly BleuCounts[]): number[] {
  const total = (of: (counts: BleuCounts) => number): number =>
    corpus.reduce((sum, counts) => sum + of(counts), 0);
  const ratio =
    (total(({ length }) => length) + TINY) / (total((each) => each.referenceLength) + SMALL);
  const penalty = ratio < 1 ? Math.exp(1 - 1 / ratio) : 1;
  let product = 1;
  return Array.from({ length: BLEU_ORDERS }, (_, at) => {
    const matched = total((counts) => counts.matched[at]!);
    product *= (matched + TINY) / (total((counts) => counts.guessed[at]!) + SMALL);
    return product ** (1 / (at + 1)) * penalty;
  });
}

const [TINY, SMALL] = [1e-15, 1e-9];
