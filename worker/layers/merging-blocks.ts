import * as tf from '@tensorflow/tfjs-core';

import {
  composeMaps,
  matchTokens,
  mergeTokens,
  proportionalBias,
  type MatchOptions,
  type SizedTokens,
  type TokenMap,
} from '../tokens/bipartite-merge.ts';
import { TokenError } from '../tokens/token-error.ts';
import { leavesOf, withLeaves, type Stacked } from '../tree.ts';
import { dense } from './dense.ts';
import { gelu } from './activations.ts';
import { layerNorm } from './norm.ts';
import { selfAttentionAndKeys } from './attention.ts';
import { type BlockParams } from './transformer-block.ts';

export interface MergingOptions extends MatchOptions {
  readonly numHeads: number;
  /**
   * Tokens count in attention as often as their size says: for a model that was trained without merging. Its authors
   * leave it out when they train with merging.
   */
  readonly isProportional: boolean;
  /**
   * Added to the scores of the protected tokens, [B, 1, 1, numProtected]: hides the padding of a text that stands in
   * front of the tokens that merge.
   */
  readonly frontBias?: tf.Tensor;
}

/**
 * A pre-norm transformer block that merges tokens between attention and MLP, by its keys averaged over the heads:
 * [B, N, D] to [B, N - r, D]. With `numMerges` 0 and tokens of size 1, `transformerBlock`.
 * Source: ToMe, arXiv:2210.09461, sec. 3.
 */
export function mergingBlock(
  params: BlockParams,
  { tokens, sizes }: SizedTokens,
  { numHeads, isProportional, frontBias, ...matching }: MergingOptions,
): SizedTokens & { readonly map: TokenMap } {
  const biases = [
    ...(isProportional && sizes !== undefined ? [proportionalBias(sizes)] : []),
    ...(frontBias === undefined ? [] : [padded(frontBias, tokens.shape[1]!)]),
  ];
  const { output, keys } = selfAttentionAndKeys(
    params.attention,
    layerNorm(params.attentionNorm, tokens),
    { numHeads, ...(biases.length === 0 ? {} : { bias: tf.addN(biases) }) },
  );
  const map = matchTokens(tf.mean(keys, 1), matching);
  const merged = mergeTokens(map, { tokens: tf.add(tokens, output), sizes });
  const hidden = gelu(dense(params.mlpIn, layerNorm(params.mlpNorm, merged.tokens)));
  return {
    tokens: tf.add(merged.tokens, dense(params.mlpOut, hidden)),
    sizes: merged.sizes,
    map,
  };
}

/**
 * Merging blocks one after another, layer i merging `schedule[i]` times; `map` leads from each of the first tokens to
 * the last ones. Layers differ in shape, so the program has all of them, unlike `repeatLayers`.
 *
 * @throws TokenError `TOKENS_BAD_SETTING`
 */
export function mergingBlocks(
  blocks: Stacked<BlockParams>,
  x: tf.Tensor,
  {
    schedule,
    ...options
  }: Omit<MergingOptions, 'numMerges'> & { readonly schedule: readonly number[] },
): SizedTokens & { readonly map: TokenMap } {
  const form = blocks['*'];
  const rows = leavesOf(form).map(([, tensor]) => tf.unstack(tensor));
  if (schedule.length === 0 || schedule.length !== rows[0]!.length) {
    throw new TokenError(
      'TOKENS_BAD_SETTING',
      `The schedule has ${schedule.length} entries for ${rows[0]!.length} blocks. Give it one for each, 0 where none merges.`,
    );
  }
  let state: SizedTokens = { tokens: x, sizes: undefined };
  let map: TokenMap | undefined;
  for (const [layer, numMerges] of schedule.entries()) {
    const params = withLeaves(
      form,
      rows.map((row) => row[layer]!),
    );
    const next = mergingBlock(params, state, { ...options, numMerges });
    map = map === undefined ? next.map : composeMaps(map, next.map);
    state = next;
  }
  return { ...state, map: map! };
}

/** [B, 1, 1, P] followed by zeros, [B, 1, 1, N]. */
function padded(bias: tf.Tensor, length: number): tf.Tensor {
  const front = bias.shape[3]!;
  return tf.pad(bias as tf.Tensor4D, [
    [0, 0],
    [0, 0],
    [0, 0],
    [0, length - front],
  ]);
}
