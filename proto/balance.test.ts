import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { arrangeEvenly, balanceWindow, loadsOf, type WindowShape } from './balance.ts';
import { openRng } from './random.ts';

function lognormal(seed: number, count: number): Float64Array {
  const rng = openRng(seed, 'lognormal costs');
  return Float64Array.from({ length: count }, () => Math.exp(rng.normal()));
}

const numSamples = ({ steps, microbatches, microbatchSize }: WindowShape): number =>
  steps * microbatches * microbatchSize;

function slowestOverMean(loads: readonly number[]): number {
  return (Math.max(...loads) * loads.length) / loads.reduce((a, b) => a + b);
}

/** Loads of the microbatches of each step, with the samples as they come. */
function naiveLoads(
  costs: Float64Array,
  { steps, microbatches, microbatchSize }: WindowShape,
): number[][] {
  return Array.from({ length: steps }, (_, step) =>
    Array.from({ length: microbatches }, (_, m) => {
      const first = (step * microbatches + m) * microbatchSize;
      return costs.subarray(first, first + microbatchSize).reduce((a, b) => a + b);
    }),
  );
}

describe('balanced windows', () => {
  it('use every sample once, in microbatches of equal size', () => {
    for (let seed = 0; seed < 60; seed++) {
      const rng = openRng(seed, 'shapes');
      const shape = {
        steps: 1 + rng.integer(8),
        microbatches: 2 ** rng.integer(5),
        microbatchSize: 1 + rng.integer(6),
      };
      // Some are giants, many are equal, some cost nothing.
      const costs = Float64Array.from({ length: numSamples(shape) }, () =>
        Math.floor(Math.exp(2 * rng.normal())),
      );
      const grouping = balanceWindow(costs, shape, rng);
      assert.equal(grouping.length, shape.steps);
      for (const step of grouping) {
        assert.equal(step.length, shape.microbatches);
        assert.ok(step.every(({ length }) => length === shape.microbatchSize));
      }
      const used = grouping.flat(2).sort((a, b) => a - b);
      assert.deepEqual(used, [...costs.keys()]);
    }
  });

  // The ratio of the naive order says how much there is to mend.
  const shapes: [WindowShape, naive: number][] = [
    [{ steps: 16, microbatches: 4, microbatchSize: 16 }, 1.25],
    [{ steps: 16, microbatches: 8, microbatchSize: 8 }, 1.6],
    [{ steps: 16, microbatches: 8, microbatchSize: 32 }, 1.25],
    [{ steps: 16, microbatches: 16, microbatchSize: 8 }, 1.8],
    [{ steps: 16, microbatches: 16, microbatchSize: 32 }, 1.35],
    [{ steps: 16, microbatches: 32, microbatchSize: 16 }, 1.7],
  ];
  for (const [shape, naive] of shapes) {
    const { microbatches, microbatchSize } = shape;
    it(`of ${microbatches} x ${microbatchSize} lognormal costs have hardly a microbatch 10 % above the mean`, () => {
      const [before, after]: [number[], number[]] = [[], []];
      for (let seed = 0; seed < 4; seed++) {
        const costs = lognormal(seed, numSamples(shape));
        before.push(...naiveLoads(costs, shape).map(slowestOverMean));
        const grouping = balanceWindow(costs, shape, openRng(seed, 'steps'));
        after.push(...grouping.map((step) => slowestOverMean(loadsOf(step, costs))));
      }
      assert.ok(before.reduce((a, b) => a + b) / before.length > naive);
      // One of the 33,000 samples here costs 66, five times a microbatch: its step, of 64, is 10.5 % off.
      assert.ok(after.filter((ratio) => ratio >= 1.1).length <= 1);
      assert.ok(Math.max(...after) < 1.11, `${Math.max(...after)}`);
    });
  }

  it('of microbatches so small that one giant is too much still wait far less than without', () => {
    for (const [microbatches, microbatchSize, part] of [
      [16, 4, 0.45],
      [32, 2, 0.4],
      [64, 1, 0.35],
    ] as const) {
      const shape = { steps: 16, microbatches, microbatchSize };
      const costs = lognormal(microbatches, numSamples(shape));
      const total = (steps: readonly (readonly number[])[]): number =>
        steps.reduce((sum, loads) => sum + Math.max(...loads), 0);
      const grouping = balanceWindow(costs, shape, openRng(0, 'steps'));
      const balanced = total(grouping.map((step) => loadsOf(step, costs)));
      assert.ok(balanced < part * total(naiveLoads(costs, shape)), `${microbatches}`);
    }
  });

  it('come near the best there is, found by trying everything', () => {
    const shape = { steps: 1, microbatches: 2, microbatchSize: 4 };
    for (let seed = 0; seed < 40; seed++) {
      const costs = lognormal(seed, 8);
      let best = Infinity;
      for (let choice = 0; choice < 256; choice++) {
        const chosen = [...costs].filter((_, i) => (choice >> i) % 2 === 1);
        if (chosen.length !== 4) continue;
        const load = chosen.reduce((a, b) => a + b);
        best = Math.min(best, Math.max(load, costs.reduce((a, b) => a + b) - load));
      }
      const [step] = balanceWindow(costs, shape, openRng(0, 'steps'));
      const slowest = Math.max(...loadsOf(step!, costs));
      // Graham's bound of longest-first for two machines.
      assert.ok(slowest <= (7 / 6) * best, `${slowest} beside ${best}`);
    }
  });

  it('leave samples of equal cost where they are', () => {
    const shape = { steps: 2, microbatches: 4, microbatchSize: 3 };
    const grouping = balanceWindow(new Float64Array(24).fill(0.1), shape, openRng(1, 'steps'));
    assert.deepEqual(grouping.flat(2), [...Array(24).keys()]);
  });

  it('leave samples in their step where that is enough', () => {
    const shape = { steps: 4, microbatches: 4, microbatchSize: 64 };
    const costs = lognormal(1, numSamples(shape));
    for (const [step, microbatches] of balanceWindow(costs, shape, openRng(1, 'steps')).entries())
      for (const index of microbatches.flat()) assert.equal(Math.floor(index / 256), step);
  });

  it('are the same again', () => {
    const shape = { steps: 8, microbatches: 8, microbatchSize: 4 };
    const costs = lognormal(9, numSamples(shape));
    const again = (): unknown => balanceWindow(costs, shape, openRng(4, 'steps'));
    assert.deepEqual(again(), again());
  });
});

describe('an even arrangement', () => {
  it('gives contiguous parts about the same, however many', () => {
    const numMicrobatches = 64;
    for (let seed = 0; seed < 20; seed++) {
      const rng = openRng(seed, 'loads');
      const loads = Array.from({ length: numMicrobatches }, () => 1 + rng.uniform());
      const order = arrangeEvenly(loads);
      assert.deepEqual(
        [...order].sort((a, b) => a - b),
        [...loads.keys()],
      );
      const mean = loads.reduce((a, b) => a + b) / numMicrobatches;
      for (let workers = 1; workers <= 16; workers++) {
        for (let rank = 0; rank < workers; rank++) {
          const [first, end] = [rank, rank + 1].map((r) =>
            Math.floor((r * numMicrobatches) / workers),
          ) as [number, number];
          const share = order.slice(first, end).reduce((sum, m) => sum + loads[m]!, 0);
          const ratio = share / (mean * (end - first));
          assert.ok(ratio < 1.1, `${workers} workers, rank ${rank}: ${ratio}`);
        }
      }
    }
  });

  it('keeps equal loads in order', () => {
    assert.deepEqual(arrangeEvenly([0.3, 0.3, 0.3, 0.3]), [0, 1, 2, 3]);
  });
});
