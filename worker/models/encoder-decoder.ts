/**
 * An encoder that reads pictures and words and a decoder that writes: OFA's form, with one table of words for both.
 * Source: Wang et al. 2022, arXiv:2202.03052, sec. 3.1; without the bias of relative positions and the norms behind parts
 * that its released code has.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { repeatLayers, scanLayers } from '../layer-loop.ts';
import { ACTIVATIONS } from '../layers/activations.ts';
import { causalBias, keyBias } from '../layers/attention-mask.ts';
import {
  crossAttention,
  initCrossAttention,
  type CrossAttentionParams,
} from '../layers/cross-attention.ts';
import { decoderAttention, type DecoderAttentionParams } from '../layers/decoder-block.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { addPositions, embed } from '../layers/embedding.ts';
import { encoder, initEncoder, type EncoderSizes } from '../layers/encoder.ts';
import { cacheRows, slotMask, withSlot, type KeyValues } from '../layers/kv-cache.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import { tiedLogits } from '../layers/tied-head.ts';
import type { BlockParams } from '../layers/transformer-block.ts';
import type { Stacked } from '../tree.ts';
import type { LanguageModel } from './language-model.ts';
import {
  initPictureTokens,
  pictureTokens,
  type PictureTokenParams,
  type PictureTokenSizes,
} from './picture-tokens.ts';

export interface EncoderDecoderSizes {
  readonly picture: PictureTokenSizes;
  readonly encoder: EncoderSizes;
  /** As wide as the encoder. */
  readonly decoder: EncoderSizes;
  readonly vocabulary: number;
  /** The longest text that is read, and that is written. */
  readonly promptLength: number;
  readonly answerLength: number;
  /** Frames of a clip. */
  readonly numFrames: number;
}

type WriterBlockParams = {
  readonly attentionNorm: LayerNormParams;
  readonly attention: DecoderAttentionParams;
  readonly crossNorm: LayerNormParams;
  readonly cross: CrossAttentionParams;
  readonly mlpNorm: LayerNormParams;
  readonly mlpIn: DenseParams;
  readonly mlpOut: DenseParams;
};

export type EncoderDecoderParams = {
  readonly words: tf.Tensor; // [V, D], the head too
  readonly reader: {
    readonly picture: PictureTokenParams;
    readonly picturePosition: tf.Tensor; // [N, D]
    readonly promptPosition: tf.Tensor; // [P, D]
    readonly embeddingNorm: LayerNormParams;
    readonly blocks: Stacked<BlockParams>;
    readonly finalNorm: LayerNormParams;
  };
  /** Where a frame stands in its clip, [F, D]: what pictures alone have not. */
  readonly frame: tf.Tensor;
  readonly writer: {
    readonly position: tf.Tensor; // [A, D]
    readonly embeddingNorm: LayerNormParams;
    readonly blocks: Stacked<WriterBlockParams>;
    readonly finalNorm: LayerNormParams;
  };
};

export function initEncoderDecoder(
  sizes: EncoderDecoderSizes,
  init: Initializer,
): EncoderDecoderParams {
  const { picture, encoder: reader, decoder, vocabulary, promptLength, answerLength } = sizes;
  const { width } = reader;
  const table = (path: string, rows: number): tf.Tensor => init.normal(path, [rows, width], 0.02);
  const layer = init.layers(decoder.numLayers);
  const at = 'writer/blocks/*';
  const map = (path: string, numIn = width, numOut = width): DenseParams =>
    initDense(layer, `${at}/${path}`, numIn, numOut);
  return {
    words: table('words', vocabulary),
    reader: {
      picture: initPictureTokens(picture, init, 'reader/picture'),
      picturePosition: table('reader/picturePosition', picture.gridSize ** 2),
      promptPosition: table('reader/promptPosition', promptLength),
      embeddingNorm: initLayerNorm(init, 'reader/embeddingNorm', width),
      blocks: initEncoder(init, 'reader/blocks', reader),
      finalNorm: initLayerNorm(init, 'reader/finalNorm', width),
    },
    frame: table('frame', sizes.numFrames),
    writer: {
      position: table('writer/position', answerLength),
      embeddingNorm: initLayerNorm(init, 'writer/embeddingNorm', width),
      blocks: {
        '*': {
          attentionNorm: initLayerNorm(layer, `${at}/attentionNorm`, width),
          attention: {
            query: map('attention/query'),
            key: map('attention/key'),
            value: map('attention/value'),
            output: map('attention/output'),
          },
          crossNorm: initLayerNorm(layer, `${at}/crossNorm`, width),
          cross: initCrossAttention(layer, `${at}/cross`, { width, contextWidth: width }),
          mlpNorm: initLayerNorm(layer, `${at}/mlpNorm`, width),
          mlpIn: map('mlpIn', width, decoder.mlpWidth),
          mlpOut: map('mlpOut', decoder.mlpWidth, width),
        },
      },
      finalNorm: initLayerNorm(init, 'writer/finalNorm', width),
    },
  };
}

