import type { Rng } from '../../proto/random.ts';
import { chooseSorted, shareOf } from './mask-rng.ts';
import { checkBetween, checkCount } from './token-error.ts';

export interface PatchDropOptions {
  /** Share of the patches that is dropped: FLIP's 0.5 or 0.75. */
  readonly ratio: number;
  /** The first tokens, e.g. [CLS], are no patches and stay. */
  readonly numProtected?: number;
}

/** How many tokens `keepPatches` keeps, whatever the draw: the length that the compiled step sees. */
export function numKept(numTokens: number, { ratio, numProtected = 0 }: PatchDropOptions): number {
  checkCount('numTokens', numTokens, numProtected + 1);
  checkBetween('ratio', ratio, { high: 1, isOpen: true });
  return numProtected + Math.max(1, shareOf(numTokens - numProtected, 1 - ratio));
}

/**
 * The tokens that stay when a random share of the patches is dropped, ascending, for `gatherTokens`: the encoder runs on
 * those alone. Source: FLIP, arXiv:2212.00794, sec. 3.
 *
 * @throws TokenError `TOKENS_BAD_SETTING`
 */
export function keepPatches(numTokens: number, options: PatchDropOptions, rng: Rng): Int32Array {
  const { numProtected = 0 } = options;
  const count = numKept(numTokens, options) - numProtected;
  const kept = Int32Array.from({ length: numProtected + count }, (_, i) => i);
  const patches = chooseSorted(numTokens - numProtected, count, rng);
  kept.set(
    patches.map((patch) => numProtected + patch),
    numProtected,
  );
  return kept;
}
