import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test, type TestContext } from 'node:test';

import { blockMask } from './block-mask.ts';
import { chooseSorted, maskRng, maskRows, shareOf, type SampleKey } from './mask-rng.ts';
import { keepPatches, numKept } from './patch-drop.ts';
import { tubeMask } from './tube-mask.ts';

const SEED = 20261124;
const keyOf = (sample: number, epoch = 0): SampleKey => ({ seed: SEED, epoch, sample });

function isAscending(values: Int32Array): boolean {
  return values.every((value, i) => i === 0 || values[i - 1]! < value);
}

/** An average of n values lies within five standard errors of the wanted one. */
function assertMean(
  t: TestContext,
  what: string,
  values: readonly number[],
  { mean, deviation, error = 0 }: { mean: number; deviation: number; error?: number },
): void {
  const average = values.reduce((a, b) => a + b, 0) / values.length;
  t.diagnostic(`seed ${SEED}: ${what} ${average.toFixed(3)}, wanted ${mean.toFixed(3)}`);
  assert.ok(Math.abs(average - mean) < 5 * (deviation / Math.sqrt(values.length) + error), what);
}

test('kept patches are exactly as many as said, ascending, and [CLS] is among them', () => {
  for (const [numTokens, ratio, numProtected, expected] of [
    [392, 0.5, 0, 196],
    [393, 0.5, 1, 197],
    [392, 0.75, 0, 98],
    [10, 0.9, 0, 1],
    [5, 0.99, 2, 3],
    [7, 0, 0, 7],
  ] as const) {
    const options = { ratio, numProtected };
    assert.equal(numKept(numTokens, options), expected);
    for (let sample = 0; sample < 20; sample++) {
      const kept = keepPatches(numTokens, options, maskRng(keyOf(sample), 'drop'));
      assert.equal(kept.length, expected);
      assert.ok(isAscending(kept) && kept.at(-1)! < numTokens);
      for (let i = 0; i < numProtected; i++) assert.equal(kept[i], i);
    }
  }
  assert.throws(() => numKept(392, { ratio: 1 }), { code: 'TOKENS_BAD_SETTING' });
  assert.throws(() => numKept(1, { ratio: 0.5, numProtected: 1 }), { code: 'TOKENS_BAD_SETTING' });
});

test('every patch, and every pair of patches, is kept equally often', (t) => {
  const [numPatches, draws] = [12, 20_000];
  const pairs = new Int32Array(numPatches * numPatches);
  for (let sample = 0; sample < draws; sample++) {
    const kept = keepPatches(numPatches, { ratio: 0.25 }, maskRng(keyOf(sample), 'drop'));
    for (const a of kept) for (const b of kept) pairs[a * numPatches + b]!++;
  }
  let worst = 0;
  for (const [i, count] of pairs.entries()) {
    const isPatch = i % (numPatches + 1) === 0;
    const p = isPatch ? 9 / 12 : (9 * 8) / (12 * 11);
    worst = Math.max(worst, Math.abs(count / draws - p) / Math.sqrt((p * (1 - p)) / draws));
  }
  t.diagnostic(`seed ${SEED}: the worst of 144 is ${worst.toFixed(2)} standard deviations off`);
  assert.ok(worst < 4.5);
});

test('drawing what is kept or what is not gives what it says, to the ends', () => {
  for (let length = 0; length <= 9; length++) {
    for (let count = 0; count <= length; count++) {
      const chosen = chooseSorted(length, count, maskRng(keyOf(count), 'ends'));
      assert.equal(chosen.length, count);
      assert.ok(isAscending(chosen) && chosen.every((i) => i >= 0 && i < length));
    }
  }
  assert.equal(shareOf(100, 0.29), 29);
  assert.equal(shareOf(196, 0.9), 176);
});

test('a tube hides the same places in every frame, exactly as many as the ratio says', () => {
  const grid = { frames: 8, height: 14, width: 14 };
  for (const [ratio, expected] of [
    [0.75, 147],
    [0.9, 176],
    [0, 0],
  ] as const) {
    const { kept, masked } = tubeMask(grid, ratio, maskRng(keyOf(3), 'tube'));
    assert.equal(masked.length, 8 * expected);
    assert.deepEqual(
      [...kept, ...masked].sort((a, b) => a - b),
      [...new Array(1568).keys()],
    );
    assert.ok(isAscending(kept) && isAscending(masked));
    const places = (t: number): number[] =>
      [...masked].filter((i) => Math.floor(i / 196) === t).map((i) => i % 196);
    for (let t = 1; t < 8; t++) assert.deepEqual(places(t), places(0));
  }
});

