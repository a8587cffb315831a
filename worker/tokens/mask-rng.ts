import assert from 'node:assert/strict';

import { openRng, type Rng } from '../../proto/random.ts';

/** What a sample's mask depends on. The number is that of the sample in its split, whoever reads it and when. */
export interface SampleKey {
  readonly seed: number;
  readonly epoch: number;
  readonly sample: number;
}

/** The random stream of one sample for one operator; `purpose` tells operators of a run apart. */
export function maskRng({ seed, epoch, sample }: SampleKey, purpose: string): Rng {
  return openRng(seed, `mask/${purpose}`, epoch, sample);
}

/** Indices of equally many tokens of each sample, one row after another, to upload as [B, K]. */
export interface IndexRows {
  readonly data: Int32Array;
  readonly shape: readonly [batch: number, count: number];
}

/** A mask for each sample of a microbatch: each row depends on its own key alone. */
export function maskRows(
  keys: readonly SampleKey[],
  purpose: string,
  draw: (rng: Rng) => Int32Array,
): IndexRows {
  const rows = keys.map((key) => draw(maskRng(key, purpose)));
  const count = rows[0]?.length ?? 0;
  const data = new Int32Array(rows.length * count);
  for (const [i, row] of rows.entries()) {
    assert.equal(row.length, count, `the masks of ${purpose} differ in length`);
    data.set(row, i * count);
  }
  return { data, shape: [rows.length, count] };
}

/** `count` different ones of 0, ..., length - 1, ascending. */
export function chooseSorted(length: number, count: number, rng: Rng): Int32Array {
  // The smaller part is drawn, by Fisher-Yates; a sweep then reads off what was wanted in order.
  const drawsKept = count <= length / 2;
  const numDrawn = drawsKept ? count : length - count;
  const pool = Int32Array.from({ length }, (_, i) => i);
  const isDrawn = new Uint8Array(length);
  for (let i = 0; i < numDrawn; i++) {
    const j = i + rng.integer(length - i);
    isDrawn[pool[j]!] = 1;
    pool[j] = pool[i]!;
  }
  return placesOf(isDrawn, drawsKept ? 1 : 0);
}

/** Places of `value`, ascending. */
export function placesOf(flags: Uint8Array, value: 0 | 1): Int32Array {
  const places = new Int32Array(flags.reduce((sum, flag) => sum + (flag === value ? 1 : 0), 0));
  let next = 0;
  for (const [i, flag] of flags.entries()) if (flag === value) places[next++] = i;
  return places;
}

/** `floor(ratio * total)`, whatever the last bit of the product: 0.29 of 100 is 29. */
export function shareOf(total: number, ratio: number): number {
  return Math.floor(ratio * total + 1e-6);
}
