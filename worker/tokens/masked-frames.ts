import type { Rng } from '../../proto/random.ts';

/**
 * `count` positions of 0..length-1 in runs of `span`, ascending: neighbouring frames look alike, and a single hidden
 * one can be copied from beside it.
 */
export function chooseSpans(
  length: number,
  { count, span }: { readonly count: number; readonly span: number },
  rng: Rng,
): number[] {
  const wanted = Math.min(count, length);
  const chosen = new Set<number>();
  while (chosen.size < wanted) {
    const size = Math.min(span, wanted - chosen.size);
    const start = rng.integer(length - size + 1);
    for (let i = start; i < start + size; i++) chosen.add(i);
  }
  return [...chosen].sort((a, b) => a - b);
}
