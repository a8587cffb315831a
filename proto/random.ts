/**
 * Counter-based randomness: a number is a function of (seed, purpose, counters) and of nothing else, so that it does
 * not matter who draws it, when, or how often. Source: Philox-4x32-10, Salmon et al. 2011, "Parallel Random Numbers:
 * As Easy as 1, 2, 3", sec. 4.3; checked against Random123's known answers.
 */

import assert from 'node:assert/strict';

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;

/** The upper half of the 64 bits of a product, by halves of 16 bits: numbers that leave 32 bits are ten times slower. */
function mulHigh(a: number, b: number): number {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = Math.imul(aHigh, bLow);
  const cross = Math.imul(aLow, bHigh);
  const carry = (middle & 0xffff) + (cross & 0xffff) + (Math.imul(aLow, bLow) >>> 16);
  return (Math.imul(aHigh, bHigh) + (middle >>> 16) + (cross >>> 16) + (carry >>> 16)) | 0;
}

/** One Philox-4x32-10 block, into `out`: counter of four and key of two words of 32 bits, signed or not, to four. */
function philoxInto(
  out: Int32Array,
  c0: number,
  c1: number,
  c2: number,
  c3: number,
  k0: number,
  k1: number,
): void {
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = [mulHigh(M0, c0), Math.imul(M0, c0)];
    const [high1, low1] = [mulHigh(M1, c2), Math.imul(M1, c2)];
    [c0, c1, c2, c3] = [high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0];
    k0 = (k0 + W0) | 0;
    k1 = (k1 + W1) | 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

/** One Philox-4x32-10 block: counter of four and key of two uint32 to four uint32. */
export function philox4x32(
  [c0, c1, c2, c3]: readonly [number, number, number, number],
  [k0, k1]: readonly [number, number],
): [number, number, number, number] {
  const out = new Int32Array(4);
  philoxInto(out, c0, c1, c2, c3, k0, k1);
  return [out[0]! >>> 0, out[1]! >>> 0, out[2]! >>> 0, out[3]! >>> 0];
}

/** FNV-1a, 32 bits: gives each purpose a key word of its own. */
function hash32(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++)
    hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193) >>> 0;
  return hash;
}

/** A stream of numbers fixed by the key that made it. Draws advance the stream; `fork` gives an independent one. */
export interface Rng {
  /** Uniform integer in [0, 2^32). */
  uint32(): number;
  /** Uniform in [0, 1), 53 bits. */
  uniform(): number;
  /** Uniform integer in [0, bound), without bias; `bound` is at least 1. */
  integer(bound: number): number;
  /** Standard normal (Box-Muller). */
  normal(): number;
  /** An independent stream, named; does not depend on how far this one is. */
  fork(purpose: string, ...counters: number[]): Rng;
}

/**
 * The stream of (seed, purpose, counters): e.g. `openRng(seed, 'mask', epoch, sampleId)`. Counters are non-negative
 * integers below 2^53.
 */
export function openRng(seed: number, purpose: string, ...counters: number[]): Rng {
  let key: [number, number] = [seed >>> 0, (hash32(purpose) ^ Math.floor(seed / 2 ** 32)) >>> 0];
  // Each counter goes through a block of its own, so that (1, 23) and (12, 3) differ.
  for (const [position, counter] of counters.entries()) {
    const block = philox4x32(
      [counter >>> 0, Math.floor(counter / 2 ** 32), position, 0xc0ffee],
      key,
    );
    key = [block[0], block[1]];
  }
  return streamOf(key);
}

function streamOf(key: readonly [number, number]): Rng {
  let [index, used] = [0, 4];
  const block = new Int32Array(4);
  let spareNormal: number | undefined;
  const uint32 = (): number => {
    if (used === 4) {
      philoxInto(block, index | 0, Math.floor(index / 2 ** 32), 0, 0, key[0], key[1]);
      index++;
      used = 0;
    }
    return block[used++]! >>> 0;
  };
  const uniform = (): number => ((uint32() >>> 5) * 2 ** 26 + (uint32() >>> 6)) / 2 ** 53;
  return {
    uint32,
    uniform,
    integer(bound) {
      assert.ok(bound >= 1 && bound <= 2 ** 32, `no integer lies in [0, ${bound})`);
      const limit = 2 ** 32 - (2 ** 32 % bound);
      for (;;) {
        const value = uint32();
        if (value < limit) return value % bound;
      }
    },
    normal() {
      if (spareNormal !== undefined) {
        const value = spareNormal;
        spareNormal = undefined;
        return value;
      }
      const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
      const angle = 2 * Math.PI * uniform();
      spareNormal = radius * Math.sin(angle);
      return radius * Math.cos(angle);
    },
    fork(purpose, ...counters) {
      const block = philox4x32([hash32(purpose), counters.length, 0, 0xf0f0], key);
      let forked: [number, number] = [block[0], block[1]];
      for (const [position, counter] of counters.entries()) {
        const next = philox4x32(
          [counter >>> 0, Math.floor(counter / 2 ** 32), position, 0xc0ffee],
          forked,
        );
        forked = [next[0], next[1]];
      }
      return streamOf(forked);
    },
  };
}

/** Fisher-Yates over a copy. */
export function shuffled<T>(items: readonly T[], rng: Rng): T[] {
  const copy = [...items];
  for (let i = copy.length - 1; i > 0; i--) {
    const j = rng.integer(i + 1);
    [copy[i], copy[j]] = [copy[j]!, copy[i]!];
  }
  return copy;
}

/** Some of a list, evenly drawn, in its order; the whole list where it has no more than `limit`. */
export function drawnOf<T>(items: readonly T[], limit: number, rng: Rng): T[] {
  if (items.length <= limit) return [...items];
  return shuffled([...items.keys()], rng)
    .slice(0, limit)
    .sort((a, b) => a - b)
    .map((at) => items[at]!);
}
