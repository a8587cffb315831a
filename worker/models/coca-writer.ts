/** CoCa token by token: both halves of its decoder with their keys and values kept. */
import * as tf from '@tensorflow/tfjs-core';
import { scanLayers } from '../layer-loop.ts';
import { keyBias } from '../layers/attention-mask.ts';
import { dense } from '../layers/dense.ts';
import { embed } from '../layers/embedding.ts';
import type { EncoderSizes } from '../layers/encoder.ts';
import { cacheRows, slotMask, withSlot, type KeyValues } from '../layers/kv-cache.ts';
import { layerNorm } from '../layers/norm.ts';
import type { Stacked } from '../tree.ts';
import { cocaBlock, type CocaBlockParams, type CocaParams, type CocaSizes } from './coca.ts';
import type { LanguageModel } from './language-model.ts';

/** What a writer keeps from token to token. */
export type CocaWriterState = {
  readonly text: KeyValues;
  readonly decoder: KeyValues;
  /** 1 for slots that hold a token, [B, S]. */
  readonly taken: tf.Tensor;
  /** The next slot, a scalar int32. */
  readonly slot: tf.Tensor;
  /** What the second half looks at, [B, Q, C]. */
  readonly context: tf.Tensor;
};

/** The model as generation sees it, given what the decoder looks at; every text begins with `startId`. */
export function cocaWriter(
  sizes: CocaSizes,
  startId: number,
): LanguageModel<CocaParams, { readonly context: tf.Tensor }, CocaWriterState> {
  const step = (params: CocaParams, state: CocaWriterState, tokens: tf.Tensor) => {
    const { text, decoder, taken, slot, context } = state;
    const [batch, numSlots] = taken.shape as [number, number];
    const word = embed(params.text.words, tf.reshape(tokens, [batch, 1]));
    const place = tf.gather(params.text.position, tf.reshape(slot, [1])); // [1, D]
    const bias = keyBias(tf.concat([taken, tf.ones([batch, 1])], 1)); // the slots so far, and the token itself
    const read = through(params.text.blocks, tf.add(word, place), { past: text, bias }, sizes.text);
    const written = through(
      params.decoder.blocks,
      read.output,
      { past: decoder, bias, context },
      sizes.decoder,
    );
    const last = layerNorm(params.decoder.finalNorm, written.output, sizes.decoder.epsilon);
    const isHere = tf.cast(slotMask(slot, numSlots), 'float32');
    return {
      logits: tf.squeeze(dense(params.decoder.head, last), [1]),
      state: {
        text: withSlot(text, slot, read.made),
        decoder: withSlot(decoder, slot, written.made),
        taken: tf.maximum(taken, isHere),
        slot: tf.add(slot, tf.scalar(1, 'int32')),
        context: tf.clone(context),
      },
    };
  };
  return {
    name: 'coca',
    prefill(params, { context }, numSteps) {
      const batch = context.shape[0];
      const numSlots = numSteps + 1;
      const state = {
        text: emptySlots(sizes.text, batch, numSlots),
        decoder: emptySlots(sizes.decoder, batch, numSlots),
        taken: tf.zeros([batch, numSlots]),
        slot: tf.scalar(0, 'int32'),
        context,
      };
      return step(params, state, tf.fill([batch], startId, 'int32'));
    },
    step,
    select: ({ text, decoder, taken, slot, context }, rows) => ({
      text: cacheRows(text, rows),
      decoder: cacheRows(decoder, rows),
      taken: tf.gather(taken, rows),
      slot: tf.clone(slot),
      context: tf.gather(context, rows),
    }),
  };
}

function emptySlots(
  { numLayers, numHeads, width }: EncoderSizes,
  batch: number,
  numSlots: number,
): KeyValues {
  const shape = [numLayers, batch, numHeads, numSlots, width / numHeads];
  return { key: tf.zeros(shape), value: tf.zeros(shape) };
}

/** One token of each row [B, 1, D] through one half. */
function through(
  blocks: Stacked<CocaBlockParams>,
  x: tf.Tensor,
  {
    past,
    bias,
    context,
  }: { readonly past: KeyValues; readonly bias: tf.Tensor; readonly context?: tf.Tensor },
  sizes: EncoderSizes,
): { readonly output: tf.Tensor; readonly made: KeyValues } {
  return scanLayers(
    { '*': { block: blocks['*'], past } },
    x,
    ({ block, past: own }, state, [seen, looked]) =>
      cocaBlock(
        block,
        state,
        { bias: seen!, past: own, ...(looked === undefined ? {} : { context: looked }) },
        sizes,
      ),
    { shared: context === undefined ? [bias] : [bias, context] },
  );
}
