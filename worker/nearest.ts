/** The candidate with the fewest edits, if they are few for its length. */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  const scored = candidates.map((candidate) => ({
    candidate,
    edits: editDistance(word, candidate),
  }));
  scored.sort((a, b) => a.edits - b.edits);
  const [best] = scored;
  return best !== undefined && best.edits <= Math.max(2, word.length / 2)
    ? best.candidate
    : undefined;
}

/** Levenshtein distance, upper and lower case alike. */
function editDistance(a: string, b: string): number {
  const [from, to] = [a.toLowerCase(), b.toLowerCase()];
  let row = Array.from({ length: to.length + 1 }, (_, i) => i);
  for (let i = 1; i <= from.length; i++) {
    const next = [i];
    for (let j = 1; j <= to.length; j++) {
      next.push(
        Math.min(next[j - 1]! + 1, row[j]! + 1, row[j - 1]! + (from[i - 1] === to[j - 1] ? 0 : 1)),
      );
    }
    row = next;
  }
  return row.at(-1)!;
}
