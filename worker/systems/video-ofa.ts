/**
 * VideoOFA: a model that writes about pictures becomes one that writes about clips: captions, whether words and clip
 * match, the order of frames, all as text of one decoder. Source: Chen et al. 2023, arXiv:2305.03204.
 */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { VideoloomError } from '../../proto/errors.ts';
import { count, share, type RunConfig } from '../config-fields.ts';
import type { ObjectiveSums } from '../losses/cross-entropy.ts';
import { nextTokenSums } from '../losses/next-token.ts';
import {
  initEncoderDecoder,
  readAll,
  writerOf,
  writtenLogits,
  type EncoderDecoderParams,
  type EncoderDecoderSizes,
  type ReaderInput,
  type ReadStates,
  type WriterState,
} from '../models/encoder-decoder.ts';
import type { LanguageModel } from '../models/language-model.ts';
import { STEM_STRIDE } from '../models/resnet-stem.ts';
import { constantOf } from '../tokens/constant.ts';
import { CLIP_PIXELS, normalizePixels } from '../tokens/pixels.ts';
import { countedOf, floatArray, intArray } from './host-arrays.ts';
import {
  defineSystem,
  isOneFrame,
  isOneMediumWithWords,
  type AnsweringParams,
  type HeldOutTask,
  type HostBatch,
  type Row,
  type SystemContext,
  type VideoLanguageSystem,
} from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import { textClasses } from './text-number.ts';
import { checkBlocks, checkPixels, encoderFields, encoderSizes } from './tower-fields.ts';
import {
  answerIds,
  assembleOfa,
  assembleOfaQuestion,
  ofaQuestionGiven,
  OFA_TRAINING,
  ofaTexts,
  TASKS,
  type OfaAssembly,
  type OfaQuestion,
} from './video-ofa-batch.ts';
import { wholeAnswers } from './whole-answers.ts';
import { wholeWords } from './whole-words.ts';

const fields = z.strictObject({
  name: z.literal('video-ofa').describe('Chen et al. 2023, arXiv:2305.03204'),
  stem: z
    .array(count('Blocks of a stage'))
    .nullable()
    .describe('Blocks of the stages of a ResNet that pictures go through first; null: patches'),
  patchSize: count('Height and width of a patch, pixels; 16 behind a stem of three stages'),
  encoder: encoderFields.describe('What reads frames and prompt together'),
  decoder: encoderFields.describe('What writes; as wide as the encoder'),
  vocabulary: count(
    'Rows of the table of word pieces; the tokenizer is trained to at most so many',
    32,
  ),
  promptTokens: count('Word pieces of a prompt; longer ones are cut'),
  answerTokens: count('Word pieces of an answer, its start and end included', 3),
  wordPositions: count(
    'Places of word pieces that there are weights for; at least promptTokens and answerTokens, more if later stages are to read or write longer texts',
  ),
  gridPositions: count(
    'Rows and columns of patches that there are weights for; at least data.frameSize / patchSize, more if later stages are to see larger pictures',
  ),
  tasks: z
    .strictObject({
      caption: share('Share of the samples whose caption is asked'),
      match: share('Share of those asked whether a caption matches'),
      order: share('Share of those whose frames are shuffled, and their order asked'),
    })
    .describe('What is asked; the shares count by their sum'),
  orderNamesCaption: z
    .boolean()
    .describe(
      'Whether a question of order says what the clip shows, which may tell the direction of time',
    ),
});

type OfaConfig = z.infer<typeof fields>;