test('blocks are distributed as those of BEiT', (t) => {
  // Averages over 20,000 masks of its own generator; `fixtures/token_reference.py` made them.
  const { blocks } = JSON.parse(
    readFileSync(path.join(import.meta.dirname, 'fixtures/token-reference.json'), 'utf8'),
  ) as {
    blocks: {
      height: number;
      width: number;
      numMasked: number;
      leastBlock: number;
      draws: number;
      meanCount: number;
      stdCount: number;
      shareFull: number;
      meanPairs: number;
      stdPairs: number;
      rows: number[];
    };
  };
  const { numMasked, leastBlock } = blocks;
  const draws = 4000;
  const [counts, pairs, rows] = [[] as number[], [] as number[], new Float64Array(14)];
  for (let sample = 0; sample < draws; sample++) {
    const options = { numMasked, leastBlock, isExact: false };
    const { masked } = blockMask(blocks, options, maskRng(keyOf(sample), 'blocks'));
    const isMasked = new Set(masked);
    assert.ok(masked.length <= numMasked);
    counts.push(masked.length);
    pairs.push([...masked].filter((i) => i % 14 > 0 && isMasked.has(i - 1)).length);
    for (const i of masked) rows[Math.floor(i / 14)]! += 1 / draws;
  }
  const error = (deviation: number): number => deviation / Math.sqrt(blocks.draws);
  const { stdCount, stdPairs, shareFull } = blocks;
  const ofFull = Math.sqrt(shareFull * (1 - shareFull));
  const full = counts.map((count) => (count === numMasked ? 1 : 0));
  assertMean(t, 'masked', counts, {
    mean: blocks.meanCount,
    deviation: stdCount,
    error: error(stdCount),
  });
  assertMean(t, 'neighbours', pairs, {
    mean: blocks.meanPairs,
    deviation: stdPairs,
    error: error(stdPairs),
  });
  assertMean(t, 'share of full ones', full, {
    mean: shareFull,
    deviation: ofFull,
    error: error(ofFull),
  });
  for (const [row, share] of rows.entries()) {
    // A row has 0 to 14: a deviation of at most 7, about 4.
    assert.ok(
      Math.abs(share - blocks.rows[row]!) < 5 * 5 * Math.sqrt(1 / draws + 1 / blocks.draws),
    );
  }
});

test('exact block masks hide as many patches as asked, each once', () => {
  for (let sample = 0; sample < 300; sample++) {
    const numMasked = sample % 197;
    const { kept, masked } = blockMask(
      { height: 14, width: 14 },
      { numMasked, isExact: true },
      maskRng(keyOf(sample), 'blocks'),
    );
    assert.equal(masked.length, numMasked);
    assert.deepEqual(
      [...kept, ...masked].sort((a, b) => a - b),
      [...new Array(196).keys()],
    );
  }
  // Too small for any block.
  const small = { height: 2, width: 2 };
  assert.equal(
    blockMask(small, { numMasked: 3, isExact: true }, maskRng(keyOf(1), 'b')).masked.length,
    3,
  );
  assert.throws(() => blockMask(small, { numMasked: 5, isExact: true }, maskRng(keyOf(1), 'b')), {
    code: 'TOKENS_BAD_SETTING',
  });
});

test("a sample's mask depends on seed, epoch, sample and purpose, and not on who draws it or when", () => {
  const keys = Array.from({ length: 12 }, (_, sample) => keyOf(sample));
  const draw = (rng: ReturnType<typeof maskRng>): Int32Array =>
    tubeMask({ frames: 2, height: 4, width: 4 }, 0.75, rng).kept;
  const whole = maskRows(keys, 'tube', draw);
  assert.deepEqual(whole.shape, [12, 8]);
  const rowOf = (sample: number): Int32Array => whole.data.slice(8 * sample, 8 * sample + 8);
  // Three workers, each with its share, in another order.
  for (const worker of [0, 1, 2]) {
    const own = keys.filter(({ sample }) => sample % 3 === worker).reverse();
    const { data } = maskRows(own, 'tube', draw);
    for (const [i, { sample }] of own.entries()) {
      assert.deepEqual(data.slice(8 * i, 8 * i + 8), rowOf(sample));
    }
  }
  const others = [{ ...keyOf(5), epoch: 1 }, { ...keyOf(5), seed: 1 }, keyOf(6)];
  for (const key of others) assert.notDeepEqual(draw(maskRng(key, 'tube')), rowOf(5));
  assert.notDeepEqual(draw(maskRng(keyOf(5), 'other')), rowOf(5));
});
