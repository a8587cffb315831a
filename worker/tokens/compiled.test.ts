import { after, before, describe, it } from 'node:test';

import * as tf from '@tensorflow/tfjs-core';

import { openTestEngines, type TestEngines } from '../backend/test/engines.ts';
import { assertSame, int, normal, positive, type Case } from '../backend/test/kernel-cases.ts';
import { openInitializer } from '../initializer.ts';
import { initBlock } from '../layers/transformer-block.ts';
import { mergingBlocks } from '../layers/merging-blocks.ts';
import { matchTokens, mergeTokens, unmergeTokens } from './bipartite-merge.ts';
import { concatenateTokens } from './concatenate-merge.ts';
import { gatherTokens } from './gather-tokens.ts';
import { poolSpace, poolTime } from './pool-merge.ts';

const GRID = { frames: 4, height: 2, width: 6 };

/** Results of a merge in every part. */
function merged(
  metric: tf.Tensor,
  tokens: tf.Tensor,
  sizes: tf.Tensor | undefined,
  numProtected: number,
) {
  const map = matchTokens(metric, { numMerges: 5, numProtected });
  const state = mergeTokens(map, { tokens, sizes });
  return [
    state.tokens,
    state.sizes!,
    unmergeTokens(map, state.tokens),
    tf.cast(map.target, 'float32'),
  ];
}

const CASES: readonly Case[] = [
  { name: 'concatenateTokens', inputs: [normal(2, 12, 3)], fn: (x) => concatenateTokens(x, 4) },
  {
    name: 'poolSpace',
    inputs: [normal(2, 48, 3)],
    fn: (x) => poolSpace(x, GRID, { height: 2, width: 3 }),
  },
  { name: 'poolTime', inputs: [normal(2, 48, 3)], fn: (x) => poolTime(x, GRID, 2) },
  {
    name: 'gatherTokens',
    inputs: [normal(2, 9, 4), int(9, 2, 5)],
    fn: (x, at) => gatherTokens(x, at),
  },
  ...[0, 1, 2].flatMap((numProtected) =>
    [17, 24].map((numTokens) => ({
      name: `merging of ${numTokens} tokens, ${numProtected} protected`,
      inputs: [normal(3, numTokens, 8), normal(3, numTokens, 6), positive(3, numTokens, 1)],
      fn: (metric: tf.Tensor, x: tf.Tensor, sizes: tf.Tensor) =>
        merged(metric, x, sizes, numProtected),
      gradient: false,
    })),
  ),
  {
    name: 'merging by a metric that has a gradient itself',
    inputs: [normal(2, 16, 6)],
    fn: (x) => merged(tf.mul(x, 2), x, undefined, 1).slice(0, 3),
  },
  {
    name: 'merging blocks',
    inputs: [normal(2, 20, 8)],
    fn: (x) => {
      const blocks = { '*': initBlock(openInitializer(5).layers(3), 'blocks/*', 8, 2) };
      const options = { schedule: [4, 3, 2], numHeads: 2, numProtected: 1, isProportional: true };
      const { tokens, map } = mergingBlocks(blocks, x, options);
      return [tokens, unmergeTokens(map, tokens)];
    },
  },
];

describe('compiled operators on tokens', () => {
  let engines: TestEngines;
  before(async () => {
    engines = await openTestEngines();
  });
  after(() => {
    engines.close();
  });

  for (const [seed, testCase] of CASES.entries()) {
    it(`give what they give op by op: ${testCase.name}`, () => assertSame(engines, testCase, seed));
  }
});