export const videoOfa = defineSystem<OfaConfig, EncoderDecoderParams>({
  schema: fields,
  sampleKind: 'a picture or a clip of one video, with words',
  takes: isOneMediumWithWords,
  check: ({ model, data }) => {
    const { encoder, decoder, stem, patchSize, tasks } = model;
    if (encoder.width !== decoder.width) {
      return `model.encoder.width (${encoder.width}) and model.decoder.width (${decoder.width}) differ`;
    }
    if (data.framesPerWindow !== 1) {
      return `data.framesPerWindow is ${data.framesPerWindow}, and each window shows one frame: set it to 1`;
    }
    if (data.frameSize % patchSize !== 0) {
      return `data.frameSize (${data.frameSize}) is not a multiple of model.patchSize (${patchSize})`;
    }
    if (stem !== null && (patchSize !== STEM_STRIDE || stem.length !== 3)) {
      return `model.stem has three stages and model.patchSize ${STEM_STRIDE}`;
    }
    const missing = missingPositions(model, data);
    if (missing !== undefined) return missing;
    if (tasks.caption + tasks.match + tasks.order === 0) return 'model.tasks asks nothing';
    if (tasks.order > 0 && model.answerTokens < data.windows + 2) {
      return `model.answerTokens (${model.answerTokens}) has no room for the order of data.windows (${data.windows}) frames, a start and an end: set it to ${data.windows + 2} or more`;
    }
    return (
      checkPixels(data) ??
      checkBlocks('model.encoder', encoder) ??
      checkBlocks('model.decoder', decoder)
    );
  },
  async fit(context) {
    // Later stages show more frames than this one may, and keep its words.
    const texts = ofaTexts(Math.max(MOST_COUNTED, context.config.data.windows));
    const { vocabulary } = context.config.model;
    const { vocabularySize } = await fitTokenizer(context, vocabulary, texts);
    return `${vocabularySize} word pieces`;
  },
  open,
});

/** Frames whose numbers the first stage's tokenizer knows at least. */
const MOST_COUNTED = 10;

/** Which table of positions has fewer rows than are used, if any. */
function missingPositions(
  { wordPositions, gridPositions, promptTokens, answerTokens, patchSize }: OfaConfig,
  { frameSize }: RunConfig['data'],
): string | undefined {
  const uses = [
    ['model.wordPositions', wordPositions, 'model.promptTokens', promptTokens],
    ['model.wordPositions', wordPositions, 'model.answerTokens', answerTokens],
    [
      'model.gridPositions',
      gridPositions,
      'data.frameSize / model.patchSize',
      frameSize / patchSize,
    ],
  ] as const;
  const short = uses.find(([, rows, , used]) => rows < used);
  if (short === undefined) return undefined;
  const [name, rows, use, used] = short;
  return `${name} (${rows}) is less than ${use} (${used}): there are no weights for the places behind`;
}

export function ofaSizes(model: OfaConfig, data: RunConfig['data']): EncoderDecoderSizes {
  const kind = { activation: 'gelu', epsilon: 1e-5 } as const;
  const { patchSize, stem, encoder, decoder, vocabulary, wordPositions, gridPositions } = model;
  const gridSize = data.frameSize / patchSize;
  return {
    picture: { width: encoder.width, patchSize, gridSize, stem: stem ?? undefined },
    encoder: encoderSizes(encoder, kind),
    decoder: encoderSizes(decoder, kind),
    ...{ vocabulary, wordPositions, gridPositions },
    numFrames: data.windows,
  };
}

/** What the encoder is given. */
type OfaPrompt = { readonly [K in 'pixels' | 'ids' | 'present']: tf.Tensor };

type OfaBatch = OfaPrompt & {
  readonly [K in 'answers' | 'captionLabels' | 'matchLabels' | 'orderLabels' | 'places']: tf.Tensor;
} & {
  /** In a held-out question: which rows count, by their whole answer as the model writes it. */
  readonly answerWeights?: tf.Tensor; // [B]
  /** In a question of order: which pairs of frames count, [B, F, F]. */
  readonly pairWeights?: tf.Tensor;
};

