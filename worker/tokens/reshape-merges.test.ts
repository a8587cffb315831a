import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as tf from '@tensorflow/tfjs-core';

import { openEngine } from '../backend/engine.ts';
import { concatenateTokens } from './concatenate-merge.ts';
import { gatherTokens } from './gather-tokens.ts';
import { poolSpace, poolTime } from './pool-merge.ts';
import { assertGradient, assertNear, drawTokens, toTensor, type Plain } from './test/plain.ts';

await openEngine({ engine: 'cpu', cacheDir: '' });

const mean = (tokens: readonly number[][]): number[] =>
  tokens[0]!.map((_, d) => tokens.reduce((sum, token) => sum + token[d]!, 0) / tokens.length);

/** Windows of a grid, place by place, in scalars. */
function plainPool(
  x: Plain,
  grid: [number, number, number],
  window: [number, number, number],
): Plain {
  const [T, H, W] = grid;
  const [t, h, w] = window;
  return x.map((row) => {
    const pooled: number[][] = [];
    for (let a = 0; a < T; a += t) {
      for (let b = 0; b < H; b += h) {
        for (let c = 0; c < W; c += w) {
          const members: number[][] = [];
          for (let i = 0; i < t; i++)
            for (let j = 0; j < h; j++)
              for (let k = 0; k < w; k++) members.push(row[(a + i) * H * W + (b + j) * W + c + k]!);
          pooled.push(mean(members));
        }
      }
    }
    return pooled;
  });
}

const GRID = { frames: 4, height: 2, width: 6 };

test('four neighbours become one token, in order', () => {
  const x = drawTokens(1, 2, 12, 3);
  const expected = x.map((row) => [0, 4, 8].map((i) => row.slice(i, i + 4).flat()));
  const merged = concatenateTokens(toTensor(x), 4);
  assert.deepEqual(merged.shape, [2, 3, 12]);
  assertNear(merged, expected, 0);
  assertGradient((given) => concatenateTokens(given, 3), toTensor(x));
});

test('groups that do not come out even are refused', () => {
  const refused = { code: 'TOKENS_NOT_DIVISIBLE', message: /10 is not a multiple of 4/ };
  assert.throws(() => concatenateTokens(tf.ones([1, 10, 2]), 4), refused);
  for (const group of [0, -1, 2.5]) {
    assert.throws(() => concatenateTokens(tf.ones([1, 10, 2]), group), {
      code: 'TOKENS_NOT_DIVISIBLE',
    });
  }
});

test('pooling gives the means of windows in space and in time', () => {
  const x = drawTokens(2, 2, 48, 3);
  for (const [height, width] of [
    [2, 2],
    [1, 3],
    [2, 6],
    [1, 1],
  ] as const) {
    const pooled = poolSpace(toTensor(x), GRID, { height, width });
    assert.deepEqual(pooled.shape, [2, 48 / (height * width), 3]);
    assertNear(pooled, plainPool(x, [4, 2, 6], [1, height, width]), 1e-6);
  }
  for (const numFrames of [1, 2, 4]) {
    const pooled = poolTime(toTensor(x), GRID, numFrames);
    assertNear(pooled, plainPool(x, [4, 2, 6], [numFrames, 1, 1]), 1e-6);
  }
});

test('gradients of pooling are those of finite differences', () => {
  const x = toTensor(drawTokens(3, 1, 48, 2));
  assertGradient((given) => poolSpace(given, GRID, { height: 2, width: 3 }), x);
  assertGradient((given) => poolTime(given, GRID, 2), x);
});

test('a grid that is not that of the tokens is refused', () => {
  const mismatch = { code: 'TOKENS_SHAPE_MISMATCH', message: /49 tokens.*48/ };
  assert.throws(() => poolTime(tf.ones([1, 49, 2]), GRID, 2), mismatch);
  const uneven = { code: 'TOKENS_NOT_DIVISIBLE' };
  assert.throws(() => poolTime(tf.ones([1, 48, 2]), GRID, 3), uneven);
  assert.throws(() => poolSpace(tf.ones([1, 48, 2]), GRID, { height: 2, width: 4 }), uneven);
});

test('tokens are gathered by index, and each gets its gradient back', () => {
  const x = drawTokens(4, 2, 6, 3);
  const places = [
    [0, 2, 5],
    [1, 1, 4],
  ];
  const indices = tf.tensor2d(places, undefined, 'int32');
  assertNear(
    gatherTokens(toTensor(x), indices),
    x.map((row, b) => places[b]!.map((i) => row[i]!)),
    0,
  );
  assertGradient((given) => gatherTokens(given, indices), toTensor(x));
});
