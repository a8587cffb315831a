/** Texts that say nearly the same, and pictures that look nearly the same. Pure. */
import { openRng } from '../../proto/random.ts';

const NUM_PERMUTATIONS = 128;
/** Two texts are compared if they agree in all rows of a band: 99.8 % of those that share 0.8, 1.5 % of 0.3. */
const BANDS = { count: 21, rows: 6 } as const;
const SHINGLE_CHARACTERS = 5;

/**
 * The pieces by which two texts are compared: runs of five characters, without regard to case and white space. A
 * shorter text is one piece.
 */
export function shinglesOf(text: string): Set<string> {
  const characters = Array.from(text.toLowerCase().replace(/\s+/gu, ' ').trim());
  const shingles = new Set<string>();
  for (let i = 0; i <= Math.max(0, characters.length - SHINGLE_CHARACTERS); i++) {
    shingles.add(characters.slice(i, i + SHINGLE_CHARACTERS).join(''));
  }
  return shingles;
}

/** Size of the intersection over that of the union, 1 for two empty sets. */
export function jaccard<T>(a: ReadonlySet<T>, b: ReadonlySet<T>): number {
  let numShared = 0;
  for (const item of a) if (b.has(item)) numShared++;
  const size = a.size + b.size - numShared;
  return size === 0 ? 1 : numShared / size;
}

/**
 * The least hash of a set's pieces under each of 128 permutations. The share of places in which two signatures agree
 * estimates their Jaccard index, with a deviation of sqrt(J (1 - J) / 128).
 * Source: Broder 1997, "On the resemblance and containment of documents", sec. 3.
 */
export function minHash(shingles: ReadonlySet<string>): Uint32Array {
  const signature = new Uint32Array(NUM_PERMUTATIONS).fill(0xffffffff);
  for (const shingle of shingles) {
    const hash = hash32(shingle);
    for (let i = 0; i < NUM_PERMUTATIONS; i++) {
      const value = mix32(Math.imul(hash ^ KEYS.add[i]!, KEYS.multiply[i]!));
      if (value < signature[i]!) signature[i] = value;
    }
  }
  return signature;
}

/** Jaccard index as two signatures estimate it. */
export function estimateJaccard(a: Uint32Array, b: Uint32Array): number {
  let numEqual = 0;
  for (let i = 0; i < a.length; i++) if (a[i] === b[i]) numEqual++;
  return numEqual / a.length;
}

// An odd factor and an exclusive or are one-to-one, so each pair of keys gives a permutation.
const KEYS = ((): { add: Uint32Array; multiply: Uint32Array } => {
  const rng = openRng(0, 'minhash');
  const draw = (): Uint32Array =>
    Uint32Array.from({ length: NUM_PERMUTATIONS }, () => rng.uint32());
  return { add: draw(), multiply: draw().map((value) => value | 1) };
})();

function hash32(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return mix32(hash);
}

