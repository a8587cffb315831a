/** The causal mask of CM3: a span is hidden where it stands and told at the end. */
import type { Rng } from '../../proto/random.ts';

/** Tokens from `start` up to but not including `end`. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

/** One of all lengths, each equally likely, and of that any place. `length` is at least 1. */
export function drawnSpan(length: number, rng: Rng): Span {
  const size = 1 + rng.integer(length);
  const start = rng.integer(length - size + 1);
  return { start, end: start + size };
}

/**
 * `mask` in place of the span, and the span behind all others, after `infill`. Source: Aghajanyan et al. 2022,
 * arXiv:2201.07520, sec. 2. Difference: one span of a sequence.
 */
export function withSpanLast(
  ids: readonly number[],
  { start, end }: Span,
  { mask, infill }: { readonly mask: number; readonly infill: number },
): number[] {
  return [...ids.slice(0, start), mask, ...ids.slice(end), infill, ...ids.slice(start, end)];
}
