import type { Rng } from '../../proto/random.ts';

/** SpanBERT's: lengths are geometric with p = 0.2, none beyond 10: 3.8 words on average. */
export const SPAN_LENGTHS = { p: 0.2, longest: 10 };

export interface SpanOptions {
  /** Tokens to choose; all, if there are not so many. */
  readonly budget: number;
  readonly p?: number;
  readonly longest?: number;
}

/**
 * Exactly `budget` tokens in spans of whole words, ascending; the last span is cut to it. A span starts at the word of a
 * token that is not chosen yet, and ends early where the next word does not follow, e.g. at a special token.
 * `words` as `wordsOf` gives them; for spans of tokens each is a word of its own.
 *
 * Source: SpanBERT, arXiv:1907.10529, sec. 3.1. The distribution beyond `longest` is spread over the rest, as there.
 */
export function chooseTokenSpans(
  words: readonly (readonly number[])[],
  { budget, p = SPAN_LENGTHS.p, longest = SPAN_LENGTHS.longest }: SpanOptions,
  rng: Rng,
): number[] {
  const wordOf = new Map(
    words.flatMap((word, w) => word.map((position) => [position, w] as const)),
  );
  const wanted = Math.min(budget, wordOf.size);
  const chosen = new Set<number>();
  while (chosen.size < wanted) {
    const length = spanLength(p, longest, rng);
    const free = [...wordOf.keys()].filter((position) => !chosen.has(position));
    const first = wordOf.get(free[rng.integer(free.length)]!)!;
    for (let w = first; w < first + length; w++) {
      const word = words[w];
      if (word === undefined || (w > first && words[w - 1]!.at(-1) !== word[0]! - 1)) break;
      for (const position of word) if (chosen.size < wanted) chosen.add(position);
    }
  }
  return [...chosen].sort((a, b) => a - b);
}

/** Ascending positions, cut where one is missing: what is masked together, see `applyMaskToGroups`. */
export function runsOf(positions: readonly number[]): number[][] {
  const runs: number[][] = [];
  for (const position of positions) {
    const last = runs.at(-1);
    if (last?.at(-1) === position - 1) last.push(position);
    else runs.push([position]);
  }
  return runs;
}

/** By inversion of the geometric distribution that ends at `longest`. */
function spanLength(p: number, longest: number, rng: Rng): number {
  const reach = 1 - (1 - p) ** longest;
  const length = 1 + Math.floor(Math.log1p(-rng.uniform() * reach) / Math.log1p(-p));
  return Math.min(length, longest);
}
