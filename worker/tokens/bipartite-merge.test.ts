import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

import * as tf from '@tensorflow/tfjs-core';

import { openEngine } from '../backend/engine.ts';
import { openInitializer } from '../initializer.ts';
import { initBlock, transformerBlock } from '../layers/transformer-block.ts';
import { selfAttention } from '../layers/attention.ts';
import { mergingBlock, mergingBlocks } from '../layers/merging-blocks.ts';
import {
  composeMaps,
  matchTokens,
  mergeSchedule,
  mergeTokens,
  proportionalBias,
  unmergeTokens,
  type SizedTokens,
  type TokenMap,
} from './bipartite-merge.ts';
import { assertGradient, assertNear, drawTokens, toTensor, type Plain } from './test/plain.ts';

await openEngine({ engine: 'cpu', cacheDir: '' });

interface Values {
  readonly shape: readonly number[];
  readonly data: readonly number[];
}

/** What the authors' code computes; `fixtures/token_reference.py` made it. */
const { merging: REFERENCE } = JSON.parse(
  readFileSync(path.join(import.meta.dirname, 'fixtures/token-reference.json'), 'utf8'),
) as {
  merging: {
    protected: number;
    merges: number[];
    x: Values;
    metrics: Values[];
    numMerged: number;
    merged: Values;
    /** The merged token of each first one. */
    source: number[][];
    /** Content and size of that merged token. */
    tokens: Values;
    sizes: Values;
    unmerged: Values | null;
    weights: Values;
    gradX: Values;
  }[];
};

const tensor = ({ data, shape }: Values): tf.Tensor => tf.tensor([...data], [...shape], 'float32');

for (const [index, reference] of REFERENCE.entries()) {
  const { protected: numProtected, merges, metrics, source } = reference;
  test(`merging ${merges.join(', then ')} with ${numProtected} protected gives what the authors' code gives (${index})`, () => {
    let map: TokenMap | undefined;
    const merged = (x: tf.Tensor): tf.Tensor => {
      let state: SizedTokens = { tokens: x, sizes: undefined };
      map = undefined;
      for (const [layer, numMerges] of merges.entries()) {
        const next = matchTokens(tensor(metrics[layer]!), { numMerges, numProtected });
        state = mergeTokens(next, state);
        map = map === undefined ? next : composeMaps(map, next);
      }
      assert.equal(state.tokens.shape[1], reference.numMerged);
      assertNear(unmergeTokens(map!, state.sizes!), reference.sizes.data);
      return state.tokens;
    };
    const x = tensor(reference.x);
    const tokens = merged(x);
    assertNear(unmergeTokens(map!, tokens), reference.tokens.data);
    if (reference.unmerged !== null) {
      assertNear(unmergeTokens(map!, tokens), reference.unmerged.data);
    }
    // Where a [CLS] is protected the order of the merged tokens is the same too.
    if (numProtected > 0) assertNear(tokens, reference.merged.data);

    // Their weights, put to the merged tokens of ours that have the same members.
    const target = map!.target.arraySync() as number[][];
    const place = target.map((row, b) => {
      const theirs = new Array<number>(reference.numMerged).fill(-1);
      for (const [n, ours] of row.entries()) {
        if (theirs[ours] !== -1) assert.equal(theirs[ours], source[b]![n]);
        theirs[ours] = source[b]![n]!;
      }
      assert.deepEqual(new Set(theirs), new Set(theirs.keys()));
      return theirs;
    });
    const weights = tf.gather(
      tensor(reference.weights),
      tf.tensor2d(place, undefined, 'int32'),
      1,
      1,
    );
    const gradient = tf.grad((given) => tf.sum(tf.mul(merged(given), weights)))(x);
    assertNear(gradient, reference.gradX.data);
  });
}

/** ToMe in scalars, from the paper's text: one sequence of tokens, with sizes. */
function plainMerge(
  metric: number[][],
  tokens: number[][],
  sizes: number[],
  { numMerges, numProtected }: { numMerges: number; numProtected: number },
): { tokens: number[][]; sizes: number[]; members: number[][] } {
  const cosine = (a: number[], b: number[]): number => {
    const dot = (u: number[], v: number[]): number =>
      u.reduce((sum, value, i) => sum + value * v[i]!, 0);
    return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  };
  const free = [...metric.keys()].slice(numProtected);
  const [even, odd] = [free.filter((i) => i % 2 === 0), free.filter((i) => i % 2 === 1)];
  const edges = even.map((from) => {
    let best = { from, to: -1, similarity: -Infinity };
    for (const to of odd) {
      const similarity = cosine(metric[from]!, metric[to]!);
      if (similarity > best.similarity) best = { from, to, similarity };
    }
    return best;
  });
  const r = Math.min(numMerges, Math.floor(free.length / 2));
  const merged = edges.toSorted((a, b) => b.similarity - a.similarity).slice(0, r);
  const gone = new Set(merged.map(({ from }) => from));
  const order = [
    ...[...metric.keys()].slice(0, numProtected),
    ...even.filter((i) => !gone.has(i)),
    ...odd,
  ];
  const members = order.map((i) => [
    i,
    ...merged.filter(({ to }) => to === i).map(({ from }) => from),
  ]);
  const sumOf = (group: number[], value: (i: number) => number): number =>
    group.reduce((sum, i) => sum + value(i), 0);
  return {
    members,
    sizes: members.map((group) => sumOf(group, (i) => sizes[i]!)),
    tokens: members.map((group) =>
      tokens[0]!.map(
        (_, d) => sumOf(group, (i) => tokens[i]![d]! * sizes[i]!) / sumOf(group, (i) => sizes[i]!),
      ),
    ),
  };
}

