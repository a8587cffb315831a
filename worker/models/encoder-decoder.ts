/**
 * An encoder that reads pictures and words and a decoder that writes: OFA's form, with one table of words for both. Places
 * are not summed into what stands there: attention looks at them by projections of their own, the same in all layers, and
 * at distances, by a table a layer; norms stand in front of parts, behind attention and within MLPs.
 * Source: Wang et al. 2022, arXiv:2202.03052, sec. 3.1, and models/ofa of the released code (OFA-Sys/OFA) with the flags of
 * its pre-training script; without what it writes pictures with, a class token's rows, and dropout.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { repeatLayers, scanLayers } from '../layer-loop.ts';
import { causalBias, keyBias } from '../layers/attention-mask.ts';
import { selfAttention, type AttentionParams } from '../layers/attention.ts';
import {
  crossAttention,
  initCrossAttention,
  type CrossAttentionParams,
} from '../layers/cross-attention.ts';
import { decoderAttention, type DecoderAttentionParams } from '../layers/decoder-block.ts';
import { initDense, type DenseParams } from '../layers/dense.ts';
import { embed } from '../layers/embedding.ts';
import type { EncoderSizes } from '../layers/encoder.ts';
import { cacheRows, slotMask, withSlot, type KeyValues } from '../layers/kv-cache.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import {
  addNormedMlp,
  initAttentionNorms,
  initNormedMlp,
  withHeadScale,
  type AttentionNorms,
  type NormedMlpParams,
} from '../layers/normformer.ts';
import {
  distanceBias,
  initPositionProjections,
  NUM_WORD_DISTANCES,
  numPatchDistances,
  patchDistances,
  positionScores,
  wordDistanceRow,
  wordDistances,
  type PositionProjections,
} from '../layers/position-attention.ts';
import { tiedLogits } from '../layers/tied-head.ts';
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
  /** Places of words that there are weights for: of what is read, and as many of what is written. */
  readonly wordPositions: number;
  /** Rows, and columns, of the largest grid of patches that there are weights for. */
  readonly gridPositions: number;
  /** Frames of a clip. */
  readonly numFrames: number;
}

type ReaderBlockParams = NormedMlpParams & {
  readonly attentionNorms: AttentionNorms;
  readonly attention: AttentionParams;
  readonly wordDistances: tf.Tensor; // [R, A]
  readonly patchDistances: tf.Tensor; // [R, A]
};

type WriterBlockParams = NormedMlpParams & {
  readonly attentionNorms: AttentionNorms;
  readonly attention: DecoderAttentionParams;
  readonly wordDistances: tf.Tensor; // [R, A]
  readonly crossNorms: AttentionNorms;
  readonly cross: CrossAttentionParams;
};

export type EncoderDecoderParams = {
  readonly words: tf.Tensor; // [V, D], the head too
  readonly reader: {
    readonly picture: PictureTokenParams;
    /** What tells patches from words. */
    readonly patchKind: tf.Tensor; // [D]
    readonly patchNorm: LayerNormParams;
    readonly patchPosition: tf.Tensor; // [grid x grid, D]
    readonly patchPositionNorm: LayerNormParams;
    readonly wordKind: tf.Tensor; // [D]
    readonly wordNorm: LayerNormParams;
    readonly wordPosition: tf.Tensor; // [P, D]
    readonly wordPositionNorm: LayerNormParams;
    readonly byPosition: PositionProjections;
    readonly blocks: Stacked<ReaderBlockParams>;
    readonly finalNorm: LayerNormParams;
  };
  /**
   * Where a frame stands in its clip, [F, D]: what pictures have not. In the places of its patches, else attention, which
   * words look at frames by, would not know; and in the patches, since what is looked at tells no place.
   */
  readonly frame: tf.Tensor;
  readonly writer: {
    readonly wordNorm: LayerNormParams;
    readonly wordPosition: tf.Tensor; // [P, D]
    readonly wordPositionNorm: LayerNormParams;
    readonly byPosition: PositionProjections;
    /** From what is written to what was read. */
    readonly crossByPosition: PositionProjections;
    readonly blocks: Stacked<WriterBlockParams>;
    readonly finalNorm: LayerNormParams;
  };
};

