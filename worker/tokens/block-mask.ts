import type { Rng } from '../../proto/random.ts';
import { chooseSorted, placesOf } from './mask-rng.ts';
import { checkBetween, checkCount } from './token-error.ts';
import type { TokenSplit } from './tube-mask.ts';

export interface BlockMaskOptions {
  /** Patches to hide: BEiT's 75 of 196. */
  readonly numMasked: number;
  /** Least patches of a block while as many are left to hide; 16 unless given. */
  readonly leastBlock?: number;
  /** Least ratio of a block's sides, and the inverse of the greatest; 0.3 unless given. */
  readonly leastAspect?: number;
  /**
   * Where no further block fits, single patches make up the number: programs have fixed shapes. Without it there may be
   * fewer, as in BEiT.
   */
  readonly isExact: boolean;
}

const ATTEMPTS = 10;

/**
 * Patches hidden by rectangles of random area and aspect until there are `numMasked`, row by row.
 * Source: BEiT, arXiv:2106.08254, sec. 2.3, algorithm 1, as its `MaskingGenerator` does it: a block is tried ten times,
 * must leave a row and a column free, and is passed over if it would hide too many or nothing new.
 *
 * @throws TokenError `TOKENS_BAD_SETTING`
 */
export function blockMask(
  { height, width }: { readonly height: number; readonly width: number },
  { numMasked, leastBlock = 16, leastAspect = 0.3, isExact }: BlockMaskOptions,
  rng: Rng,
): TokenSplit {
  const numPatches = height * width;
  checkCount('numMasked', numMasked);
  checkBetween('numMasked', numMasked, { high: numPatches });
  checkBetween('leastAspect', leastAspect, { low: Number.MIN_VALUE, high: 1 });
  const isMasked = new Uint8Array(numPatches);

  /** Hides one block more and gives how many patches that are; 0 if none was found. */
  const addBlock = (most: number): number => {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const area = leastBlock + (most - leastBlock) * rng.uniform();
      const aspect = Math.exp(Math.log(leastAspect) * (1 - 2 * rng.uniform()));
      const [h, w] = [Math.round(Math.sqrt(area * aspect)), Math.round(Math.sqrt(area / aspect))];
      if (h >= height || w >= width) continue;
      const [top, left] = [rng.integer(height - h + 1), rng.integer(width - w + 1)];
      const block = Array.from(
        { length: h * w },
        (_, i) => (top + Math.floor(i / w)) * width + left + (i % w),
      ).filter((patch) => isMasked[patch] === 0);
      if (block.length === 0 || block.length > most) continue;
      for (const patch of block) isMasked[patch] = 1;
      return block.length;
    }
    return 0;
  };

  let missing = numMasked;
  while (missing > 0) {
    const added = addBlock(missing);
    if (added === 0) break;
    missing -= added;
  }
  if (isExact && missing > 0) {
    const free = placesOf(isMasked, 0);
    for (const i of chooseSorted(free.length, missing, rng)) isMasked[free[i]!] = 1;
  }
  return { kept: placesOf(isMasked, 0), masked: placesOf(isMasked, 1) };
}
