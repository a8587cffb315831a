/**
 * Which sample stands at which place of a run: a pure function of (seed, position), so that nobody has to remember
 * what was handed out. An epoch is one keyed permutation of the training split, computed place by place in O(1) memory.
 */

import { openRng, philox4x32 } from './random.ts';

/** What fixes the order of all samples of a run. */
export interface SampleOrder {
  readonly seed: number;
  /** Rows of the training split, at least 1. */
  readonly numSamples: number;
  /** Number of the part of the split that is ordered on its own; the first, or the only one, is 0. */
  readonly pool?: number;
}

/** One place in the order. */
export interface PlacedSample {
  /** Row of the training split, [0, numSamples). */
  readonly sample: number;
  /** Passes over the data completed before this place. */
  readonly epoch: number;
}

/** Shape of a step: `microbatches` times `microbatchSize` samples. */
export interface BatchShape {
  readonly microbatches: number;
  readonly microbatchSize: number;
}

// Four rounds on each half: twice what makes a Feistel network a strong pseudo-random permutation.
// Source: Luby & Rackoff 1988, "How to Construct Pseudorandom Permutations from Pseudorandom Functions".
const ROUNDS = 8;

/** Position of sample `index` of a microbatch in the run, counted from 0; steps count from 1. */
export function positionOf(
  { microbatches, microbatchSize }: BatchShape,
  step: number,
  microbatch: number,
  index: number,
): number {
  return ((step - 1) * microbatches + microbatch) * microbatchSize + index;
}

/** The sample at `position` of the run, counted from 0. */
export function sampleAt(order: SampleOrder, position: number): PlacedSample {
  const epoch = Math.floor(position / order.numSamples);
  return { sample: permutedIndex(order, epoch, position % order.numSamples), epoch };
}

/**
 * `count` samples to take, in this order, in place of the one at `position` should it not decode. They are distinct
 * and differ from it while the split has that many samples; a smaller split repeats.
 */
export function substitutesAt(order: SampleOrder, position: number, count: number): number[] {
  const { sample, epoch } = sampleAt(order, position);
  const rng = openRng(order.seed, 'substitute', epoch, position, ...poolKey(order));
  const taken = new Set([sample]);
  const substitutes: number[] = [];
  while (substitutes.length < count) {
    if (taken.size >= order.numSamples) taken.clear();
    const candidate = rng.integer(order.numSamples);
    if (taken.has(candidate)) continue;
    taken.add(candidate);
    substitutes.push(candidate);
  }
  return substitutes;
}

/**
 * Image of `index` under the permutation of [0, numSamples) that (seed, epoch) keys: a Feistel network on pairs
 * (left, right) of a grid a little larger than the split; an image outside of the split is permuted again until it
 * falls inside. Source: Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains", methods 2 and 3.
 */
function permutedIndex(order: SampleOrder, epoch: number, index: number): number {
  const { seed, numSamples } = order;
  const rng = openRng(seed, 'sample-order', epoch, ...poolKey(order));
  const key: [number, number] = [rng.uint32(), rng.uint32()];
  const width = Math.ceil(Math.sqrt(numSamples));
  const height = Math.ceil(numSamples / width);
  let image = index;
  do {
    let [left, right] = [image % width, Math.floor(image / width)];
    for (let round = 0; round < ROUNDS; round += 2) {
      left = (left + philox4x32([right, round, 0, 0], key)[0]) % width;
      right = (right + philox4x32([left, round + 1, 0, 0], key)[0]) % height;
    }
    image = right * width + left;
  } while (image >= numSamples);
  return image;
}

/** Pools of equal size have orders of their own; a split of one pool has the order it always had. */
function poolKey({ pool = 0 }: SampleOrder): number[] {
  return pool === 0 ? [] : [pool];
}