export function initEncoderDecoder(
  sizes: EncoderDecoderSizes,
  init: Initializer,
): EncoderDecoderParams {
  const { picture, encoder: reader, decoder, vocabulary, wordPositions, gridPositions } = sizes;
  const { width } = reader;
  const std = 1 / Math.sqrt(width);
  const table = (path: string, rows: number): tf.Tensor => init.normal(path, [rows, width], std);
  const norm = (path: string): LayerNormParams => initLayerNorm(init, path, width);
  return {
    words: table('words', vocabulary),
    reader: {
      picture: initPictureTokens(picture, init, 'reader/picture'),
      patchKind: init.normal('reader/patchKind', [width], std),
      patchNorm: norm('reader/patchNorm'),
      patchPosition: table('reader/patchPosition', gridPositions ** 2),
      patchPositionNorm: norm('reader/patchPositionNorm'),
      wordKind: init.normal('reader/wordKind', [width], std),
      wordNorm: norm('reader/wordNorm'),
      wordPosition: table('reader/wordPosition', wordPositions),
      wordPositionNorm: norm('reader/wordPositionNorm'),
      byPosition: initPositionProjections(init, 'reader/byPosition', width),
      blocks: {
        '*': initReaderBlock(init.layers(reader.numLayers), 'reader/blocks/*', sizes),
      },
      finalNorm: norm('reader/finalNorm'),
    },
    // Zero: a clip's frames begin as the pictures that the model knows.
    frame: init.fill('frame', [sizes.numFrames, width], 0),
    writer: {
      wordNorm: norm('writer/wordNorm'),
      wordPosition: table('writer/wordPosition', wordPositions),
      wordPositionNorm: norm('writer/wordPositionNorm'),
      byPosition: initPositionProjections(init, 'writer/byPosition', width),
      crossByPosition: initPositionProjections(init, 'writer/crossByPosition', width),
      blocks: { '*': initWriterBlock(init.layers(decoder.numLayers), 'writer/blocks/*', decoder) },
      finalNorm: norm('writer/finalNorm'),
    },
  };
}

function initReaderBlock(
  init: Initializer,
  at: string,
  { encoder, gridPositions }: EncoderDecoderSizes,
): ReaderBlockParams {
  const { width, numHeads } = encoder;
  const distances = (name: string, rows: number): tf.Tensor =>
    init.fill(`${at}/${name}`, [rows, numHeads], 0);
  return {
    attentionNorms: initAttentionNorms(init, `${at}/attentionNorms`, encoder),
    attention: {
      qkv: initDense(init, `${at}/attention/qkv`, width, 3 * width),
      output: initDense(init, `${at}/attention/output`, width, width),
    },
    wordDistances: distances('wordDistances', NUM_WORD_DISTANCES),
    patchDistances: distances('patchDistances', numPatchDistances(gridPositions)),
    ...initNormedMlp(init, at, encoder),
  };
}

