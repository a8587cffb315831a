/** Language models whose choice of the next token is steered: some are ruled out, or it is guided by what is asked. */
import * as tf from '@tensorflow/tfjs-core';
import type { TensorTree } from '../tree.ts';
import type { DecoderInputs, DecoderState } from './decoder.ts';
import type { LanguageModel, Next } from './language-model.ts';

/** Added to the logits of tokens that are ruled out. */
const RULED_OUT = -1e9;

/** A model that says nothing but tokens of which `isAllowed`, of [V]. */
export function limitedModel<P extends TensorTree, Q extends TensorTree, S extends TensorTree>(
  model: LanguageModel<P, Q, S>,
  isAllowed: readonly boolean[],
): LanguageModel<P, Q, S> {
  const limited = ({ logits, state }: Next<S>): Next<S> => {
    const bias = tf.tensor1d(isAllowed.map((is) => (is ? 0 : RULED_OUT)));
    return { logits: tf.add(logits, bias), state };
  };
  return {
    ...model,
    prefill: (params, prompt, numSteps) => limited(model.prefill(params, prompt, numSteps)),
    step: (params, state, tokens) => limited(model.step(params, state, tokens)),
  };
}

/** Prompts with what is asked, and the same rows without: each as a decoder takes them, of one length. */
export type GuidedPrompt = DecoderInputs & {
  readonly unaskedIds: tf.Tensor; // [B, L] int32
  readonly unaskedPresent: tf.Tensor; // [B, L]
};

/**
 * Classifier-free guidance: each row goes on with and without what is asked, by the same tokens, which are chosen of
 * unasked + scale (asked - unasked). With a scale of 1 it is the model itself. Source: Gafni et al. 2022,
 * arXiv:2203.13131, sec. 3.5; Yu et al. 2023, arXiv:2309.02591, sec. 3.1.
 */
export function guidedModel<P extends TensorTree>(
  model: LanguageModel<P, DecoderInputs, DecoderState>,
  scale: number,
): LanguageModel<P, GuidedPrompt, DecoderState> {
  const guided = ({ logits, state }: Next<DecoderState>): Next<DecoderState> => {
    const [asked, unasked] = tf.split(logits, 2) as [tf.Tensor, tf.Tensor];
    return { logits: tf.add(unasked, tf.mul(tf.sub(asked, unasked), scale)), state };
  };
  return {
    name: `guided ${model.name}`,
    prefill: (params, { ids, present, unaskedIds, unaskedPresent }, numSteps) =>
      guided(
        model.prefill(
          params,
          { ids: tf.concat([ids, unaskedIds]), present: tf.concat([present, unaskedPresent]) },
          numSteps,
        ),
      ),
    step: (params, state, tokens) => guided(model.step(params, state, tf.concat([tokens, tokens]))),
    select(state, rows) {
      const numRows = tf.scalar(state.present.shape[0] / 2, 'int32');
      return model.select(state, tf.concat([rows, tf.add(rows, numRows)]));
    },
  };
}