/** What the encoder reads. */
export type ReaderInput = {
  /** Frames, [B F, H, W, 3]. */
  readonly pictures: tf.Tensor;
  /** [B, P] int32 */
  readonly ids: tf.Tensor;
  /** [B, P] float32, 0 at padding */
  readonly present: tf.Tensor;
};

/** What the decoder looks at: states [B, F N + P, D], and which of them are there. */
export type ReadStates = { readonly states: tf.Tensor; readonly present: tf.Tensor };

/** Frames and prompt through the encoder, which sees all of them at once. */
export function readAll(
  params: EncoderDecoderParams,
  { pictures, ids, present }: ReaderInput,
  { picture, encoder: reader, numFrames }: EncoderDecoderSizes,
): ReadStates {
  const { picturePosition, promptPosition, embeddingNorm, blocks, finalNorm } = params.reader;
  const batch = ids.shape[0];
  const numPatches = picture.gridSize ** 2;
  const patches = addPositions(
    pictureTokens(params.reader.picture, pictures, picture),
    picturePosition,
  );
  const clips = tf.reshape(patches, [batch, numFrames, numPatches, reader.width]);
  const placed = tf.add(clips, tf.reshape(params.frame, [1, numFrames, 1, reader.width]));
  const seen = tf.reshape(placed, [batch, numFrames * numPatches, reader.width]);
  const prompt = addPositions(embed(params.words, ids), promptPosition);
  const x = layerNorm(embeddingNorm, tf.concat([seen, prompt], 1), reader.epsilon);
  const all = tf.concat([tf.ones([batch, numFrames * numPatches]), present], 1);
  const states = encoder(blocks, x, reader, { bias: keyBias(all) });
  return { states: layerNorm(finalNorm, states, reader.epsilon), present: all };
}

/** Logits of the token after each of ids [B, A] (int32), [B, A, V]; each sees those before it, and all that was read. */
export function writtenLogits(
  params: EncoderDecoderParams,
  ids: tf.Tensor,
  read: ReadStates,
  { decoder }: EncoderDecoderSizes,
): tf.Tensor {
  const { position, embeddingNorm, blocks, finalNorm } = params.writer;
  const x = layerNorm(
    embeddingNorm,
    addPositions(embed(params.words, ids), position),
    decoder.epsilon,
  );
  const shared = [causalBias(ids.shape[1]!), read.states, keyBias(read.present)];
  const states = repeatLayers(
    blocks,
    x,
    (block, state, [bias, context, contextBias]) =>
      writerBlock(
        block,
        state,
        { bias: bias!, context: context!, contextBias: contextBias! },
        decoder,
      ).output,
    { shared },
  );
  return tiedLogits(params.words, layerNorm(finalNorm, states, decoder.epsilon));
}

/** What a writer keeps from token to token. */
export type WriterState = KeyValues & {
  /** 1 for slots that hold a token, [B, S]. */
  readonly taken: tf.Tensor;
  /** The next slot, a scalar int32. */
  readonly slot: tf.Tensor;
  readonly states: tf.Tensor;
  readonly present: tf.Tensor;
};

