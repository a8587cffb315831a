/** Words of which a picture tells the right one: what texts of a picture have in common, and what is asked of it. */
import * as z from 'zod';
import type { Rng } from '../../proto/random.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { wholeWords } from './whole-words.ts';

/** The field of recipes. */
export const pictureWordsField = z
  .array(z.array(z.string().min(1)).min(2))
  .describe(
    'Lists of words of which a picture tells the right one. Texts belong together where they have the same of these; ' +
      'held-out pictures are asked about texts in which one is exchanged. Empty: texts belong together if equal',
  );

export interface PictureWords {
  /** Whether a piece is one of them, whole. */
  isWord(id: number): boolean;
  /** What texts of one group have in common: their own words of the lists; where they have none, all of them. */
  groupedBy(ids: ArrayLike<number>): ArrayLike<number>;
}

export function openPictureWords(
  tokenizer: Tokenizer,
  lists: readonly (readonly string[])[],
): PictureWords {
  const told = new Set(lists.flat());
  const toldIds = new Set(wholeWords(tokenizer, [...told]).values());
  const asRead = (ids: ArrayLike<number>): string => tokenizer.decode(Array.from(ids));
  // Of a word that no piece is known of nothing is read.
  const readWords = new Set(
    [...told].map((word) => asRead(tokenizer.encode(word))).filter((word) => word !== ''),
  );
  return {
    isWord: (id) => toldIds.has(id),
    groupedBy(ids) {
      const own = asRead(ids)
        .split(/\s+/)
        .filter((word) => readWords.has(word));
      return own.length === 0 ? ids : tokenizer.encode(own.join(' '));
    },
  };
}

/** A text with one of its words exchanged for another of the same list; undefined where it has none. */
export function exchanged(
  text: string,
  lists: readonly (readonly string[])[],
  rng: Rng,
): string | undefined {
  const words = text.split(/\s+/);
  const places = words.flatMap((word, at) => {
    const list = lists.find((own) => own.includes(word));
    return list === undefined ? [] : [{ at, others: list.filter((other) => other !== word) }];
  });
  if (places.length === 0) return undefined;
  const { at, others } = places[rng.integer(places.length)]!;
  return words.with(at, others[rng.integer(others.length)]!).join(' ');
}

/** A text with its first word of a list exchanged for each of the list, and which of them it is; undefined where it has none. */
export function everyExchange(
  text: string,
  list: readonly string[],
): { readonly texts: readonly string[]; readonly own: number } | undefined {
  const words = text.split(/\s+/);
  const at = words.findIndex((word) => list.includes(word));
  if (at < 0) return undefined;
  return {
    texts: list.map((word) => words.with(at, word).join(' ')),
    own: list.indexOf(words[at]!),
  };
}
