import type { Rng } from '../../proto/random.ts';
import { chooseSorted, placesOf, shareOf } from './mask-rng.ts';
import { numCells, type TokenGrid } from './pool-merge.ts';
import { checkBetween } from './token-error.ts';

/** Tokens of a clip in two parts, each ascending. */
export interface TokenSplit {
  /** What the encoder sees. */
  readonly kept: Int32Array;
  /** What is to be predicted. */
  readonly masked: Int32Array;
}

/**
 * `floor(ratio * H W)` places, hidden in every frame: what is hidden in one cannot be copied from the next. Tokens count
 * frame by frame, row by row. Source: VideoMAE, arXiv:2203.12602, sec. 3.3.
 *
 * @throws TokenError `TOKENS_BAD_SETTING`
 */
export function tubeMask(grid: TokenGrid, ratio: number, rng: Rng): TokenSplit {
  checkBetween('ratio', ratio, { high: 1, isOpen: true });
  const frame = grid.height * grid.width;
  const isMasked = new Uint8Array(numCells(grid));
  for (const place of chooseSorted(frame, shareOf(frame, ratio), rng)) {
    for (let t = 0; t < grid.frames; t++) isMasked[t * frame + place] = 1;
  }
  return { kept: placesOf(isMasked, 0), masked: placesOf(isMasked, 1) };
}
