import type { Rng } from '../../proto/random.ts';

export interface AttendedOptions {
  /** Tokens to choose; all, if there are not so many. MERLOT: a fifth of them. */
  readonly budget: number;
  /** Share of the tokens that counts as the most attended. */
  readonly topShare?: number;
  /** Share of the picks that falls on those. */
  readonly guidedShare?: number;
}

/** How far a pick reaches to either side, and how often. */
const REACH = [0.625, 0.25, 0.125] as const;

/**
 * Exactly `budget` of the candidate positions, half of the picks among the fifth that is most looked at: those
 * are the words that say what is seen. `attention` has a figure for each position, e.g. the weights that a text encoder
 * gives it, summed; equal ones count by place. A pick takes up to two neighbours with it to either side, in a row.
 *
 * Source: MERLOT, arXiv:2106.02636, sec. 3.2 and appendix; reach as in its code.
 */
export function chooseAttended(
  candidates: readonly number[],
  attention: ArrayLike<number>,
  { budget, topShare = 0.2, guidedShare = 0.5 }: AttendedOptions,
  rng: Rng,
): number[] {
  const wanted = Math.min(budget, candidates.length);
  const byAttention = [...candidates].sort((a, b) => attention[b]! - attention[a]! || a - b);
  const top = byAttention.slice(0, Math.ceil(topShare * candidates.length));
  const isCandidate = new Set(candidates);
  const chosen = new Set<number>();
  while (chosen.size < wanted) {
    const isGuided = rng.uniform() < guidedShare;
    const free = (pool: readonly number[]): number[] => pool.filter((p) => !chosen.has(p));
    const guided = isGuided ? free(top) : [];
    const pool = guided.length > 0 ? guided : free(candidates);
    const pick = pool[rng.integer(pool.length)]!;
    const [left, right] = [reach(rng), reach(rng)];
    chosen.add(pick);
    for (const [direction, steps] of [[-1, left] as const, [1, right] as const]) {
      for (let i = 1; i <= steps && chosen.size < wanted; i++) {
        const next = pick + direction * i;
        if (!isCandidate.has(next)) break;
        chosen.add(next);
      }
    }
  }
  return [...chosen].sort((a, b) => a - b);
}

function reach(rng: Rng): number {
  const draw = rng.uniform();
  if (draw < REACH[0]) return 0;
  return draw < REACH[0] + REACH[1] ? 1 : 2;
}
