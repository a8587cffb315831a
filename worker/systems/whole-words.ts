import type { Tokenizer } from '../../video/text/tokenizer.ts';

/**
 * The piece of every word that is one known piece by itself. One token cannot ask for any other: its first piece may
 * begin another word, and what is unknown is not that word.
 */
export function wholeWords(tokenizer: Tokenizer, words: readonly string[]): Map<string, number> {
  const pieces = new Map<string, number>();
  for (const word of words) {
    const [id, ...more] = tokenizer.encode(word);
    if (id !== undefined && more.length === 0 && id !== tokenizer.special.unk) pieces.set(word, id);
  }
  return pieces;
}
