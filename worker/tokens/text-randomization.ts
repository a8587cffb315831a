import type { Rng } from '../../proto/random.ts';
import { checkBetween } from './token-error.ts';

export interface RandomizationOptions {
  /** Chance of each token to be changed. */
  readonly probability: number;
  /** Ids below are special and stay. */
  readonly firstWord: number;
  /** What stands in place of a changed token; left out where undefined. */
  readonly maskId: number | undefined;
}

/**
 * Each word piece replaced or left out with a probability of its own, anew every epoch: captions are harder to learn by
 * heart. The same draws decide whichever is done with them. With probability 0 the ids as they were.
 *
 * Source: text-token randomization, Bordes et al. 2024, "An Introduction to Vision-Language Modeling",
 * arXiv:2405.17247, and Jayaraman et al. 2024, "Deja Vu Memorization in Vision-Language Models", arXiv:2402.02103.
 * @throws TokenError `TOKENS_BAD_SETTING`
 */
export function randomizeText(
  ids: Int32Array,
  { probability, firstWord, maskId }: RandomizationOptions,
  rng: Rng,
): Int32Array {
  checkBetween('probability', probability, { high: 1 });
  const isChanged = ids.map((id) => (id >= firstWord && rng.uniform() < probability ? 1 : 0));
  return maskId === undefined
    ? ids.filter((_, i) => isChanged[i] === 0)
    : ids.map((id, i) => (isChanged[i] === 1 ? maskId : id));
}
