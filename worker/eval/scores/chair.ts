/**
 * CHAIR: how much of what captions speak of is not there. Source: Rohrbach et al. 2018, arXiv:1809.02156, sec. 3.1.
 * Beside it what of the truth is said, so that who says little does not win: Zhai et al. 2023, arXiv:2310.01779, sec. 3.
 */
import { ratio, scored, type Score } from './bootstrap.ts';

/** A caption by the objects in it. */
export interface ObjectCaption {
  /** What it speaks of, each as often as it does. */
  readonly mentions: readonly string[];
  /** What is to be seen. */
  readonly truth: ReadonlySet<string>;
}

/**
 * The share of mentions, and of captions with any, of what is not there; the share of what is there that is spoken of; and
 * the share of captions that speak of nothing, which have nothing wrong in them. Less of the first two is better.
 */
export function scoreChair(captions: readonly ObjectCaption[]): Score[] {
  const counts = captions.map(({ mentions, truth }) => {
    const distinct = new Set(mentions);
    return {
      mentions: mentions.length,
      wrong: mentions.filter((name) => !truth.has(name)).length,
      truth: truth.size,
      said: [...truth].filter((name) => distinct.has(name)).length,
    };
  });
  return scored(['CHAIR-i', 'CHAIR-s', 'coverage', 'says none'], captions.length, (drawn) => {
    const sum = (of: (count: (typeof counts)[number]) => number): number =>
      drawn.reduce((total, at) => total + of(counts[at]!), 0);
    return [
      ratio(
        sum(({ wrong }) => wrong),
        sum(({ mentions }) => mentions),
      ),
      ratio(
        sum(({ wrong }) => Number(wrong > 0)),
        drawn.length,
      ),
      ratio(
        sum(({ said }) => said),
        sum(({ truth }) => truth),
      ),
      ratio(
        sum(({ mentions }) => Number(mentions === 0)),
        drawn.length,
      ),
    ];
  });
}