async function open({
  config: { model, data, train },
  folder,
  index,
}: SystemContext<OfaConfig>): Promise<VideoLanguageSystem<EncoderDecoderParams>> {
  const tokenizer = await readTokenizer(folder);
  const sizes = ofaSizes(model, data);
  const { frameSize } = data;
  const assembly: OfaAssembly = {
    seed: train.seed,
    tokenizer,
    numFrames: data.windows,
    frameBytes: frameSize * frameSize * 3,
    promptLength: model.promptTokens,
    answerLength: model.answerTokens,
    tasks: model.tasks,
    orderNamesCaption: model.orderNamesCaption,
  };
  const frames = [...Array(data.windows).keys()].map(String);
  const numbers = wholeWords(tokenizer, frames);
  const untold = frames.find((frame) => !numbers.has(frame));
  if (model.tasks.order > 0 && untold !== undefined) {
    throw new VideoloomError(
      'CONFIG_INVALID',
      `data.windows is ${data.windows}, and ${untold} is no word of the tokenizer that the run began with, by which the ` +
        'order of the frames is told: show fewer frames, set model.tasks.order to 0, or begin with a stage of as many',
    );
  }
  const digits = new Float32Array(model.vocabulary).fill(-1); // the number that each word piece says
  for (const [frame, id] of numbers) digits[id] = Number(frame);
  const given = ({ pixels, ids, present }: OfaPrompt): ReaderInput => {
    const count = pixels.shape[0] * data.windows;
    const pictures = normalizePixels(pixels, [count, frameSize, frameSize, 3], CLIP_PIXELS);
    return { pictures, ids, present };
  };
  const sums = (params: EncoderDecoderParams, batch: OfaBatch): Record<string, ObjectiveSums> => {
    const states = readAll(params, given(batch), sizes);
    const logits = writtenLogits(params, batch.answers, states, sizes);
    const byTask = Object.fromEntries(
      TASKS.map((task) => [task, nextTokenSums(logits, batch[`${task}Labels`])]),
    );
    const { answerWeights, pairWeights } = batch;
    if (answerWeights === undefined) return byTask;
    const correct =
      pairWeights === undefined
        ? tf.mul(wholeAnswers(logits, batch.answers, tokenizer.special.sep), answerWeights)
        : tf.mul(rightPairs(writtenOrder(params, states, batch, sizes), digits), pairWeights);
    return Object.fromEntries(
      Object.entries(byTask).map(([task, { lossSum }]) => [
        task,
        { lossSum, correct: tf.sum(correct) },
      ]),
    );
  };
  const ask = (rows: readonly Row[], question: OfaQuestion): HostBatch => {
    const batch = assembleOfa(assembly, rows, index.heldOut, question);
    const answerWeights = floatArray(rows.length);
    answerWeights.data.fill(1);
    return { ...batch, arrays: { ...batch.arrays, answerWeights } };
  };
  const captions = textClasses(
    index.heldOut.map(({ text }) => text),
    (text) => answerIds(assembly, text),
  );
  const caption: HeldOutTask = {
    name: 'caption-exact',
    objective: 'caption',
    numClasses: captions.texts.length,
    assemble: (rows) => {
      const batch = ask(rows, { purpose: 'caption', task: 'caption' });
      const answerClasses = intArray(rows.length);
      for (const [i, { sample }] of rows.entries()) {
        answerClasses.data[i] = captions.classOf(sample.text)!;
      }
      return { ...batch, arrays: { ...batch.arrays, answerClasses } };
    },
    labels: ({ arrays }) => countedOf(arrays['answerClasses']!, arrays['answerWeights']!),
  };
  const match: HeldOutTask = {
    name: 'match-accuracy',
    objective: 'match',
    numClasses: model.vocabulary,
    assemble: (rows) => ask(rows, { purpose: 'match', task: 'match' }),
    labels: ({ arrays }) => {
      const { data: ids } = arrays['answers']!;
      const first = floatArray(arrays['answerWeights']!.shape[0]!);
      for (let i = 0; i < first.data.length; i++) first.data[i] = ids[i * model.answerTokens + 1]!;
      return countedOf(first, arrays['answerWeights']!);
    },
  };
  const order = (namesCaption: boolean): HeldOutTask => {
    const name = namesCaption ? 'frame-order-accuracy' : 'frame-order-blind-accuracy';
    return {
      name,
      objective: 'order',
      numClasses: 2,
      assemble: (rows) => {
        const batch = ask(rows, { purpose: name, task: 'order', namesCaption });
        const { windows } = data;
        const [pairWeights, pairClasses] = [
          floatArray(rows.length, windows, windows),
          intArray(rows.length, windows, windows),
        ];
        const { data: places } = batch.arrays['places']!;
        for (let r = 0; r < rows.length; r++) {
          for (let i = 0; i < windows; i++) {
            for (let j = i + 1; j < windows; j++) {
              const at = (r * windows + i) * windows + j;
              const [first, second] = [places[r * windows + i]!, places[r * windows + j]!];
              pairWeights.data[at] = isOneFrame(rows[r]!, first, second) ? 0 : 1;
              pairClasses.data[at] = first < second ? 0 : 1;
            }
          }
        }
        return { ...batch, arrays: { ...batch.arrays, pairWeights, pairClasses } };
      },
      labels: ({ arrays }) => countedOf(arrays['pairClasses']!, arrays['pairWeights']!),
    };
  };

  return {
    name: 'video-ofa',
    objectives: Object.fromEntries(TASKS.map((task) => [task, 1])),
    heldOutTasks: [
      ...(model.tasks.caption > 0 ? [caption] : []),
      ...(model.tasks.match > 0 ? [match] : []),
      ...(model.tasks.order > 0 ? [order(true), order(false)] : []),
    ],
    init: (initializer) => initEncoderDecoder(sizes, initializer),
    frozen: {},
    decays: (path, shape) =>
      shape.length > 1 && !/(^|\/)(words|frame|\w+Position|\w+Distances)$/.test(path),
    assemble: (rows) => assembleOfa(assembly, rows, index.train, OFA_TRAINING),
    answers: {
      assemble: (rows, question) => assembleOfaQuestion(assembly, rows, question),
      given: (_row, question) => ofaQuestionGiven({ ...assembly, tokenizer }, question),
      model: answeringWriter(writerOf(sizes, tokenizer.special.cls), given),
      eosIds: [tokenizer.special.sep],
      maxNewTokens: model.answerTokens - 1, // its start is given
      decode: (ids) => tokenizer.decode(ids),
    },
    sums: (params, _frozen, batch) => sums(params, batch as OfaBatch),
  };
}

