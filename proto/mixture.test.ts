import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { openDraws } from './mixture.ts';
import { openRng } from './random.ts';

/** Checks every prefix of `length` draws; gives the farthest that a part was ever away from its share. */
function farthest(weights: readonly number[], length: number): number {
  const draws = openDraws(weights);
  const total = weights.reduce((a, b) => a + b);
  const drawn = weights.map(() => 0);
  let most = 0;
  for (let n = 0; n < length; n++) {
    const { part, before } = draws.at(n);
    assert.equal(before, drawn[part], `draw ${n}`);
    drawn[part]!++;
    for (const [k, weight] of weights.entries())
      most = Math.max(most, Math.abs(drawn[k]! - ((n + 1) * weight) / total));
  }
  return most;
}

describe('draws in proportion', () => {
  it('are never a whole draw away from it', () => {
    const rng = openRng(1, 'weights');
    for (let trial = 0; trial < 60; trial++) {
      const weights = Array.from({ length: 1 + rng.integer(12) }, () => 1 + rng.integer(500));
      const limit = weights.length < 2 ? 0 : 1 - 1 / (2 * weights.length - 2);
      assert.ok(farthest(weights, 3000) <= limit + 1e-9, weights.join(' '));
    }
    // Webster's method is 4.5 draws off here after 50.
    assert.ok(farthest([90, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 500) < 1);
  });

  it('take weights as people write them', () => {
    assert.ok(farthest([0.45, 0.45, 0.1], 5000) < 1);
    assert.ok(farthest([1 / 3, 2 / 3], 5000) < 1);
    const draws = openDraws([0.45, 0.45, 0.1]);
    // Nine, nine and two in lowest terms.
    const round = Array.from({ length: 20 }, (_, n) => draws.at(n).part);
    assert.equal(round.filter((part) => part === 2).length, 2);
    const later = Array.from({ length: 20 }, (_, n) => draws.at(20 * 12345 + n).part);
    assert.deepEqual(later, round);
  });

  it('reach a part of one sample among billions', () => {
    const draws = openDraws([4e9, 1]);
    const rare = Array.from({ length: 1_000_000 }, (_, n) => draws.at(n)).filter(
      ({ part }) => part === 1,
    );
    assert.equal(rare.length, 1);
    assert.deepEqual(openDraws([7]).at(12), { part: 0, before: 12 });
  });
});
