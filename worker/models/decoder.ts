/** Decoder-only language models, made of an entrance, equal blocks and an exit: for training, and token by token. */
import * as tf from '@tensorflow/tfjs-core';
import { repeatLayers, scanLayers } from '../layer-loop.ts';
import { causalBias, keyBias } from '../layers/attention-mask.ts';
import type { BlockContext, BlockResult } from '../layers/decoder-block.ts';
import {
  cacheRows,
  slotMask,
  withEmptySlots,
  withSlot,
  type KeyValues,
} from '../layers/kv-cache.ts';
import type { RopeAngles } from '../layers/rope.ts';
import { gatherTokens } from '../tokens/gather-tokens.ts';
import type { Stacked, TensorTree } from '../tree.ts';
import type { LanguageModel } from './language-model.ts';

/** Tokens as a decoder takes them, padded at either end. */
export type DecoderInputs = {
  /** [B, L] int32, each an id of the vocabulary, also where a soft token stands. */
  readonly ids: tf.Tensor;
  /** 1 for tokens, 0 for padding, [B, L]. */
  readonly present: tf.Tensor;
  /** Embeddings that stand for tokens, [B, N, W]; see `placeSoftTokens`. */
  readonly soft?: tf.Tensor;
  /** Which of its row's soft tokens stands here, -1 for none, [B, L] int32. */
  readonly softRows?: tf.Tensor;
};

/** What a decoder keeps of the tokens it has taken. */
export type DecoderState = KeyValues & {
  /** 1 for slots that hold a token, [B, S]. */
  readonly present: tf.Tensor;
  /** Tokens of each row, [B] int32: the position of its next one. */
  readonly numTokens: tf.Tensor;
  /** The next slot, a scalar int32: the same for all rows, whatever they are padded with. */
  readonly slot: tf.Tensor;
};

/** What tells one architecture from another. Widths: W of embeddings, D of blocks. */
export interface DecoderParts<P extends TensorTree, B extends TensorTree> {
  readonly name: string;
  /** Ids [B, L] to embeddings [B, L, W]. */
  embed(params: P, ids: tf.Tensor): tf.Tensor;
  /** Embeddings [B, L, W] at positions [B, L] (int32, from 0) to the first block's input [B, L, D]. */
  enter(params: P, embeddings: tf.Tensor, positions: tf.Tensor): tf.Tensor;
  /** Where positions enter the attention. */
  rope?(positions: tf.Tensor): RopeAngles;
  blocksOf(params: P): Stacked<B>;
  block(params: B, x: tf.Tensor, context: BlockContext): BlockResult;
  /** The last block's output to the final states. */
  leave(params: P, x: tf.Tensor): tf.Tensor;
  /** Final states [..., D'] to logits [..., V]. */
  logits(params: P, states: tf.Tensor): tf.Tensor;
}

export interface Decoder<P extends TensorTree> extends LanguageModel<
  P,
  DecoderInputs,
  DecoderState
> {
  embed(params: P, ids: tf.Tensor): tf.Tensor;
  /** Final states of all tokens, [B, L, D']; with gradients. `remat` computes blocks again instead of keeping them. */
  states(params: P, inputs: DecoderInputs, options?: { readonly remat?: boolean }): tf.Tensor;
  logits(params: P, states: tf.Tensor): tf.Tensor;
  /** What enters the first block, leaves each block, and the final states in place of the last. Without gradients. */
  hiddenStates(params: P, inputs: DecoderInputs): tf.Tensor[];
}

