import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { positionOf, sampleAt, substitutesAt } from './sample-order.ts';

const KNOWN = {
  ten: [7, 9, 4, 8, 2, 0, 1, 6, 5, 3],
  other: [8, 6, 9, 0, 1, 3, 5, 2, 4, 7],
  large: 227281,
  huge: 3250080237,
  substitutes: [156, 933, 65, 142],
};

function epochOf(seed: number, numSamples: number, epoch: number): number[] {
  return Array.from({ length: numSamples }, (_, i) => {
    const placed = sampleAt({ seed, numSamples }, epoch * numSamples + i);
    assert.equal(placed.epoch, epoch);
    return placed.sample;
  });
}

describe('the sample order', () => {
  it('uses every sample once in each epoch, for splits of any size', () => {
    for (const numSamples of [...Array(70).keys()]
      .map((n) => n + 1)
      .concat([255, 256, 257, 1000, 4099])) {
      for (const epoch of [0, 1, 9]) {
        const sorted = epochOf(42, numSamples, epoch).sort((a, b) => a - b);
        assert.deepEqual(
          sorted,
          [...Array(numSamples).keys()],
          `${numSamples} samples, epoch ${epoch}`,
        );
      }
    }
  });

  it('differs from epoch to epoch and from seed to seed', () => {
    const orders = [
      epochOf(1, 100, 0),
      epochOf(1, 100, 1),
      epochOf(2, 100, 0),
      epochOf(1 + 2 ** 40, 100, 0),
    ];
    for (const [i, a] of orders.entries()) {
      for (const b of orders.slice(0, i)) {
        const numEqual = a.filter((sample, place) => sample === b[place]).length;
        assert.ok(
          numEqual < 10,
          `${numEqual} of 100 places agree; 1 is expected of independent orders`,
        );
      }
    }
  });

  it('puts every sample at every place about equally often', () => {
    // Chi-square over the (place, sample) table of 4000 epochs of 7 samples: 36 degrees of freedom, mean 36,
    // standard deviation sqrt(72) = 8.5; seven deviations away is no accident.
    const [numSamples, numEpochs] = [7, 4000];
    const counts = new Array<number>(numSamples * numSamples).fill(0);
    for (let epoch = 0; epoch < numEpochs; epoch++) {
      for (const [place, sample] of epochOf(3, numSamples, epoch).entries())
        counts[place * numSamples + sample]!++;
    }
    const expected = numEpochs / numSamples;
    const chiSquare = counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
    assert.ok(chiSquare < 36 + 7 * 8.5, `chi-square ${chiSquare}`);
  });

  it('does not leave neighbours together', () => {
    // Of independent places, the next sample follows its predecessor at 1 of 1000 places.
    const order = epochOf(5, 1000, 0);
    const numAdjacent = order.filter(
      (sample, i) => Math.abs(sample - (order[i + 1] ?? -9)) === 1,
    ).length;
    assert.ok(numAdjacent < 12, `${numAdjacent} neighbours kept`);
  });

  it('stays what it is: these answers are part of every run ever made', () => {
    assert.deepEqual(epochOf(0, 10, 0), KNOWN.ten);
    assert.deepEqual(epochOf(123456789, 10, 3), KNOWN.other);
    assert.equal(sampleAt({ seed: 7, numSamples: 1_000_003 }, 5_000_000).sample, KNOWN.large);
    assert.equal(sampleAt({ seed: 7, numSamples: 4_000_000_007 }, 2 ** 45).sample, KNOWN.huge);
    assert.deepEqual(substitutesAt({ seed: 7, numSamples: 1000 }, 12, 4), KNOWN.substitutes);
  });

  it('draws substitutes that are distinct and not the sample itself, where there are so many', () => {
    for (let position = 0; position < 300; position++) {
      const order = { seed: 1, numSamples: 6 };
      const { sample } = sampleAt(order, position);
      const substitutes = substitutesAt(order, position, 5);
      assert.equal(new Set([sample, ...substitutes]).size, 6);
    }
    assert.deepEqual(substitutesAt({ seed: 1, numSamples: 1 }, 4, 2), [0, 0]);
  });

  it('numbers places by step, microbatch and index without gap', () => {
    const shape = { microbatches: 4, microbatchSize: 3 };
    const places: number[] = [];
    for (let step = 1; step <= 3; step++) {
      for (let microbatch = 0; microbatch < 4; microbatch++) {
        for (let i = 0; i < 3; i++) places.push(positionOf(shape, step, microbatch, i));
      }
    }
    assert.deepEqual(places, [...Array(36).keys()]);
  });
});
