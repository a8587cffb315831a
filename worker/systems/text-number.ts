/** Texts by the ids that a model reads of them, cut: what it cannot tell apart is one text, however it is spelt. */
import { createHash } from 'node:crypto';
import { drawnOf, openRng } from '../../proto/random.ts';
import { floatArray, intArray } from './host-arrays.ts';
import type { HostArray } from './system.ts';

/** Equal for equal ids alone. */
export function textKey(ids: ArrayLike<number>): string {
  return Array.from(ids).join(' ');
}

/** Numbers of a text. */
export const TEXT_NUMBERS = 2;

/**
 * Two whole numbers of 24 bits, which float32 holds, of each text, [B, 2]; equal for equal ids. They are the first 48
 * bits of the SHA-256 of the text's {@link textKey}: among the G texts of a batch two have the same with chance
 * G² / 2^49, two in a million for 32,768.
 */
export function textNumbers(
  texts: readonly ArrayLike<number>[],
): HostArray & { readonly data: Float32Array } {
  const numbers = floatArray(texts.length, TEXT_NUMBERS);
  for (const [i, ids] of texts.entries()) {
    const digest = createHash('sha256').update(textKey(ids)).digest();
    numbers.data.set([digest.readUIntBE(0, 3), digest.readUIntBE(3, 3)], i * TEXT_NUMBERS);
  }
  return numbers;
}

/** For each row of {@link textNumbers} the first that has the same, [B] int32. */
export function firstAlike({ data }: HostArray): HostArray {
  const places = new Map<string, number>();
  const alike = intArray(data.length / TEXT_NUMBERS);
  for (const row of alike.data.keys()) {
    const key = textKey(data.subarray(row * TEXT_NUMBERS, (row + 1) * TEXT_NUMBERS));
    if (!places.has(key)) places.set(key, row);
    alike.data[row] = places.get(key)!;
  }
  return alike;
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
