/**
 * Prompt tuning: vectors that stand before every text as words would, and are trained. P W parameters for P of them; a
 * model does not begin as it was. Source: Lester et al. 2021, arXiv:2104.08691, sec. 2.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Decoder, DecoderInputs } from '../models/decoder.ts';
import { leavesOf, type TensorTree } from '../tree.ts';
import type { TunedModel, Tuning } from './tuning.ts';

export interface PromptConfig {
  /** Vectors. */
  readonly tokens: number;
}

export type PromptParams = { readonly prompt: tf.Tensor /* [P, W] */ };

/** A decoder's parameters, and what stands before its texts. */
export type PromptedParams = PromptParams & { readonly model: TensorTree };

export function prompt(
  { tokens }: PromptConfig,
  { form, decoder }: TunedModel,
): Tuning<PromptParams> {
  return {
    init: (init) => ({
      prompt: init.normal('prompt', [tokens, embeddingWidth(form)], 0.02),
    }),
    fixed: {},
    adapted: (model, own): PromptedParams => ({ model, ...own }),
    decoder: promptedDecoder(decoder),
    kind: { tuning: 'prompt' },
  };
}

/** W of a decoder's form. */
export function embeddingWidth(form: TensorTree): number {
  return new Map(leavesOf(form)).get('embedding')!.shape[1]!;
}

/** The decoder on texts with vectors before them; what it gives is of the texts alone. */
export function promptedDecoder(base: Decoder<TensorTree>): Decoder<PromptedParams> {
  const ofText = (states: tf.Tensor, numTokens: number): tf.Tensor =>
    tf.slice(states, [0, numTokens, 0], [-1, -1, -1]);
  return {
    name: base.name,
    embed: ({ model }, ids) => base.embed(model, ids),
    logits: ({ model }, states) => base.logits(model, states),
    states: ({ model, prompt: before }, inputs, options) =>
      ofText(base.states(model, withPrompt(inputs, before), options), before.shape[0]),
    hiddenStates: ({ model, prompt: before }, inputs) =>
      base
        .hiddenStates(model, withPrompt(inputs, before))
        .map((states) => ofText(states, before.shape[0])),
    prefill: ({ model, prompt: before }, inputs, numSteps) =>
      base.prefill(model, withPrompt(inputs, before), numSteps),
    step: ({ model }, state, tokens) => base.step(model, state, tokens),
    select: (state, rows) => base.select(state, rows),
  };
}

/** Each row begins with the vectors, as the last of its soft tokens. */
function withPrompt(
  { ids, present, soft, softRows }: DecoderInputs,
  before: tf.Tensor,
): DecoderInputs {
  const [batch, length] = ids.shape as [number, number];
  const [numTokens, width] = before.shape as [number, number];
  const numSoft = soft === undefined || softRows === undefined ? 0 : soft.shape[1]!;
  const own = tf.tile(tf.expandDims(before, 0), [batch, 1, 1]);
  const rows = tf.add(
    tf.zeros([batch, 1], 'int32'),
    tf.range(numSoft, numSoft + numTokens, 1, 'int32'),
  );
  const others = numSoft === 0 ? tf.fill([batch, length], -1, 'int32') : softRows!;
  return {
    ids: tf.concat([tf.zeros([batch, numTokens], 'int32'), ids], 1),
    present: tf.concat([tf.ones([batch, numTokens]), present], 1),
    soft: numSoft === 0 ? tf.reshape(own, [batch, numTokens, width]) : tf.concat([soft!, own], 1),
    softRows: tf.concat([rows, others], 1),
  };
}