/** Source: MurmurHash3, its last step for 32 bits; one-to-one. */
function mix32(value: number): number {
  let h = value;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** Finds among the texts added so far those that are near to another one. */
export class TextIndex {
  readonly #threshold: number;
  readonly #buckets = new Map<string, number[]>();
  readonly #texts: string[] = [];

  constructor(threshold: number) {
    this.#threshold = threshold;
  }

  /** Numbers of the texts whose Jaccard index with this one reaches the threshold, ascending. */
  near(text: string): number[] {
    const shingles = shinglesOf(text);
    const candidates = new Set(bandsOf(shingles).flatMap((band) => this.#buckets.get(band) ?? []));
    // Candidates are compared in full, so that no estimate decides.
    return [...candidates]
      .filter((n) => jaccard(shingles, shinglesOf(this.#texts[n]!)) >= this.#threshold)
      .sort((a, b) => a - b);
  }

  /** The text's number is how many were added before. */
  add(text: string): void {
    const number = this.#texts.push(text) - 1;
    for (const band of bandsOf(shinglesOf(text))) {
      const bucket = this.#buckets.get(band);
      if (bucket === undefined) this.#buckets.set(band, [number]);
      else bucket.push(number);
    }
  }
}

function bandsOf(shingles: ReadonlySet<string>): string[] {
  const signature = minHash(shingles);
  return Array.from(
    { length: BANDS.count },
    (_, band) => `${band} ${signature.subarray(band * BANDS.rows, (band + 1) * BANDS.rows).join()}`,
  );
}

/** Side of the grey picture that a perceptual hash is of. */
export const HASH_SIDE = 32;
const LOW_FREQUENCIES = 8;
/** Below this deviation of its grey values (of 255) a picture is one colour, and its hash is noise. */
const MIN_DEVIATION = 4;

/**
 * Perceptual hash of a grey picture [32, 32]: which of the 64 lowest frequencies are above their median, in rows from
 * the lowest on, the first in the highest bit. Undefined for a picture of one colour.
 * Source: `phash` of the Python package imagehash, which follows hackerfactor.com "Looks Like It".
 */
export function perceptualHash(grey: Uint8Array): bigint | undefined {
  const mean = grey.reduce((sum, value) => sum + value, 0) / grey.length;
  const variance = grey.reduce((sum, value) => sum + (value - mean) ** 2, 0) / grey.length;
  if (variance < MIN_DEVIATION ** 2) return undefined;
  const frequencies = lowFrequencies(grey);
  const sorted = Float64Array.from(frequencies).sort();
  const median = (sorted[31]! + sorted[32]!) / 2;
  return frequencies.reduce((hash, value) => (hash << 1n) | (value > median ? 1n : 0n), 0n);
}

/** Cosine transform (type II), rows and columns of the 8 lowest frequencies, [64]. */
function lowFrequencies(grey: Uint8Array): number[] {
  const out: number[] = [];
  for (let v = 0; v < LOW_FREQUENCIES; v++) {
    for (let u = 0; u < LOW_FREQUENCIES; u++) {
      let sum = 0;
      for (let y = 0; y < HASH_SIDE; y++) {
        for (let x = 0; x < HASH_SIDE; x++) {
          sum += grey[y * HASH_SIDE + x]! * COSINES[v]![y]! * COSINES[u]![x]!;
        }
      }
      out.push(sum);
    }
  }
  return out;
}

const COSINES = Array.from({ length: LOW_FREQUENCIES }, (_, k) =>
  Float64Array.from({ length: HASH_SIDE }, (_, n) =>
    Math.cos((Math.PI * k * (2 * n + 1)) / (2 * HASH_SIDE)),
  ),
);

/** Bits in which two hashes differ. */
export function hammingDistance(a: bigint, b: bigint): number {
  let numDifferent = 0;
  for (let rest = a ^ b; rest !== 0n; rest &= rest - 1n) numDifferent++;
  return numDifferent;
}

/** Finds among the hashes added so far those that differ from another one in few bits. */
export class HashIndex {
  readonly #maxDistance: number;
  readonly #numBands: number;
  readonly #buckets = new Map<string, number[]>();
  readonly #hashes: bigint[] = [];

  constructor(maxDistance: number) {
    this.#maxDistance = maxDistance;
    // Of one more bands than bits that differ, one is equal: no pair is missed.
    this.#numBands = maxDistance + 1;
  }

  /** Numbers of the hashes within the distance, ascending. */
  near(hash: bigint): number[] {
    const candidates = new Set(
      this.#bandsOf(hash).flatMap((band) => this.#buckets.get(band) ?? []),
    );
    return [...candidates]
      .filter((n) => hammingDistance(hash, this.#hashes[n]!) <= this.#maxDistance)
      .sort((a, b) => a - b);
  }

  /** The hash's number is how many were added before. */
  add(hash: bigint): void {
    const number = this.#hashes.push(hash) - 1;
    for (const band of this.#bandsOf(hash)) {
      const bucket = this.#buckets.get(band);
      if (bucket === undefined) this.#buckets.set(band, [number]);
      else bucket.push(number);
    }
  }

  #bandsOf(hash: bigint): string[] {
    return Array.from({ length: this.#numBands }, (_, band) => {
      const from = Math.floor((64 * band) / this.#numBands);
      const to = Math.floor((64 * (band + 1)) / this.#numBands);
      return `${band} ${BigInt.asUintN(to - from, hash >> BigInt(from))}`;
    });
  }
}
