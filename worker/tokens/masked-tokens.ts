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
  /** A random id of the same modality; see {@link idsBetween}. */
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
  options: MaskingOptions,
): Masked {
  const groups = positions.map((position) => [position]);
  return { ids: applyMaskToGroups(ids, groups, rng, options).ids, positions };
}

/**
 * BERT's rule with one draw a group, e.g. a span: all of it masked, or all of it random ids, or all of it as it was.
 * Source: SpanBERT, arXiv:1907.10529, sec. 3.1.
 */
export function applyMaskToGroups(
  ids: Int32Array,
  groups: readonly (readonly number[])[],
  rng: Rng,
  { maskId, randomId, maskAll }: MaskingOptions,
): Masked {
  const masked = Int32Array.from(ids);
  for (const group of groups) {
    const draw = maskAll ? 0 : rng.uniform();
    for (const position of group) {
      if (draw < 0.8) masked[position] = maskId;
      else if (draw < 0.9) masked[position] = randomId(rng);
    }
  }
  return { ids: masked, positions: groups.flat().sort((a, b) => a - b) };
}

/** Draws an id of `first`, ..., `end - 1`: the ids of one modality are such a range. */
export function idsBetween(first: number, end: number): (rng: Rng) => number {
  return (rng) => first + rng.integer(end - first);
}

/** Positions of ordinary ids, `firstWord` and above: special ones are never chosen. */
export function wordPositions(ids: Int32Array, firstWord: number): number[] {
  return [...ids.keys()].filter((i) => ids[i]! >= firstWord);
}

/** How many of `numCandidates` are hidden: `round(ratio * numCandidates)`, at least one if there is any. */
export function maskingBudget(numCandidates: number, ratio: number): number {
  return numCandidates === 0 ? 0 : Math.max(1, Math.round(ratio * numCandidates));
}

/** `round(ratio * candidates)` of the candidates, at least one and at most `limit`; ascending. */
export function choosePositions(
  candidates: readonly number[],
  { ratio, limit }: { readonly ratio: number; readonly limit: number },
  rng: Rng,
): number[] {
  const count = Math.min(limit, maskingBudget(candidates.length, ratio));
  const pool = [...candidates];
  for (let i = 0; i < count; i++) {
    const j = i + rng.integer(pool.length - i);
    [pool[i], pool[j]] = [pool[j]!, pool[i]!];
  }
  return pool.slice(0, count).sort((a, b) => a - b);
}

/** Hides words of a text by BERT's rule: `round(ratio * words)`, at least one and at most `limit`. */
export function maskWords(
  ids: Int32Array,
  rng: Rng,
  {
    firstWord,
    vocabularySize,
    maskId,
    ...budget
  }: {
    readonly firstWord: number;
    readonly vocabularySize: number;
    readonly maskId: number;
    readonly ratio: number;
    readonly limit: number;
  },
): Masked {
  const chosen = choosePositions(wordPositions(ids, firstWord), budget, rng);
  const randomId = idsBetween(firstWord, vocabularySize);
  return applyMask(ids, chosen, rng, { maskId, randomId, maskAll: false });
}
