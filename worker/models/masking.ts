import type { Rng } from '../../proto/random.ts';

/** What stands at a chosen position, and what is to be predicted there. */
export interface Masked {
  /** Ids with the replacements in place. */
  readonly ids: Int32Array;
  /** Chosen positions, ascending. */
  readonly positions: readonly number[];
}

export interface MaskingOptions {
  readonly maskId: number;
  /** A random id of the same modality. */
  readonly randomId: (rng: Rng) => number;
  /** Every chosen position becomes the mask; otherwise BERT's rule. */
  readonly maskAll: boolean;
}

/**
 * BERT's rule: of the chosen positions 80 % become the mask, 10 % a random id, 10 % stay.
 * Source: Devlin et al. 2019, arXiv:1810.04805, sec. 3.1.
 */
export function applyMask(
  ids: Int32Array,
  positions: readonly number[],
  rng: Rng,
  { maskId, randomId, maskAll }: MaskingOptions,
): Masked {
  const masked = Int32Array.from(ids);
  for (const position of positions) {
    const draw = maskAll ? 0 : rng.uniform();
    if (draw < 0.8) masked[position] = maskId;
    else if (draw < 0.9) masked[position] = randomId(rng);
  }
  return { ids: masked, positions };
}

/** `round(ratio * candidates)` of the candidates, at least one and at most `limit`; ascending. */
export function choosePositions(
  candidates: readonly number[],
  { ratio, limit }: { readonly ratio: number; readonly limit: number },
  rng: Rng,
): number[] {
  if (candidates.length === 0) return [];
  const count = Math.min(limit, Math.max(1, Math.round(ratio * candidates.length)));
  const pool = [...candidates];
  for (let i = 0; i < count; i++) {
    const j = i + rng.integer(pool.length - i);
    [pool[i], pool[j]] = [pool[j]!, pool[i]!];
  }
  return pool.slice(0, count).sort((a, b) => a - b);
}

/**
 * `count` positions of 0..length-1 in runs of `span`, ascending: neighbouring frames look alike, and a single hidden
 * one can be copied from beside it.
 */
export function chooseSpans(
  length: number,
  { count, span }: { readonly count: number; readonly span: number },
  rng: Rng,
): number[] {
  const wanted = Math.min(count, length);
  const chosen = new Set<number>();
  while (chosen.size < wanted) {
    const size = Math.min(span, wanted - chosen.size);
    const start = rng.integer(length - size + 1);
    for (let i = start; i < start + size; i++) chosen.add(i);
  }
  return [...chosen].sort((a, b) => a - b);
}
