import type { Tokenizer } from '../../video/text/tokenizer.ts';
import type { Given } from './system.ts';

/** A question of which the first `length` word pieces are given; whole it is as it was asked. */
export function questionGiven(
  { encode, decode, special }: Pick<Tokenizer, 'encode' | 'decode' | 'special'>,
  question: string,
  length: number,
): Pick<Given, 'question' | 'cutTo'> {
  const ids = encode(question);
  if (ids.length <= length) return { question };
  // Decoding leaves out what is to be filled in.
  const parts: number[][] = [[]];
  for (const id of ids.slice(0, length)) {
    if (id === special.mask) parts.push([]);
    else parts.at(-1)!.push(id);
  }
  return {
    question: parts
      .map((part) => decode(part))
      .join(' [MASK] ')
      .trim(),
    cutTo: length,
  };
}
