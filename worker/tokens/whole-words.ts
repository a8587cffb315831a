import { shuffled, type Rng } from '../../proto/random.ts';

/** Whether a WordPiece goes on with the word of the piece before it. */
export function continuesWord(piece: string): boolean {
  return piece.startsWith('##');
}

/** Candidate positions, ascending, by word; a piece whose beginning is no candidate is a word of its own. */
export function wordsOf(
  candidates: readonly number[],
  continues: (position: number) => boolean,
): number[][] {
  const words: number[][] = [];
  for (const position of candidates) {
    const last = words.at(-1);
    if (last?.at(-1) === position - 1 && continues(position)) last.push(position);
    else words.push([position]);
  }
  return words;
}

/**
 * Whole words at random while they fit into `budget` tokens: one that would go beyond is passed over, so fewer may be
 * chosen, never more. Ascending. Source: google-research/bert, create_pretraining_data.py, `do_whole_word_mask`.
 */
export function chooseWords(
  words: readonly (readonly number[])[],
  budget: number,
  rng: Rng,
): number[] {
  const chosen: number[] = [];
  for (const word of shuffled(words, rng)) {
    if (chosen.length === budget) break;
    if (chosen.length + word.length <= budget) chosen.push(...word);
  }
  return chosen.sort((a, b) => a - b);
}
