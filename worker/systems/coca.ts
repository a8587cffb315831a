/** CoCa: contrast over the global batch and captions by one model. Source: Yu et al. 2022, arXiv:2205.01917. */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import type { Sample } from '../../video/index/sample.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { count, type RunConfig } from '../config-fields.ts';
import { infoNceSums, LOGIT_SCALE_BOUNDS } from '../losses/contrastive.ts';
import type { ObjectiveSums } from '../losses/cross-entropy.ts';
import { NO_LABEL, nextTokenSums, numNextTokens } from '../losses/next-token.ts';
import {
  cocaContext,
  cocaImages,
  cocaLogits,
  cocaStates,
  cocaTexts,
  initCoca,
  type CocaParams,
  type CocaSizes,
} from '../models/coca.ts';
import { cocaWriter, type CocaWriterState } from '../models/coca-writer.ts';
import type { LanguageModel } from '../models/language-model.ts';
import { encoderKind } from '../part-kind.ts';
import { constantOf } from '../tokens/constant.ts';
import { CLIP_PIXELS } from '../tokens/pixels.ts';
import { decaysMatrices } from './dialogue-system.ts';
import { countedOf, floatArray, intArray, packedFrames } from './host-arrays.ts';
import {
  channelsOf,
  clipPictures,
  momentsOf,
  picturesPerClip,
  retrievalFields,
  retrievalSystem,
  type ClipShape,
} from './retrieval.ts';
import {
  defineSystem,
  isOneMediumWithWords,
  type AnsweringParams,
  type HeldOutTask,
  type HostBatch,
  type Row,
  type VideoLanguageSystem,
} from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import { textClasses } from './text-number.ts';
import {
  checkBlocks,
  checkVision,
  encoderSizes,
  textFields,
  visionFields,
  visionSizes,
} from './tower-fields.ts';
import { wholeAnswers } from './whole-answers.ts';

const weight = (what: string) => z.number().nonnegative().describe(what);

const fields = z.strictObject({
  name: z.literal('coca').describe('Yu et al. 2022, arXiv:2205.01917'),
  vision: visionFields.describe('The tower that sees; learned queries read its tokens'),
  text: textFields.describe('The half of the decoder that reads words alone'),
  decoderLayers: count('Blocks of the half that looks at what is seen, and writes'),
  captionQueries: count('Queries that read the tower for the second half'),
  embedding: count('Width of the space that clips and texts share'),
  ...retrievalFields,
  frames: retrievalFields.frames.describe(
    'tubelets: all frames in one sequence, those of a window in one token; bag: each frame by itself, and the poolers look ' +
      'at the tokens of all of them, which cannot tell their order',
  ),
  weights: z
    .strictObject({
      contrastive: weight('Of telling clips and texts apart'),
      captioning: weight('Of writing them'),
    })
    .describe('What the losses count in their sum'),
});

type CocaConfig = z.infer<typeof fields>;

export const coca = defineSystem<CocaConfig, CocaParams>({
  schema: fields,
  sampleKind: 'a picture or a clip of one video, with words',
  takes: isOneMediumWithWords,
  check: ({ model: { vision, text, weights }, data }) =>
    weights.contrastive + weights.captioning === 0
      ? 'model.weights are both 0, and nothing is learned: set one of them to more'
      : (checkVision('model.vision', vision, data) ?? checkBlocks('model.text', text)),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.text.vocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder, index }) {
    const tokenizer = await readTokenizer(folder);
    return cocaSystem(model, { data, seed: train.seed, tokenizer, splits: index });
  },
});

export function cocaSizes(
  { vision, text, decoderLayers, captionQueries, embedding, frames }: CocaConfig,
  data: RunConfig['data'],
): CocaSizes {
  const kind = { activation: 'gelu', epsilon: 1e-5 } as const;
  const [channels, moments] = [channelsOf(frames, data), momentsOf(frames, data)];
  return {
    vision: visionSizes(vision, { imageSize: data.frameSize, channels, moments }, kind),
    text: encoderSizes(text, kind),
    decoder: encoderSizes({ ...text, layers: decoderLayers }, kind),
    ...{ vocabulary: text.vocabulary, length: text.maxTokens, captionQueries, embedding },
  };
}

type CocaBatch = {
  readonly pixels: tf.Tensor; // [B, bytes / 4] int32
  readonly ids: tf.Tensor; // [B, L] int32
  /** In a held-out caption alone: 1 for rows that count, by their whole text as it is written, [B]. */
  readonly answerWeights?: tf.Tensor;
  readonly candidates?: tf.Tensor;
};

