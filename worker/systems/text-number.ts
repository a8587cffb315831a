/** Texts by the ids that a model reads of them, cut: what it cannot tell apart is one text, however it is spelt. */
import { drawnOf, openRng } from '../../proto/random.ts';

/** Equal for equal ids alone. */
export function textKey(ids: ArrayLike<number>): string {
  return Array.from(ids).join(' ');
}

/**
 * A whole number that float32 holds, equal for equal ids: FNV-1a of their {@link textKey} folded to 24 bits. Two texts
 * of a batch of G have one number with chance G² / 2^25.
 */
export function textNumber(ids: ArrayLike<number>): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(textKey(ids)))
    hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return (hash ^ (hash >>> 24)) & 0xffffff;
}

/** The texts that a model can tell apart, each as it is spelt first, and which of them a text is. */
export function textClasses(
  texts: Iterable<string>,
  idsOf: (text: string) => ArrayLike<number>,
): { readonly texts: readonly string[]; readonly classOf: (text: string) => number | undefined } {
  const first = new Map<string, string>();
  for (const text of new Set(texts)) {
    const key = textKey(idsOf(text));
    if (!first.has(key)) first.set(key, text);
  }
  const classes = new Map([...first.keys()].map((key, i) => [key, i]));
  return {
    texts: [...first.values()],
    classOf: (text) => classes.get(textKey(idsOf(text))),
  };
}

/** Most texts that a held-out clip or frame is to be told by. */
const MAX_CANDIDATES = 1024;

/** Texts of held-out samples to choose among: evenly drawn where there are more than can be compared. */
export function candidateTexts(
  texts: Iterable<string>,
  idsOf: (text: string) => ArrayLike<number>,
  seed: number,
): ReturnType<typeof textClasses> {
  const rng = openRng(seed, 'candidates');
  return textClasses(drawnOf([...new Set(texts)], MAX_CANDIDATES, rng), idsOf);
}
