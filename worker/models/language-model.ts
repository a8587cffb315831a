import type * as tf from '@tensorflow/tfjs-core';
import type { TensorTree } from '../tree.ts';

/** What a language model says of the token after those it has taken, and what it keeps of them. */
export type Next<S extends TensorTree> = {
  /** [B, V] */
  readonly logits: tf.Tensor;
  /** Of the same shapes after every step. */
  readonly state: S;
};

/**
 * A language model as generation sees it: decoder-only ones, those with a soft prompt, and encoder-decoders, whose
 * prompt is what the encoder reads. Its functions are pure and become parts of compiled programs.
 */
export interface LanguageModel<
  P extends TensorTree = TensorTree,
  Q extends TensorTree = TensorTree,
  S extends TensorTree = TensorTree,
> {
  /** For messages and profiles. */
  readonly name: string;
  /** Reads the prompts of B rows, with room for `numSteps` tokens each. */
  prefill(params: P, prompt: Q, numSteps: number): Next<S>;
  /** Takes one more token a row, [B] int32. */
  step(params: P, state: S, tokens: tf.Tensor): Next<S>;
  /** The state of the rows at `rows`, [B'] int32: beams are copied and dropped so. */
  select(state: S, rows: tf.Tensor): S;
}
