/** Texts with `[MASK]`s in them, as systems complete them. */
import { UsageError } from '../../proto/errors.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import type { HostArray } from './system.ts';

/**
 * The first `limit` word pieces of a text, and the places of its `[MASK]`s among them.
 * @throws UsageError `NOTHING_TO_FILL_IN` where there is none
 */
export function idsToFillIn(
  { encode, special }: Pick<Tokenizer, 'encode' | 'special'>,
  text: string,
  limit: number,
): { readonly ids: readonly number[]; readonly places: readonly number[] } {
  const ids = text
    .split('[MASK]')
    .flatMap((part, i) => [...(i === 0 ? [] : [special.mask]), ...encode(part)])
    .slice(0, limit);
  const places = [...ids.keys()].filter((at) => ids[at] === special.mask);
  if (places.length === 0) {
    throw new UsageError(
      'NOTHING_TO_FILL_IN',
      `the text has no [MASK] among its first ${limit} word pieces, so nothing is asked: ${text}`,
    );
  }
  return { ids, places };
}

/**
 * Each row's text, `[CLS] words END`, with the likeliest word pieces in place of its hidden ones; `logits` [rows, places, V].
 * @param end the id that ends the words
 */
export function filledIn(
  tokenizer: Tokenizer,
  {
    ids,
    positions,
    end,
  }: { readonly ids: HostArray; readonly positions: HostArray; readonly end: number },
  logits: ArrayLike<number>,
): string[] {
  const { vocabularySize, firstWordId } = tokenizer;
  const [numRows, numPlaces] = positions.shape as [number, number];
  const length = ids.shape[1]!;
  return Array.from({ length: numRows }, (_, row) => {
    const own = [...ids.data.subarray(row * length, (row + 1) * length)];
    for (let place = 0; place < numPlaces; place++) {
      const at = (row * numPlaces + place) * vocabularySize;
      let best = firstWordId;
      for (let id = firstWordId; id < vocabularySize; id++)
        if (logits[at + id]! > logits[at + best]!) best = id;
      own[positions.data[row * numPlaces + place]!] = best;
    }
    return tokenizer.decode(own.slice(1, own.indexOf(end)).filter((id) => id >= firstWordId));
  });
}
