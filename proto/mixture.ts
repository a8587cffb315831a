/**
 * Draws among parts in given proportions without chance: after any number of draws each part is less than one draw
 * away from its share. What the n-th draw takes is looked up, so that a run can be resumed anywhere.
 */

import assert from 'node:assert/strict';

/** The n-th draw: which part, and how often that was drawn before. */
export interface Draw {
  readonly part: number;
  readonly before: number;
}

/** A fixed, endless sequence of draws. */
export interface DrawSequence {
  /** @param n counted from 0 */
  at(n: number): Draw;
}

/** Weights that are not small whole numbers are rounded to as many parts; each part has at least one. */
const RESOLUTION = 1_000_000;

/**
 * The sequence for these weights (positive, at most 256 of them). Whole weights that add up to a million at most are
 * met exactly, others to one in a million. It repeats after as many draws as the weights in lowest terms add up to.
 */
export function openDraws(weights: readonly number[]): DrawSequence {
  const shares = wholeShares(weights);
  if (shares.length === 1) return { at: (n) => ({ part: 0, before: n }) };
  const { parts, before } = oneRound(shares);
  return {
    at(n) {
      const [round, place] = [Math.floor(n / parts.length), n % parts.length];
      const part = parts[place]!;
      return { part, before: round * shares[part]! + before[place]! };
    },
  };
}

/**
 * Source: Tijdeman 1980, "The chairman assignment problem": among the parts that have fallen behind by 1 / (2K - 2)
 * draws the one goes first that would soonest be too late; then no part is ever 1 - 1 / (2K - 2) draws away.
 */
function oneRound(shares: readonly number[]): { parts: Uint16Array; before: Uint32Array } {
  const length = shares.reduce((a, b) => a + b, 0);
  const parts = new Uint16Array(length);
  const before = new Uint32Array(length);
  const drawn = new Uint32Array(shares.length);
  // In units of 1 / (length (2K - 2)) draws all of this is whole.
  const unit = 2 * shares.length - 2;
  for (let place = 0; place < length; place++) {
    let [next, soonest] = [-1, Infinity];
    for (const [part, share] of shares.entries()) {
      const behind = unit * ((place + 1) * share - drawn[part]! * length);
      const latest = (length * (unit - 1) - behind) / share;
      if (behind >= length && latest < soonest) [next, soonest] = [part, latest];
    }
    parts[place] = next;
    before[place] = drawn[next]!++;
  }
  return { parts, before };
}

/** Whole numbers in lowest terms in the proportion of the weights. */
function wholeShares(weights: readonly number[]): number[] {
  assert.ok(weights.length > 0 && weights.length <= 256 && weights.every((w) => w > 0));
  const total = weights.reduce((a, b) => a + b, 0);
  const isExact = weights.every(Number.isInteger) && total <= RESOLUTION;
  const shares = isExact ? [...weights] : roundedShares(weights, total);
  const divisor = shares.reduce(greatestCommonDivisor);
  return shares.map((share) => share / divisor);
}

/** Rounded down, and what is then missing to the resolution goes to the largest remainders. */
function roundedShares(weights: readonly number[], total: number): number[] {
  // A part in ten million beside the quotient: 0.45 of 1 is 450,000 and not one less.
  const quotas = weights.map((weight) => (weight / total) * RESOLUTION + 1e-7);
  const shares = quotas.map((quota) => Math.max(1, Math.floor(quota)));
  const missing = RESOLUTION - shares.reduce((a, b) => a + b, 0);
  const byRemainder = [...quotas.keys()].sort(
    (a, b) => quotas[b]! - shares[b]! - (quotas[a]! - shares[a]!) || a - b,
  );
  for (const part of byRemainder.slice(0, Math.max(0, missing))) shares[part]!++;
  return shares;
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}