test('merging gives what the formula in scalars gives, whatever the number of tokens', () => {
  for (const numTokens of [2, 3, 5, 8, 11, 20]) {
    for (const numProtected of [0, 1, 2, 3].filter((p) => p < numTokens)) {
      for (const numMerges of [1, 2, 4, 50]) {
        const seed = numTokens * 100 + numProtected * 10 + numMerges;
        const [metric, tokens] = [
          drawTokens(seed, 2, numTokens, 5),
          drawTokens(seed + 7, 2, numTokens, 3),
        ];
        const sizes = drawTokens(seed + 9, 2, numTokens, 1).map((row) =>
          row.map(([s]) => 1 + Math.round(s! ** 2)),
        );
        const options = { numMerges, numProtected };
        const map = matchTokens(toTensor(metric), options);
        const merged = mergeTokens(map, {
          tokens: toTensor(tokens),
          sizes: toTensor(sizes.map((row) => row.map((s) => [s]))),
        });
        const expected = metric.map((m, b) => plainMerge(m, tokens[b]!, sizes[b]!, options));
        assertNear(
          merged.tokens,
          expected.map((row) => row.tokens),
        );
        if (map.numMerged < numTokens)
          assertNear(
            merged.sizes!,
            expected.map((row) => row.sizes.map((s) => [s])),
          );
        for (const [b, row] of (map.target.arraySync() as number[][]).entries()) {
          for (const [m, group] of expected[b]!.members.entries()) {
            for (const n of group) assert.equal(row[n], m);
          }
        }
      }
    }
  }
});

test('sizes add up to the number of tokens, and the weighted sum of the tokens stays', () => {
  const x = toTensor(drawTokens(4, 2, 30, 8));
  let state: SizedTokens = { tokens: x, sizes: undefined };
  for (const [layer, numMerges] of [9, 6, 7].entries()) {
    const metric = toTensor(drawTokens(50 + layer, 2, state.tokens.shape[1]!, 4));
    state = mergeTokens(matchTokens(metric, { numMerges, numProtected: 1 }), state);
  }
  assert.equal(state.tokens.shape[1], 8);
  assertNear(tf.sum(state.sizes!, [1, 2]), [30, 30]);
  const weighted = tf.sum(tf.mul(state.tokens, state.sizes!), 1);
  assertNear(weighted, [...tf.sum(x, 1).dataSync()], 1e-6 * 30);
});

test('tokens of equal similarity merge from the front, and into the first', () => {
  const same = tf.ones([1, 8, 3]);
  const { target } = matchTokens(same, { numMerges: 2 });
  // 0 and 2 merge into 1; 4 and 6 stay first.
  assert.deepEqual(target.arraySync(), [[2, 2, 2, 3, 0, 4, 1, 5]]);
});

test('tokens that are there twice merge before others', () => {
  const metric = drawTokens(8, 1, 12, 6);
  metric[0]![7] = metric[0]![4]!;
  metric[0]![1] = metric[0]![10]!;
  const [target] = matchTokens(toTensor(metric), { numMerges: 2 }).target.arraySync() as number[][];
  assert.equal(target![7], target![4]);
  assert.equal(target![1], target![10]);
});

test('a metric of zeros merges something, and makes no NaN', () => {
  const map = matchTokens(tf.zeros([1, 6, 4]), { numMerges: 2 });
  const { tokens } = mergeTokens(map, { tokens: tf.ones([1, 6, 2]), sizes: undefined });
  assertNear(tokens, new Array<number>(8).fill(1));
});

test('without merges a merging block is the ordinary one, bit for bit', () => {
  const params = initBlock(openInitializer(3), 'block', 8, 2);
  const x = toTensor(drawTokens(5, 2, 7, 8));
  const options = { numHeads: 2, numMerges: 0, isProportional: true };
  const { tokens, sizes } = mergingBlock(params, { tokens: x, sizes: undefined }, options);
  assert.equal(sizes, undefined);
  assert.deepEqual(tokens.dataSync(), transformerBlock(params, x, { numHeads: 2 }).dataSync());
});

