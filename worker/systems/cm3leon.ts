/**
 * CM3leon: a language model over one stream of words and codes of a picture, which writes either from the other. Source: Yu
 * et al. 2023, arXiv:2309.02591. Differences: no documents are retrieved, a sequence is one picture with its text, and the
 * codes are those of a codebook of patches in place of a learned tokenizer's.
 */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { UsageError } from '../../proto/errors.ts';
import type { Sample } from '../../video/index/sample.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { picturedPatches } from '../../video/visual-words/patch-features.ts';
import {
  featuresOfWords,
  type VisualVocabulary,
} from '../../video/visual-words/visual-vocabulary.ts';
import { count, share, type RunConfig } from '../config-fields.ts';
import { crossEntropySums, type ObjectiveSums } from '../losses/cross-entropy.ts';
import { nextTokenLogProbabilities, nextTokenSums } from '../losses/next-token.ts';
import { cm3leonDecoder, initCm3leon, type Cm3leonParams } from '../models/cm3leon.ts';
import type { DecoderInputs } from '../models/decoder.ts';
import type { LanguageModel } from '../models/language-model.ts';
import { guidedModel, limitedModel } from '../models/steered-model.ts';
import { cm3leonKind } from '../part-kind.ts';
import { constantOf } from '../tokens/constant.ts';
import type { TensorTree } from '../tree.ts';
import {
  captionsAmong,
  OBJECTIVE,
  openCm3leonAssembler,
  streamLength,
  type CaptionForm,
} from './cm3leon-batch.ts';
import { decaysMatrices } from './dialogue-system.ts';
import { countedOf } from './host-arrays.ts';
import {
  codebookFields,
  fitCodebook,
  readCodebook,
  writeStandInCodebook,
} from './picture-codebook.ts';
import { everyExchange } from './picture-words.ts';
import { questionGiven } from './question-given.ts';
import {
  defineSystem,
  isOneMediumWithWords,
  type AnsweringParams,
  type HeldOutTask,
  type VideoLanguageSystem,
} from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import { textClasses, textKey } from './text-number.ts';
import { checkBlocks, encoderFields } from './tower-fields.ts';
import { wholeSpans } from './whole-answers.ts';

const fields = z.strictObject({
  name: z.literal('cm3leon').describe('Yu et al. 2023, arXiv:2309.02591'),
  decoder: encoderFields.describe('What reads and writes words and pictures'),
  positions: count('Places that there are weights for: most tokens of a sequence'),
  textTokens: count('Word pieces of a text; longer ones are cut'),
  textVocabulary: count(
    'Most word pieces that a tokenizer is trained to, special tokens included',
    32,
  ),
  patchSize: count(
    'Height and width of the patch that is one token, pixels; divides data.frameSize',
  ),
  ...codebookFields,
  pictureFirst: share('Share of the sequences whose picture stands before its text'),
  spans: z
    .strictObject({
      text: share('Of the text'),
      picture: share('Of the picture'),
      whole: share('Share of the spans that are all of their text or picture'),
    })
    .describe('Shares of the sequences with a span that is masked, and told at the end'),
  guidance: z
    .number()
    .positive()
    .describe(
      'How far pictures are drawn towards their texts: 1 as they are likely, more for more alike',
    ),
  pictureWords: z
    .array(z.array(z.string().min(1)).min(2))
    .describe(
      'Lists of words of which a picture tells the right one: held-out pictures are asked which makes them likeliest',
    ),
  permuted: z
    .boolean()
    .describe('Whether texts have the pictures of others in training, for comparison'),
});

type Cm3leonConfig = z.infer<typeof fields>;

export const cm3leon = defineSystem<Cm3leonConfig, Cm3leonParams>({
  schema: fields,
  sampleKind: 'a picture or a clip of one video, with words',
  takes: isOneMediumWithWords,
  check: ({ model, data }) => fault(model, data),
  async fit(context) {
    const { textVocabulary, patchSize } = context.config.model;
    const { vocabularySize } = await fitTokenizer(context, textVocabulary);
    const numCodes = await fitCodebook(context, patchSize);
    return `${vocabularySize} word pieces, ${numCodes} codes of patches`;
  },
  standIn: writeStandInCodebook,
  async open({ config: { model, data, train }, folder, index }) {
    const assets = {
      tokenizer: await readTokenizer(folder),
      codebook: await readCodebook(folder),
    };
    const { frameSize } = data;
    return cm3leonSystem(model, { frameSize, seed: train.seed }, assets, index);
  },
});