export function decoderOf<P extends TensorTree, B extends TensorTree>(
  parts: DecoderParts<P, B>,
): Decoder<P> {
  const begin = (params: P, inputs: DecoderInputs) => {
    const positions = positionsOf(inputs.present);
    const rope = parts.rope?.(positions);
    const bias = tf.add(keyBias(inputs.present), causalBias(inputs.present.shape[1]!)); // [B, 1, L, L]
    return {
      x: parts.enter(params, embedded(parts.embed(params, inputs.ids), inputs), positions),
      shared: [bias, ...(rope === undefined ? [] : [rope.cos, rope.sin])],
    };
  };
  const scan = (params: P, { x, shared }: { x: tf.Tensor; shared: readonly tf.Tensor[] }) =>
    scanLayers(
      parts.blocksOf(params),
      x,
      (block, state, seen) => {
        const { output, made } = parts.block(block, state, contextOf(seen));
        return { output, made: { ...made, state: output } };
      },
      { shared },
    );
  return {
    name: parts.name,
    embed: (params, ids) => parts.embed(params, ids),
    logits: (params, states) => parts.logits(params, states),

    states(params, inputs, { remat = false } = {}) {
      const { x, shared } = begin(params, inputs);
      const last = repeatLayers(
        parts.blocksOf(params),
        x,
        (block, state, seen) => parts.block(block, state, contextOf(seen)).output,
        { shared, remat },
      );
      return parts.leave(params, last);
    },

    hiddenStates(params, inputs) {
      const first = begin(params, inputs);
      const { output, made } = scan(params, first);
      return [first.x, ...tf.unstack(made.state).slice(0, -1), parts.leave(params, output)];
    },

    prefill(params, inputs, numSteps) {
      const { present } = inputs;
      const length = present.shape[1]!;
      const numSlots = length + numSteps;
      const { output, made } = scan(params, begin(params, inputs));
      const last = gatherTokens(output, lastTokens(present)); // [B, 1, D]
      const logits = parts.logits(params, parts.leave(params, last));
      return {
        logits: tf.squeeze(logits, [1]),
        state: {
          ...withEmptySlots(made, numSlots),
          present: tf.pad(present as tf.Tensor2D, [
            [0, 0],
            [0, numSteps],
          ]),
          numTokens: tf.cast(tf.sum(present, 1), 'int32'),
          slot: tf.scalar(length, 'int32'),
        },
      };
    },

    step(params, { key, value, present, numTokens, slot }, tokens) {
      const [batch, numSlots] = present.shape as [number, number];
      const positions = tf.reshape(numTokens, [batch, 1]);
      const rope = parts.rope?.(positions);
      const seen = tf.concat([present, tf.ones([batch, 1])], 1); // the slots so far, and the token itself
      const { output, made } = scanLayers(
        { '*': { block: parts.blocksOf(params)['*'], past: { key, value } } },
        parts.enter(params, parts.embed(params, tf.reshape(tokens, [batch, 1])), positions),
        ({ block, past }, x, shared) => parts.block(block, x, { ...contextOf(shared), past }),
        { shared: [keyBias(seen), ...(rope === undefined ? [] : [rope.cos, rope.sin])] },
      );
      const logits = parts.logits(params, parts.leave(params, output));
      const isTaken = tf.cast(slotMask(slot, numSlots), 'float32');
      return {
        logits: tf.squeeze(logits, [1]),
        state: {
          ...withSlot({ key, value }, slot, made),
          present: tf.maximum(present, isTaken),
          numTokens: tf.add(numTokens, tf.scalar(1, 'int32')),
          slot: tf.add(slot, tf.scalar(1, 'int32')),
        },
      };
    },

    select: ({ key, value, present, numTokens, slot }, rows) => ({
      ...cacheRows({ key, value }, rows),
      present: tf.gather(present, rows),
      numTokens: tf.gather(numTokens, rows),
      slot: tf.clone(slot),
    }),
  };
}

function contextOf([bias, cos, sin]: readonly tf.Tensor[]): BlockContext {
  return {
    bias: bias!,
    ...(cos === undefined || sin === undefined ? {} : { rope: { cos, sin } }),
  };
}

/** Tokens are counted from 0 in each row, whatever padding there is, [B, L] int32. */
function positionsOf(present: tf.Tensor): tf.Tensor {
  const before = tf.sub(tf.cumsum(present, 1), 1);
  return tf.cast(tf.maximum(before, 0), 'int32');
}

/** Where each row's last token stands, [B, 1] int32. */
function lastTokens(present: tf.Tensor): tf.Tensor {
  const at = tf.range(0, present.shape[1]!, 1, 'float32');
  return tf.cast(tf.max(tf.mul(present, at), 1, true), 'int32');
}

/** Embeddings of tokens [B, L, W], with soft ones in their places. */
function embedded(words: tf.Tensor, { soft, softRows }: DecoderInputs): tf.Tensor {
  if (soft === undefined || softRows === undefined) return words;
  const length = words.shape[1]!;
  const own = tf.range(0, length, 1, 'int32');
  const isSoft = tf.greaterEqual(softRows, tf.scalar(0, 'int32'));
  const from = tf.where(isSoft, tf.add(softRows, tf.scalar(length, 'int32')), own);
  return gatherTokens(tf.concat([words, soft], 1), from);
}
