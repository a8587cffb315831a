/** A decoder-only language model that is given soft tokens among its words: what was seen and heard. */
import * as tf from '@tensorflow/tfjs-core';
import type { ObjectiveSums } from '../losses/cross-entropy.ts';
import {
  NO_LABEL,
  nextTokenScores,
  nextTokenSums,
  type TokenScores,
} from '../losses/next-token.ts';
import type { TensorTree } from '../tree.ts';
import type { Decoder, DecoderInputs } from './decoder.ts';
import type { LanguageModel } from './language-model.ts';

/** A batch of conversations on the device; see `assembleDialogues`. */
export type DialogueBatch = {
  readonly ids: tf.Tensor; // [B, L] int32
  readonly present: tf.Tensor; // [B, L]
  readonly softRows: tf.Tensor; // [B, L] int32
  readonly labels: tf.Tensor; // [B, L] int32
  readonly labelWeights: tf.Tensor; // [B, L]
};

/** Loss of the words that are to be said, each given all before it: words, and soft tokens [B, N, W] in their places. */
export function dialogueSums<P extends TensorTree>(
  decoder: Decoder<P>,
  params: P,
  batch: DialogueBatch,
  soft?: tf.Tensor,
): ObjectiveSums {
  const { logits, labels } = answered(decoder, params, batch, soft);
  return nextTokenSums(logits, labels);
}

/** As {@link dialogueSums}, by token. */
export function dialogueScores<P extends TensorTree>(
  decoder: Decoder<P>,
  params: P,
  batch: DialogueBatch,
  soft?: tf.Tensor,
): TokenScores {
  const { logits, labels } = answered(decoder, params, batch, soft);
  return nextTokenScores(logits, labels);
}

function answered<P extends TensorTree>(
  decoder: Decoder<P>,
  params: P,
  batch: DialogueBatch,
  soft: tf.Tensor | undefined,
): { readonly logits: tf.Tensor; readonly labels: tf.Tensor } {
  const states = decoder.states(params, inputsOf(batch, soft));
  const isCounted = tf.greater(batch.labelWeights, 0);
  const none = tf.fill(batch.labels.shape, NO_LABEL, 'int32');
  const labels = tf.where(isCounted, batch.labels, none);
  return { logits: decoder.logits(params, states), labels };
}

/**
 * The model that answers: `language` gives the decoder's parameters out of all, `see` the soft tokens of a prompt.
 */
export function seeingModel<A extends TensorTree>(
  decoder: Decoder<TensorTree>,
  language: (params: A) => TensorTree,
  see: (params: A, prompt: TensorTree) => tf.Tensor | undefined,
): LanguageModel<A> {
  const typed = decoder as LanguageModel<TensorTree, DecoderInputs>;
  return {
    name: `seeing ${decoder.name}`,
    prefill: (params, prompt, numSteps) =>
      typed.prefill(
        language(params),
        inputsOf(prompt as DialogueBatch, see(params, prompt)),
        numSteps,
      ),
    step: (params, state, tokens) => typed.step(language(params), state, tokens),
    select: (state, rows) => typed.select(state, rows),
  };
}

function inputsOf({ ids, present, softRows }: DialogueBatch, soft?: tf.Tensor): DecoderInputs {
  return soft === undefined ? { ids, present } : { ids, present, soft, softRows };
}