function cocaSystem(
  config: CocaConfig,
  {
    data,
    seed,
    tokenizer,
    splits,
  }: {
    readonly data: RunConfig['data'];
    readonly seed: number;
    readonly tokenizer: Tokenizer;
    readonly splits: { readonly heldOut: readonly Sample[] };
  },
): VideoLanguageSystem<CocaParams> {
  const sizes = cocaSizes(config, data);
  const { vision, text, frames, weights } = config;
  const { cls, sep, pad } = tokenizer.special;
  const shape: ClipShape = { data, frames, pixels: CLIP_PIXELS };
  const perClip = picturesPerClip(shape);
  const see = (params: CocaParams, pixels: tf.Tensor): tf.Tensor =>
    cocaStates(params, clipPictures(pixels, shape), perClip, sizes);
  const read = (params: CocaParams, ids: tf.Tensor) =>
    cocaTexts(params, { ids, present: presentOf(ids, pad) }, sizes);
  const write = (params: CocaParams, states: tf.Tensor, words: tf.Tensor): tf.Tensor =>
    cocaLogits(params, words, cocaContext(params, states, sizes), sizes);

  const retrieval = retrievalSystem<CocaParams>({
    ...{ name: 'coca', seed, tokenizer, splits, hasStart: true, maxTokens: text.maxTokens },
    tokensOfClip: data.windows * (data.frameSize / vision.patchSize) ** 2,
    kinds: {
      vision: encoderKind(sizes.vision),
      contrastPool: encoderKind(sizes.vision),
      captionPool: encoderKind(sizes.vision),
      text: encoderKind(sizes.text),
      decoder: encoderKind(sizes.decoder),
    },
    published: [],
    parameters: ['logitScale'],
    bounds: { logitScale: LOGIT_SCALE_BOUNDS },
    init: (initializer) => initCoca(sizes, initializer),
    clips: (params, pixels) => cocaImages(params, see(params, pixels), sizes),
    texts: (params, ids) => read(params, ids).texts,
    sums: ({ logitScale }, pairs) => {
      const { lossSum, correct } = infoNceSums(
        pairs,
        tf.exp(logitScale),
        config.contrastChunk ?? undefined,
      );
      // Both directions count whole: CoCa's sum has no 1/2, or captions would weigh four times as much, not twice.
      return { lossSum: tf.mul(lossSum, 2), correct };
    },
  });
  const contrast = retrieval.contrast!;

  const withCaptions = (batch: HostBatch): HostBatch => {
    const ids = batch.arrays['ids']!.data;
    const labels = Int32Array.from(ids, (id) => (id === pad ? NO_LABEL : id));
    const captioning = numNextTokens(labels, text.maxTokens);
    return { ...batch, counts: { ...batch.counts, captioning } };
  };
  const assemble = (rows: readonly Row[]): HostBatch => withCaptions(retrieval.assemble(rows));
  const idsOf = (words: string): number[] => tokenizer.encode(words).slice(0, text.maxTokens - 2);
  const captions = textClasses(
    splits.heldOut.map((sample) => sample.text),
    idsOf,
  );
  const caption: HeldOutTask = {
    name: 'caption-exact',
    objective: 'captioning',
    numClasses: captions.texts.length,
    assemble(rows) {
      const batch = assemble(rows);
      const [answerClasses, answerWeights] = [intArray(rows.length), floatArray(rows.length)];
      for (const [i, { sample }] of rows.entries())
        answerClasses.data[i] = captions.classOf(sample.text)!;
      answerWeights.data.fill(1);
      return { ...batch, arrays: { ...batch.arrays, answerClasses, answerWeights } };
    },
    labels: ({ arrays }) => countedOf(arrays['answerClasses']!, arrays['answerWeights']!),
  };
  const captioned = ({ ids, answerWeights }: CocaBatch, logits: tf.Tensor): ObjectiveSums => {
    const labels = constantOf(() =>
      tf.where(tf.equal(ids, tf.scalar(pad, 'int32')), tf.scalar(NO_LABEL, 'int32'), ids),
    );
    const sums = nextTokenSums(logits, labels);
    if (answerWeights === undefined) return sums;
    const isWhole = wholeAnswers(logits, ids, sep);
    return { ...sums, correct: tf.sum(tf.mul(isWhole, answerWeights)) };
  };

  return {
    ...retrieval,
    objectives: { contrastive: weights.contrastive, captioning: weights.captioning },
    heldOutTasks: [...retrieval.heldOutTasks, caption],
    decays: decaysMatrices,
    assemble,
    answers: {
      assemble: (rows) => ({
        arrays: { pixels: packedFrames(rows) },
        counts: {},
        numTokens: rows.length,
      }),
      given: () => ({ question: '', cutTo: 0 }),
      model: writerOfClips(cocaWriter(sizes, cls), (params, pixels) =>
        cocaContext(params, see(params, pixels), sizes),
      ),
      eosIds: [sep],
      maxNewTokens: text.maxTokens - 1, // its start is given
      decode: (ids) => tokenizer.decode(ids),
    },
    sums(params, frozen, batch) {
      const given = batch as CocaBatch;
      if (given.candidates !== undefined) return retrieval.sums(params, frozen, batch);
      const { words } = read(params, given.ids);
      return { captioning: captioned(given, write(params, see(params, given.pixels), words)) };
    },
    contrast: {
      ...contrast,
      together(params, _frozen, batch) {
        const given = batch as CocaBatch & { readonly captions: tf.Tensor };
        const states = see(params, given.pixels);
        const { words, texts } = read(params, given.ids);
        return {
          embeddings: {
            clips: cocaImages(params, states, sizes),
            texts,
            captionIds: given.captions,
          },
          sums: { captioning: captioned(given, write(params, states, words)) },
        };
      },
    },
  };
}

/** 1 for tokens, 0 for padding, [B, L]. */
function presentOf(ids: tf.Tensor, pad: number): tf.Tensor {
  return constantOf(() => tf.cast(tf.notEqual(ids, tf.scalar(pad, 'int32')), 'float32'));
}

/** The writer that is given packed frames. */
function writerOfClips(
  writer: LanguageModel<CocaParams, { readonly context: tf.Tensor }, CocaWriterState>,
  contextOf: (params: CocaParams, pixels: tf.Tensor) => tf.Tensor,
): LanguageModel<AnsweringParams<CocaParams>> {
  return {
    name: writer.name,
    prefill: ({ params }, prompt, numSteps) => {
      const context = contextOf(params, (prompt as { readonly pixels: tf.Tensor }).pixels);
      return writer.prefill(params, { context }, numSteps);
    },
    step: ({ params }, state, tokens) => writer.step(params, state as CocaWriterState, tokens),
    select: (state, rows) => writer.select(state as CocaWriterState, rows),
  };
}