function fault(model: Cm3leonConfig, data: RunConfig['data']): string | undefined {
  const { decoder, positions, textTokens, patchSize, spans } = model;
  const { frameSize, framesPerWindow } = data;
  if (framesPerWindow !== 1)
    return `data.framesPerWindow is ${framesPerWindow}, and a picture is one frame: set it to 1`;
  if (frameSize % patchSize !== 0)
    return `data.frameSize (${frameSize}) is not a multiple of model.patchSize (${patchSize})`;
  const needed = streamLength(textTokens, (frameSize / patchSize) ** 2);
  if (needed > positions)
    return `model.positions (${positions}) has no place for a sequence of ${needed} tokens: set it to ${needed} or more, or make texts or pictures shorter`;
  if (spans.text + spans.picture > 1)
    return `model.spans.text (${spans.text}) and model.spans.picture (${spans.picture}) are more than 1 together`;
  return checkBlocks('model.decoder', decoder);
}

/** Captions that a held-out picture is told by. */
const NUM_CAPTIONS = 12;

type TensorBatch = Readonly<Record<string, tf.Tensor | undefined>>;

function cm3leonSystem(
  config: Cm3leonConfig,
  { frameSize, seed }: { readonly frameSize: number; readonly seed: number },
  { tokenizer, codebook }: { readonly tokenizer: Tokenizer; readonly codebook: VisualVocabulary },
  splits: { readonly heldOut: readonly Sample[] },
): VideoLanguageSystem<Cm3leonParams> {
  const assembler = openCm3leonAssembler({ ...config, seed, tokenizer, codebook, frameSize });
  const { vocabulary, length, wordsOf } = assembler;
  const { width, mlpWidth, layers: numLayers, heads: numHeads } = config.decoder;
  const sizes = {
    ...{ vocabulary: vocabulary.size, positions: config.positions },
    ...{ width, mlpWidth, numLayers, numHeads },
  };
  const decoder = cm3leonDecoder(sizes);
  const presentOf = (ids: tf.Tensor): tf.Tensor =>
    constantOf(() => tf.cast(tf.notEqual(ids, tf.scalar(vocabulary.pad, 'int32')), 'float32'));
  const logitsOf = (params: Cm3leonParams, ids: tf.Tensor): tf.Tensor =>
    decoder.logits(params, decoder.states(params, { ids, present: presentOf(ids) }));

  const captions = textClasses(
    splits.heldOut.map(({ text }) => text),
    wordsOf,
  );
  const captionTask = (form: CaptionForm): HeldOutTask => ({
    name: `caption-exact, ${form}`,
    objective: OBJECTIVE,
    numClasses: captions.texts.length,
    assemble: (rows) => assembler.captions(rows, form, (text) => captions.classOf(text)!),
    labels: ({ arrays }) => countedOf(arrays['answerClasses']!, arrays['answerWeights']!),
  });
  const comparisonTask = (
    name: string,
    numClasses: number,
    captionsOf: Parameters<typeof assembler.comparison>[1],
  ): HeldOutTask => ({
    ...{ name, objective: OBJECTIVE, numClasses },
    assemble: (rows) => assembler.comparison(rows, captionsOf),
    labels: ({ arrays }) => countedOf(arrays['answers']!, arrays['answerWeights']!),
  });
  const among = captionsAmong(splits.heldOut, { count: NUM_CAPTIONS, idsOf: wordsOf, seed });
  const wordTasks = config.pictureWords.map((list): HeldOutTask => {
    const captionsOf = (text: string) => everyExchange(text, list);
    return {
      ...comparisonTask(
        `${list[0]!} or another, by the picture's likelihood`,
        list.length,
        // Where a batch is looked at that nobody asked for, nothing counts.
        ({ sample: { text } }) => captionsOf(text) ?? { texts: list.map(() => text), own: -1 },
      ),
      asks({ text }) {
        // A word that is cut off can be exchanged, and then nothing is.
        const read = (captionsOf(text)?.texts ?? []).map((other) => textKey(wordsOf(other)));
        return new Set(read).size === list.length;
      },
    };
  });

  /** How likely a picture is behind each of its captions, [B, K] nats. */
  const pictureScores = (params: Cm3leonParams, candidates: tf.Tensor, counted: tf.Tensor) => {
    // One after another: logits of all of them would be many times what training needs.
    const weights = tf.unstack(counted, 1);
    const scores = tf.unstack(candidates, 1).map((ids, k) => {
      const told = nextTokenLogProbabilities(logitsOf(params, ids), ids);
      return tf.sum(tf.mul(told, tf.slice(weights[k]!, [0, 1], [-1, length - 1])), 1);
    });
    return tf.stack(scores, 1);
  };
  const sums = (params: Cm3leonParams, batch: TensorBatch): ObjectiveSums => {
    const { candidates, ids, labels, captionWeights, answerWeights } = batch;
    if (candidates !== undefined) {
      const scores = pictureScores(params, candidates, batch['candidateWeights']!);
      return crossEntropySums(scores, batch['answers']!, answerWeights!);
    }
    const logits = logitsOf(params, ids!);
    const all = nextTokenSums(logits, labels!);
    if (captionWeights === undefined) return all;
    const isWhole = wholeSpans(logits, ids!, captionWeights);
    return { ...all, correct: tf.sum(tf.mul(isWhole, answerWeights!)) };
  };

  const ofParams = <Q extends TensorTree, S extends TensorTree>(
    model: LanguageModel<Cm3leonParams, Q, S>,
  ): LanguageModel<AnsweringParams<Cm3leonParams>> => ({
    name: model.name,
    prefill: ({ params }, prompt, numSteps) => model.prefill(params, prompt as Q, numSteps),
    step: ({ params }, state, tokens) => model.step(params, state as S, tokens),
    select: (state, rows) => model.select(state as S, rows),
  });
  const { firstCode, numCodes, eos } = vocabulary;
  const isCode = Array.from(
    { length: vocabulary.size },
    (_, id) => id >= firstCode && id < firstCode + numCodes,
  );
  const isSaid = isCode.map(
    (is, id) => !is && (id === eos || (id >= tokenizer.firstWordId && id < firstCode)),
  );
  const asked = (question: string): string => {
    const numHoles = question.split(HOLE).length - 1;
    if (numHoles > 1)
      throw new UsageError(
        'TOO_MUCH_TO_FILL_IN',
        `cm3leon fills in one ${HOLE}, and "${question}" has ${numHoles}: leave one`,
      );
    return numHoles === 1 ? question : HOLE;
  };

  return {
    name: 'cm3leon',
    objectives: { [OBJECTIVE]: 1 },
    heldOutTasks: [
      captionTask('infilled'),
      captionTask('continued'),
      comparisonTask(`caption of ${among.size}, by the picture's likelihood`, among.size, (row) =>
        among.of(row),
      ),
      ...wordTasks,
    ],
    init: (initializer) => initCm3leon(sizes, initializer),
    kinds: { '': cm3leonKind(sizes) },
    frozen: {},
    decays: decaysMatrices,
    assemble: (rows) => assembler.training(rows),
    answers: {
      assemble: (rows, question) => assembler.toInfill(rows, asked(question)),
      given: (_row, question) => ({
        ...(question === '' || question.includes(HOLE)
          ? questionGiven(
              tokenizer,
              question,
              question === '' ? config.textTokens : assembler.mostGiven + 1,
            )
          : { question, cutTo: 0 }),
        windows: [0],
      }),
      model: ofParams<DecoderInputs, TensorTree>(limitedModel(decoder, isSaid)),
      eosIds: [eos],
      maxNewTokens: config.textTokens,
      decode: (ids) => tokenizer.decode(ids),
    },
    draws: {
      textOf: (question, said) =>
        question === ''
          ? said
          : question
              .replace(HOLE, () => said)
              .replace(/\s+/g, ' ')
              .trim(),
      assemble: (texts) => assembler.toDraw(texts),
      model: ofParams(limitedModel(guidedModel(decoder, config.guidance), isCode)),
      numTokens: assembler.numPatches,
      seen: (row) => assembler.pictureOf(row),
      picture: (ids) => ({
        pixels: picturedPatches(
          featuresOfWords(
            codebook,
            ids.map((id) => id - firstCode),
          ),
          { size: frameSize, patchSize: config.patchSize },
        ),
        ...{ width: frameSize, height: frameSize },
      }),
    },
    sums: (params, _frozen, batch) => ({ [OBJECTIVE]: sums(params, batch as TensorBatch) }),
  };
}

/** Where something is to be written into a text. */
const HOLE = '[MASK]';
