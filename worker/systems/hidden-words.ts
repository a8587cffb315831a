import type { Tokenizer } from '../../video/text/tokenizer.ts';
import type { Explained, HostArray } from './system.ts';

/** The texts of a batch in words: what stood at the hidden places, and what was said in its stead. */
export function hiddenWordsExplained(
  tokenizer: Tokenizer,
  {
    ids,
    positions,
    labels,
    weights,
    guesses,
    numWindows,
  }: {
    readonly ids: HostArray;
    readonly positions: HostArray;
    readonly labels: HostArray;
    readonly weights: HostArray;
    /** As many as labels. */
    readonly guesses: ArrayLike<number>;
    /** Of a clip; nothing is told of them. */
    readonly numWindows: number;
  },
): Explained[] {
  const [numRows, numHidden] = positions.shape as [number, number];
  const length = ids.shape[1]!;
  return Array.from({ length: numRows }, (_, row) => {
    const slots = Array.from({ length: numHidden }, (_slot, i) => row * numHidden + i);
    const asked = slots.filter((slot) => weights.data[slot] !== 0);
    const hidden = new Map(asked.map((slot) => [positions.data[slot]!, slot]));
    const own = [...ids.data.subarray(row * length, (row + 1) * length)];
    const words = own.flatMap((id, at) => {
      const slot = hidden.get(at);
      if (slot === undefined)
        return id < tokenizer.firstWordId ? [] : [{ text: tokenizer.decode([id]) }];
      const [text, guess] = [labels.data[slot]!, guesses[slot]!].map((one) =>
        tokenizer.decode([one]),
      ) as [string, string];
      return [{ text, guess }];
    });
    return { words, windows: Array.from({ length: numWindows }, () => ({})) };
  });
}