/** The writer that is asked about packed frames. */
function answeringWriter(
  writer: LanguageModel<EncoderDecoderParams, ReaderInput, WriterState>,
  given: (prompt: OfaPrompt) => ReaderInput,
): LanguageModel<AnsweringParams<EncoderDecoderParams>> {
  return {
    name: writer.name,
    prefill: ({ params }, prompt, numSteps) =>
      writer.prefill(params, given(prompt as OfaPrompt), numSteps),
    step: ({ params }, state, tokens) => writer.step(params, state as WriterState, tokens),
    select: (state, rows) => writer.select(state as WriterState, rows),
  };
}

/** What the model writes by itself where the numbers of an order stand, and these numbers, [B, F] int32; no gradient. */
function writtenOrder(
  params: EncoderDecoderParams,
  states: ReadStates,
  { answers, places }: Pick<OfaBatch, 'answers' | 'places'>,
  sizes: EncoderDecoderSizes,
): { readonly written: tf.Tensor; readonly places: tf.Tensor } {
  const [batch, numFrames] = places.shape as [number, number];
  const all = constantOf(() => {
    let written = tf.slice(answers, [0, 0], [batch, 1]);
    while (written.shape[1]! <= numFrames) {
      const logits = writtenLogits(params, written, states, sizes);
      const last = tf.slice(logits, [0, written.shape[1]! - 1, 0], [batch, 1, -1]);
      written = tf.concat([written, tf.cast(tf.argMax(last, -1), 'int32')], 1);
    }
    return written;
  });
  return { written: tf.slice(all, [0, 1], [batch, numFrames]), places };
}

/**
 * Which pairs of frames a written order has as they are, [B, F, F]: of the shown frames `i` and `j`, whether the order
 * names them as they follow in the film. One that it does not name is never right; of one named twice the first counts.
 * @param written ids of word pieces, [B, F]
 * @param places where each shown frame stands in the film, [B, F]
 * @param digits the number that each word piece says
 */
export function rightPairs(
  { written, places }: { readonly written: tf.Tensor; readonly places: tf.Tensor },
  digits: Float32Array,
): tf.Tensor {
  const numFrames = places.shape[1]!;
  const named = tf.expandDims(tf.gather(tf.tensor1d(digits), written), 1); // [B, 1, F], by place
  const isNamed = tf.cast(
    tf.equal(named, tf.reshape(tf.range(0, numFrames), [1, -1, 1])),
    'float32',
  );
  const told = tf.cast(tf.argMax(isNamed, -1), 'float32'); // the first place, [B, F], by frame
  const truth = tf.cast(places, 'float32');
  const sign = (x: tf.Tensor): tf.Tensor =>
    tf.sign(tf.sub(tf.expandDims(x, 2), tf.expandDims(x, 1)));
  const isThere = tf.max(isNamed, -1);
  const bothThere = tf.mul(tf.expandDims(isThere, 2), tf.expandDims(isThere, 1));
  return tf.mul(tf.cast(tf.equal(sign(told), sign(truth)), 'float32'), bothThere);
}
