/** How often each run of 1 to `longest` words is in a text, by its length; runs are joined by spaces. */
export function ngramCounts(words: readonly string[], longest: number): Map<string, number>[] {
  return Array.from({ length: longest }, (_, at) => {
    const counts = new Map<string, number>();
    for (let start = 0; start + at < words.length; start++) {
      const ngram = words.slice(start, start + at + 1).join(' ');
      counts.set(ngram, (counts.get(ngram) ?? 0) + 1);
    }
    return counts;
  });
}