function initWriterBlock(init: Initializer, at: string, decoder: EncoderSizes): WriterBlockParams {
  const { width, numHeads } = decoder;
  const map = (name: string): DenseParams =>
    initDense(init, `${at}/attention/${name}`, width, width);
  return {
    attentionNorms: initAttentionNorms(init, `${at}/attentionNorms`, decoder),
    attention: {
      ...{ query: map('query'), key: map('key'), value: map('value'), output: map('output') },
    },
    wordDistances: init.fill(`${at}/wordDistances`, [NUM_WORD_DISTANCES, numHeads], 0),
    crossNorms: initAttentionNorms(init, `${at}/crossNorms`, decoder),
    cross: initCrossAttention(init, `${at}/cross`, { width, contextWidth: width }),
    ...initNormedMlp(init, at, decoder),
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

/** What the decoder looks at: states [B, F N + P, D], which of them are there, and their places [F N + P, D]. */
export type ReadStates = {
  readonly states: tf.Tensor;
  readonly present: tf.Tensor;
  readonly places: tf.Tensor;
};

/** Frames and prompt through the encoder, which sees all of them at once. */
export function readAll(
  params: EncoderDecoderParams,
  { pictures, ids, present }: ReaderInput,
  sizes: EncoderDecoderSizes,
): ReadStates {
  const { picture, encoder: reader, numFrames } = sizes;
  const { patchKind, patchNorm, wordKind, wordNorm, byPosition, blocks, finalNorm } = params.reader;
  const [batch, numWords] = ids.shape as [number, number];
  const numPatches = picture.gridSize ** 2;
  const patches = pictureTokens(params.reader.picture, pictures, picture);
  const clips = tf.reshape(patches, [batch, numFrames, numPatches, reader.width]);
  const frames = tf.reshape(params.frame, [1, numFrames, 1, reader.width]);
  const kept = tf.add(clips, tf.add(frames, patchKind));
  const seen = tf.reshape(kept, [batch, numFrames * numPatches, reader.width]);
  const prompt = tf.add(embed(params.words, ids), wordKind);
  const x = tf.concat(
    [layerNorm(patchNorm, seen, reader.epsilon), layerNorm(wordNorm, prompt, reader.epsilon)],
    1,
  );
  const all = tf.concat([tf.ones([batch, numFrames * numPatches]), present], 1);
  const places = placesOf(params, numWords, sizes);
  const scores = positionScores(byPosition, places, places, reader.numHeads);
  const states = repeatLayers(
    blocks,
    x,
    (block, state, [bias, positions]) =>
      readerBlock(block, state, { bias: bias!, positions: positions!, numWords }, sizes),
    { shared: [keyBias(all), scores] },
  );
  return { states: layerNorm(finalNorm, states, reader.epsilon), present: all, places };
}

/** Where each patch of each frame and each word of a prompt stands, [F N + P, D]. */
function placesOf(
  { reader: params, frame }: EncoderDecoderParams,
  numWords: number,
  {
    picture: { gridSize },
    encoder: { width, epsilon },
    gridPositions,
    numFrames,
  }: EncoderDecoderSizes,
): tf.Tensor {
  const grid = tf.reshape(params.patchPosition, [gridPositions, gridPositions, width]);
  const corner = gridSize === gridPositions ? grid : tf.slice(grid, 0, [gridSize, gridSize, width]);
  const patches = tf.reshape(corner, [1, gridSize ** 2, width]);
  const ofFrames = tf.add(patches, tf.reshape(frame, [numFrames, 1, width]));
  const placed = layerNorm(params.patchPositionNorm, ofFrames, epsilon);
  return tf.concat([
    tf.reshape(placed, [numFrames * gridSize ** 2, width]),
    wordPlaces(params, numWords, epsilon),
  ]);
}

/** Where each of so many words stands, [L, D]. */
function wordPlaces(
  {
    wordPosition,
    wordPositionNorm,
  }: Pick<EncoderDecoderParams['writer'], 'wordPosition' | 'wordPositionNorm'>,
  numWords: number,
  epsilon: number,
): tf.Tensor {
  return layerNorm(wordPositionNorm, tf.slice(wordPosition, 0, numWords), epsilon);
}

/**
 * Attention of all to all, and an MLP. Distances count between words, and between patches of one frame, as the released
 * code has it of two pictures; that between frames is told by their places.
 */
function readerBlock(
  params: ReaderBlockParams,
  x: tf.Tensor,
  {
    bias,
    positions,
    numWords,
  }: { readonly bias: tf.Tensor; readonly positions: tf.Tensor; readonly numWords: number },
  { encoder, picture: { gridSize }, gridPositions, numFrames }: EncoderDecoderSizes,
): tf.Tensor {
  const { numHeads, epsilon } = encoder;
  const { before, headScale, after } = params.attentionNorms;
  const numSeen = numFrames * gridSize ** 2;
  const words = distanceBias(params.wordDistances, wordDistances(numWords));
  const patches = withinFrames(
    distanceBias(params.patchDistances, patchDistances(gridSize, gridPositions)),
    numFrames,
  );
  const distances = tf.add(inCorner(words, numSeen, 0), inCorner(patches, 0, numWords));
  const { qkv, output } = params.attention;
  const attended = selfAttention(
    { qkv, output: withHeadScale(output, headScale) },
    layerNorm(before, x, epsilon),
    { numHeads, bias, positions: tf.add(positions, distances) },
  );
  return addNormedMlp(params, tf.add(x, layerNorm(after, attended, epsilon)), encoder);
}

/** Scores within a frame [1, A, N, N] as those within each of F, and 0 between them, [1, A, F N, F N]. */
function withinFrames(scores: tf.Tensor, numFrames: number): tf.Tensor {
  if (numFrames === 1) return scores;
  const [, numHeads, count] = scores.shape as [number, number, number];
  const apart = tf.reshape(scores, [numHeads, 1, count, 1, count]);
  const isSame = tf.reshape(tf.eye(numFrames), [1, numFrames, 1, numFrames, 1]);
  const length = numFrames * count;
  return tf.reshape(tf.mul(apart, isSame), [1, numHeads, length, length]);
}

/** Scores [1, A, L, L] with so many rows and columns of zeros before them, and behind. */
function inCorner(scores: tf.Tensor, before: number, behind: number): tf.Tensor {
  const added: [number, number] = [before, behind];
  return tf.pad(scores, [[0, 0], [0, 0], added, added]);
}

/** Logits of the token after each of ids [B, A] (int32), [B, A, V]; each sees those before it, and all that was read. */
export function writtenLogits(
  params: EncoderDecoderParams,
  ids: tf.Tensor,
  read: ReadStates,
  { decoder }: EncoderDecoderSizes,
): tf.Tensor {
  const { wordNorm, blocks, finalNorm } = params.writer;
  const length = ids.shape[1]!;
  const x = layerNorm(wordNorm, embed(params.words, ids), decoder.epsilon);
  const { own, cross } = writerScores(params.writer, length, read.places, decoder);
  const shared = [causalBias(length), own, read.states, keyBias(read.present), cross];
  const states = repeatLayers(
    blocks,
    x,
    (block, state, [bias, positions, context, contextBias, contextPositions]) =>
      writerBlock(
        block,
        state,
        {
          ...{ bias: bias!, positions: positions!, distances: wordDistances(length) },
          ...{ context: context!, contextBias: contextBias!, contextPositions: contextPositions! },
        },
        decoder,
      ).output,
    { shared },
  );
  return tiedLogits(params.words, layerNorm(finalNorm, states, decoder.epsilon));
}

/** How much each of so many places looks at each of them, [1, A, L, L], and at each that was read, [1, A, L, F N + P]. */
function writerScores(
  params: EncoderDecoderParams['writer'],
  length: number,
  readPlaces: tf.Tensor,
  { numHeads, epsilon }: EncoderSizes,
): { readonly own: tf.Tensor; readonly cross: tf.Tensor } {
  const places = wordPlaces(params, length, epsilon);
  return {
    own: positionScores(params.byPosition, places, places, numHeads),
    cross: positionScores(params.crossByPosition, places, readPlaces, numHeads),
  };
}

/** What a writer keeps from token to token. */
export type WriterState = KeyValues & {
  /** 1 for slots that hold a token, [B, S]. */
  readonly taken: tf.Tensor;
  /** The next slot, a scalar int32. */
  readonly slot: tf.Tensor;
  readonly states: tf.Tensor;
  readonly present: tf.Tensor;
  /** How much each slot's place looks at each slot's, [1, A, S, S]. */
  readonly own: tf.Tensor;
  /** At each that was read, [1, A, S, F N + P]. */
  readonly cross: tf.Tensor;
};

/** The model as generation sees it; every text begins with `startId`, which the prompt does not hold. */
export function writerOf(
  sizes: EncoderDecoderSizes,
  startId: number,
): LanguageModel<EncoderDecoderParams, ReaderInput, WriterState> {
  const { decoder } = sizes;
  const step = (
    params: EncoderDecoderParams,
    { key, value, taken, slot, states: context, present, own, cross }: WriterState,
    tokens: tf.Tensor,
  ) => {
    const { wordNorm, blocks, finalNorm } = params.writer;
    const [batch, numSlots] = taken.shape as [number, number];
    const word = embed(params.words, tf.reshape(tokens, [batch, 1]));
    const x = layerNorm(wordNorm, word, decoder.epsilon);
    const seen = keyBias(tf.concat([taken, tf.ones([batch, 1])], 1));
    const here = tf.reshape(slot, [1]);
    // Behind the slots stands the token itself, which is not in its slot yet.
    const toSlots = tf.gather(own, here, 2); // [1, A, 1, S]
    const positions = tf.concat([toSlots, tf.gather(toSlots, here, 3)], 3);
    const distances = tf.concat(
      [
        tf.gather(wordDistances(numSlots), here),
        tf.tensor2d([[wordDistanceRow(0)]], [1, 1], 'int32'),
      ],
      1,
    );
    const { output, made } = scanLayers(
      { '*': { block: blocks['*'], past: { key, value } } },
      x,
      ({ block, past }, state, [bias, ownScores, index, read, readBias, readScores]) =>
        writerBlock(
          block,
          state,
          {
            ...{ bias: bias!, positions: ownScores!, distances: index!, past },
            ...{ context: read!, contextBias: readBias!, contextPositions: readScores! },
          },
          decoder,
        ),
      {
        shared: [
          ...[seen, positions, distances],
          ...[context, keyBias(present), tf.gather(cross, here, 2)],
        ],
      },
    );
    const last = layerNorm(finalNorm, output, decoder.epsilon);
    const isHere = tf.cast(slotMask(slot, numSlots), 'float32');
    return {
      logits: tf.squeeze(tiedLogits(params.words, last), [1]),
      state: {
        ...withSlot({ key, value }, slot, made),
        taken: tf.maximum(taken, isHere),
        slot: tf.add(slot, tf.scalar(1, 'int32')),
        ...{ states: tf.clone(context), present: tf.clone(present) },
        ...{ own: tf.clone(own), cross: tf.clone(cross) },
      },
    };
  };
  return {
    name: 'encoder_decoder',
    prefill(params, input, numSteps) {
      const { states, present, places } = readAll(params, input, sizes);
      const batch = input.ids.shape[0];
      const numSlots = numSteps + 1;
      const headWidth = decoder.width / decoder.numHeads;
      const slots = [decoder.numLayers, batch, decoder.numHeads, numSlots, headWidth];
      const state = {
        ...{ key: tf.zeros(slots), value: tf.zeros(slots) },
        taken: tf.zeros([batch, numSlots]),
        slot: tf.scalar(0, 'int32'),
        ...{ states, present },
        ...writerScores(params.writer, numSlots, places, decoder),
      };
      return step(params, state, tf.fill([batch], startId, 'int32'));
    },
    step,
    select: ({ key, value, taken, slot, states, present, own, cross }, rows) => ({
      ...cacheRows({ key, value }, rows),
      taken: tf.gather(taken, rows),
      slot: tf.clone(slot),
      states: tf.gather(states, rows),
      present: tf.gather(present, rows),
      ...{ own: tf.clone(own), cross: tf.clone(cross) },
    }),
  };
}

/** What a block of the decoder sees beside the states [B, L, D]; S slots of `past`, M states that were read. */
interface WriterContext {
  readonly bias: tf.Tensor; // [B, 1, L, S + L]
  readonly positions: tf.Tensor; // [1, A, L, S + L]
  /** Which row of the table of distances is which, [L, S + L] int32. */
  readonly distances: tf.Tensor;
  readonly context: tf.Tensor; // [B, M, D]
  readonly contextBias: tf.Tensor; // [B, 1, 1, M]
  readonly contextPositions: tf.Tensor; // [1, A, L, M]
  readonly past?: KeyValues;
}

/** Attention to what is written, to what was read, and an MLP. */
function writerBlock(
  params: WriterBlockParams,
  x: tf.Tensor,
  { bias, positions, distances, context, contextBias, contextPositions, past }: WriterContext,
  decoder: EncoderSizes,
): { readonly output: tf.Tensor; readonly made: KeyValues } {
  const { numHeads, epsilon } = decoder;
  const { attention, attentionNorms, cross, crossNorms } = params;
  const { output, made } = decoderAttention(
    { ...attention, output: withHeadScale(attention.output, attentionNorms.headScale) },
    layerNorm(attentionNorms.before, x, epsilon),
    {
      ...{ bias, numHeads, numKeyValueHeads: numHeads },
      positions: tf.add(positions, distanceBias(params.wordDistances, distances)),
      ...(past === undefined ? {} : { past }),
    },
  );
  const written = tf.add(x, layerNorm(attentionNorms.after, output, epsilon));
  const crossed = crossAttention(
    { ...cross, output: withHeadScale(cross.output, crossNorms.headScale) },
    layerNorm(crossNorms.before, written, epsilon),
    context,
    { numHeads, bias: contextBias, positions: contextPositions },
  );
  const read = tf.add(written, layerNorm(crossNorms.after, crossed, epsilon));
  return { output: addNormedMlp(params, read, decoder), made };
}