test('proportional attention sees a token of size n as n equal tokens', () => {
  const { attention } = initBlock(openInitializer(4), 'block', 8, 2);
  const plain = drawTokens(6, 1, 4, 8);
  const sizes = [3, 1, 2, 1];
  const repeated: Plain = plain.map((row) =>
    row.flatMap((token, i) => new Array<number[]>(sizes[i]!).fill(token)),
  );
  const bias = proportionalBias(toTensor([sizes.map((size) => [size])]));
  const short = selfAttention(attention, toTensor(plain), { numHeads: 2, bias });
  const long = selfAttention(attention, toTensor(repeated), { numHeads: 2 }).arraySync() as Plain;
  const first = sizes.map((_, i) => sizes.slice(0, i).reduce((a, b) => a + b, 0));
  assertNear(short, [first.map((i) => long[0]![i]!)]);
});

test('gradients flow through the means and stop at the matching', () => {
  const metric = toTensor(drawTokens(21, 2, 9, 4));
  const sizes = tf.add(tf.abs(toTensor(drawTokens(22, 2, 9, 1))), 1);
  const x = toTensor(drawTokens(23, 2, 9, 3));
  const options = { numMerges: 3, numProtected: 1 };
  assertGradient(
    (tokens) => mergeTokens(matchTokens(metric, options), { tokens, sizes }).tokens,
    x,
  );
  const map = matchTokens(metric, options);
  assertGradient((tokens) => unmergeTokens(map, tokens), toTensor(drawTokens(24, 2, 6, 3)));
  // By its own metric, too: steps this small change no match of these tokens.
  const own = (tokens: tf.Tensor): tf.Tensor =>
    mergeTokens(matchTokens(tokens, { numMerges: 2 }), { tokens, sizes: undefined }).tokens;
  assertGradient(own, toTensor(drawTokens(25, 1, 6, 8)));
});

test('the gradient of merging blocks is that of finite differences', () => {
  const blocks = { '*': initBlock(openInitializer(5).layers(2), 'blocks/*', 8, 2) };
  const run = (x: tf.Tensor): tf.Tensor =>
    mergingBlocks(blocks, x, {
      schedule: [2, 1],
      numHeads: 2,
      numProtected: 1,
      isProportional: true,
    }).tokens;
  assertGradient(run, toTensor(drawTokens(31, 1, 7, 8)));
});

test('padding of a text in front reaches no other token', () => {
  const blocks = { '*': initBlock(openInitializer(6).layers(2), 'blocks/*', 8, 2) };
  const frontBias = tf.tensor4d([0, 0, -1e9], [1, 1, 1, 3]);
  const [first] = drawTokens(32, 1, 9, 8) as [number[][]];
  const outputs = [first[2]!, first[2]!.map((value) => 5 - value)].map((padding) => {
    const options = { schedule: [2, 1], numHeads: 2, numProtected: 3, isProportional: true };
    const x = toTensor([first.with(2, padding)]);
    const { tokens } = mergingBlocks(blocks, x, { ...options, frontBias });
    return (tokens.arraySync() as Plain)[0]!;
  });
  assert.equal(outputs[0]!.length, 6);
  assert.deepEqual(outputs[0]!.toSpliced(2, 1), outputs[1]!.toSpliced(2, 1));
  assert.notDeepEqual(outputs[0]![2], outputs[1]![2]);
});

test('a schedule removes the same number in all, evenly, falling or rising', () => {
  // As tome/utils.py's parse_r gives them.
  assert.deepEqual(mergeSchedule(4, 16), [16, 16, 16, 16]);
  assert.deepEqual(mergeSchedule(5, 8, -1), [16, 12, 8, 4, 0]);
  assert.deepEqual(mergeSchedule(5, 8, 1), [0, 4, 8, 12, 16]);
  assert.deepEqual(mergeSchedule(12, 13, -1), [26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0]);
  assert.deepEqual(mergeSchedule(1, 8, -1), [16]);
});

test('impossible settings are refused by name', () => {
  const metric = tf.ones([1, 4, 2]);
  const refused = { code: 'TOKENS_BAD_SETTING' };
  assert.throws(() => matchTokens(metric, { numMerges: -1 }), refused);
  assert.throws(() => matchTokens(metric, { numMerges: 1.5 }), refused);
  assert.throws(() => mergeSchedule(4, 8, 2), refused);
  const blocks = { '*': initBlock(openInitializer(6).layers(2), 'blocks/*', 8, 2) };
  const options = { schedule: [1], numHeads: 2, isProportional: false };
  assert.throws(() => mergingBlocks(blocks, tf.ones([1, 4, 8]), options), refused);
});