/** The model as generation sees it; every text begins with `startId`, which the prompt does not hold. */
export function writerOf(
  sizes: EncoderDecoderSizes,
  startId: number,
): LanguageModel<EncoderDecoderParams, ReaderInput, WriterState> {
  const { decoder } = sizes;
  const step = (
    params: EncoderDecoderParams,
    { key, value, taken, slot, states: context, present }: WriterState,
    tokens: tf.Tensor,
  ) => {
    const { position, embeddingNorm, blocks, finalNorm } = params.writer;
    const [batch, numSlots] = taken.shape as [number, number];
    const place = tf.gather(position, tf.reshape(slot, [1])); // [1, D]
    const word = embed(params.words, tf.reshape(tokens, [batch, 1]));
    const x = layerNorm(embeddingNorm, tf.add(word, place), decoder.epsilon);
    const seen = keyBias(tf.concat([taken, tf.ones([batch, 1])], 1));
    const { output, made } = scanLayers(
      { '*': { block: blocks['*'], past: { key, value } } },
      x,
      ({ block, past }, state, [bias, read, readBias]) =>
        writerBlock(
          block,
          state,
          { bias: bias!, context: read!, contextBias: readBias!, past },
          decoder,
        ),
      { shared: [seen, context, keyBias(present)] },
    );
    const last = layerNorm(finalNorm, output, decoder.epsilon);
    const isHere = tf.cast(slotMask(slot, numSlots), 'float32');
    return {
      logits: tf.squeeze(tiedLogits(params.words, last), [1]),
      state: {
        ...withSlot({ key, value }, slot, made),
        taken: tf.maximum(taken, isHere),
        slot: tf.add(slot, tf.scalar(1, 'int32')),
        states: tf.clone(context),
        present: tf.clone(present),
      },
    };
  };
  return {
    name: 'encoder_decoder',
    prefill(params, input, numSteps) {
      const read = readAll(params, input, sizes);
      const batch = input.ids.shape[0];
      const headWidth = decoder.width / decoder.numHeads;
      const slots = [decoder.numLayers, batch, decoder.numHeads, numSteps + 1, headWidth];
      const state = {
        ...{ key: tf.zeros(slots), value: tf.zeros(slots) },
        taken: tf.zeros([batch, numSteps + 1]),
        slot: tf.scalar(0, 'int32'),
        ...read,
      };
      return step(params, state, tf.fill([batch], startId, 'int32'));
    },
    step,
    select: ({ key, value, taken, slot, states, present }, rows) => ({
      ...cacheRows({ key, value }, rows),
      taken: tf.gather(taken, rows),
      slot: tf.clone(slot),
      states: tf.gather(states, rows),
      present: tf.gather(present, rows),
    }),
  };
}

/** Attention to what is written, to what was read, and an MLP; norms in front. */
function writerBlock(
  params: WriterBlockParams,
  x: tf.Tensor,
  {
    bias,
    context,
    contextBias,
    past,
  }: {
    readonly bias: tf.Tensor;
    readonly context: tf.Tensor;
    readonly contextBias: tf.Tensor;
    readonly past?: KeyValues;
  },
  { numHeads, activation, epsilon }: EncoderSizes,
): { readonly output: tf.Tensor; readonly made: KeyValues } {
  const { output, made } = decoderAttention(
    params.attention,
    layerNorm(params.attentionNorm, x, epsilon),
    {
      ...{ bias, numHeads, numKeyValueHeads: numHeads },
      ...(past === undefined ? {} : { past }),
    },
  );
  const written = tf.add(x, output);
  const crossed = crossAttention(
    params.cross,
    layerNorm(params.crossNorm, written, epsilon),
    context,
    {
      numHeads,
      bias: contextBias,
    },
  );
  const read = tf.add(written, crossed);
  const hidden = ACTIVATIONS[activation](
    dense(params.mlpIn, layerNorm(params.mlpNorm, read, epsilon)),
  );
  return { output: tf.add(read, dense(params.mlpOut, hidden)), made };
}
