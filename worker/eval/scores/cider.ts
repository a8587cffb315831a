import { ngramCounts } from './ngrams.ts';
import type { WordedCaption } from './score.ts';

const ORDERS = 4;
/** Standard deviation of the penalty for another length. */
const SIGMA = 6;

/**
 * CIDEr-D of each caption, between 0 and 10: how much its n-grams agree with the references, rare ones counting more. How
 * rare is known from the references of all captions, so that a single caption scores 0.
 * Source: Vedantam et al. 2015, arXiv:1411.5726, sec. 4 and 5; as coco-caption computes it.
 */
export function ciderD(captions: readonly WordedCaption[]): number[] {
  const counted = captions.map(({ words, references }) => ({
    own: ngramCounts(words, ORDERS),
    references: references.map((reference) => ngramCounts(reference, ORDERS)),
  }));
  /** In the references of how many captions an n-gram is. */
  const frequency = new Map<string, number>();
  for (const { references } of counted) {
    const ngrams = new Set(references.flat().flatMap((counts) => [...counts.keys()]));
    for (const ngram of ngrams) frequency.set(ngram, (frequency.get(ngram) ?? 0) + 1);
  }
  const logCaptions = Math.log(captions.length);
  const vectorOf = (counts: readonly Map<string, number>[]): Vector => {
    const weights = counts.map(
      (each) =>
        new Map(
          [...each].map(([ngram, count]) => [
            ngram,
            count * (logCaptions - Math.log(Math.max(1, frequency.get(ngram) ?? 0))),
          ]),
        ),
    );
    const norms = weights.map((each) =>
      Math.sqrt([...each.values()].reduce((sum, weight) => sum + weight ** 2, 0)),
    );
    // Of pairs of words, as the original has it.
    const length = [...counts[1]!.values()].reduce((sum, count) => sum + count, 0);
    return { weights, norms, length };
  };
  return counted.map(({ own, references }) => {
    const vector = vectorOf(own);
    const sum = references.reduce((all, each) => all + similarity(vector, vectorOf(each)), 0);
    return (10 * sum) / references.length;
  });
}

interface Vector {
  /** By n-gram, by n - 1. */
  readonly weights: readonly ReadonlyMap<string, number>[];
  readonly norms: readonly number[];
  readonly length: number;
}

/** Mean over n of the clipped cosines. */
function similarity(own: Vector, reference: Vector): number {
  const penalty = Math.exp(-((own.length - reference.length) ** 2) / (2 * SIGMA ** 2));
  let sum = 0;
  for (let at = 0; at < ORDERS; at++) {
    const others = reference.weights[at]!;
    let dot = 0;
    for (const [ngram, weight] of own.weights[at]!) {
      const other = others.get(ngram) ?? 0;
      dot += Math.min(weight, other) * other;
    }
    const norms = own.norms[at]! * reference.norms[at]!;
    sum += norms === 0 ? dot : dot / norms;
  }
  return (sum / ORDERS) * penalty;
}
