/**
 * FLAVA: an encoder for pictures, one for texts and one for both, trained together on pairs, on pictures alone and on
 * texts alone. Source: Singh et al. 2022, arXiv:2112.04482.
 */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import type { Sample } from '../../video/index/sample.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import type { VisualVocabulary } from '../../video/visual-words/visual-vocabulary.ts';
import { count, share, type RunConfig } from '../config-fields.ts';
import { infoNceSums } from '../losses/contrastive.ts';
import { crossEntropySums, type ObjectiveSums } from '../losses/cross-entropy.ts';
import type { BertInput } from '../models/bert.ts';
import { flavaImageStates, flavaJointStates, flavaTextStates } from '../models/flava.ts';
import {
  flavaImageEmbedding,
  flavaJointWordLogits,
  flavaSums,
  flavaTextEmbedding,
  initFlavaTraining,
  type FlavaTrainingParams,
  type FlavaTrainingSizes,
} from '../models/flava-training.ts';
import { encoderKind } from '../part-kind.ts';
import { publishedFlava } from '../pretrained/published-parts.ts';
import { captionRecall } from './caption-recall.ts';
import { decaysMatrices } from './dialogue-system.ts';
import { filledIn, idsToFillIn } from './fill-in.ts';
import { openFlavaAssembler, ownKind, type FlavaQuestion } from './flava-batch.ts';
import { hiddenWordsExplained } from './hidden-words.ts';
import { countedOf } from './host-arrays.ts';
import {
  codebookFields,
  fitCodebook,
  readCodebook,
  writeStandInCodebook,
} from './picture-codebook.ts';
import { pictureWordsField } from './picture-words.ts';
import { questionGiven } from './question-given.ts';
import {
  defineSystem,
  isTextAlone,
  type HeldOutTask,
  type HostBatch,
  type Row,
  type VideoLanguageSystem,
} from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import {
  checkBlocks,
  encoderFields,
  encoderSizes,
  textFields,
  textSizes,
  visionFields,
} from './tower-fields.ts';
import { unpackedPictures, type PictureShape } from './vision-part.ts';

const fields = z.strictObject({
  name: z.literal('flava').describe('Singh et al. 2022, arXiv:2112.04482'),
  image: visionFields.describe('The encoder of pictures: a frame, or the frames of a window'),
  text: textFields.describe('The encoder of texts'),
  joint: encoderFields.describe('The encoder of what these two make of a picture and its text'),
  embedding: count('Width of what is contrasted'),
  contrastChunk: count('Rows of the global batch that are contrasted at a time').nullable(),
  ...codebookFields,
  textMaskRatio: share('Share of the word pieces that is hidden'),
  maskedPatches: count('Patches of a picture that are hidden, in blocks'),
  leastBlock: count('Least patches of a block, as long as so many are left to hide'),
  unpaired: z
    .strictObject({
      pictures: share('Shown as a picture alone'),
      texts: share('Shown as a text alone'),
    })
    .describe(
      'Shares of the training samples with words that are no pairs, the same in every epoch; beside what the data have ' +
        'of pictures without words and texts without pictures',
    ),
  mismatchedShare: share("Share of the pairs that get another sample's text, for matching"),
  pictureWords: pictureWordsField,
  blind: z.boolean().describe('Whether all pictures are grey, for comparison'),
});

type FlavaConfig = z.infer<typeof fields>;

/** Of the logarithm of the scale. Source: transformers, modeling_flava.py, LOGIT_SCALE_CLAMP_MIN and _MAX. */
const LOGIT_SCALE_BOUNDS = [0, 4.6052] as const;

export const flava = defineSystem<FlavaConfig, FlavaTrainingParams>({
  schema: fields,
  sampleKind: 'a picture or a clip of one video, or a text alone',
  takes: (sample) => sample.media.length === 1 || isTextAlone(sample),
  check: ({ model, data }) => fault(model, data),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.text.vocabulary);
    const numCodes = await fitCodebook(context, context.config.model.image.patchSize);
    return `${vocabularySize} word pieces, ${numCodes} visual words`;
  },
  standIn: writeStandInCodebook,
  async open({ config: { model, data, train }, folder, index }) {
    const assets = {
      tokenizer: await readTokenizer(folder),
      vocabulary: await readCodebook(folder),
    };
    return flavaSystem(model, { ...data, seed: train.seed }, assets, index);
  },
});

function fault(model: FlavaConfig, { frameSize }: RunConfig['data']): string | undefined {
  const { image, text, joint, maskedPatches, unpaired } = model;
  if (frameSize % image.patchSize !== 0)
    return `data.frameSize (${frameSize}) is not a multiple of model.image.patchSize (${image.patchSize})`;
  if (frameSize % 2 !== 0) return `data.frameSize (${frameSize}) is odd`;
  const numPatches = (frameSize / image.patchSize) ** 2;
  if (maskedPatches > numPatches)
    return `model.maskedPatches (${maskedPatches}) is more than the ${numPatches} patches of a picture`;
  if (unpaired.pictures + unpaired.texts > 1)
    return `model.unpaired.pictures (${unpaired.pictures}) and model.unpaired.texts (${unpaired.texts}) are more than 1 together`;
  return (
    checkBlocks('model.image', image) ??
    checkBlocks('model.text', text) ??
    checkBlocks('model.joint', joint)
  );
}

export function flavaSizes(
  model: Pick<FlavaConfig, 'image' | 'text' | 'joint' | 'embedding'>,
  { frameSize, framesPerWindow }: PictureShape,
  { words, codes }: { readonly words: number; readonly codes: number },
): FlavaTrainingSizes {
  const kind = { activation: 'gelu', epsilon: 1e-12 } as const;
  return {
    image: {
      ...encoderSizes(model.image, kind),
      ...{ imageSize: frameSize, patchSize: model.image.patchSize, channels: 3 * framesPerWindow },
    },
    // BERT's two rows of segments, of which a text alone uses the first.
    text: { ...textSizes(model.text, kind), vocabulary: words, numSegments: 2 },
    joint: encoderSizes(model.joint, kind),
    ...{ embedding: model.embedding, codes },
  };
}

type TensorBatch = Readonly<Record<string, tf.Tensor | undefined>>;

export function flavaSystem(
  config: FlavaConfig,
  data: PictureShape & { readonly windows: number; readonly seed: number },
  {
    tokenizer,
    vocabulary,
  }: { readonly tokenizer: Tokenizer; readonly vocabulary: VisualVocabulary },
  splits: { readonly train: readonly Sample[]; readonly heldOut: readonly Sample[] },
): VideoLanguageSystem<FlavaTrainingParams> {
  const { maxTokens } = config.text;
  const sizes = flavaSizes(config, data, {
    words: tokenizer.vocabularySize,
    codes: vocabulary.numWords,
  });
  const assembler = openFlavaAssembler({
    ...{ seed: data.seed, tokenizer, vocabulary, picture: data, maxTokens },
    patchSize: config.image.patchSize,
    wordMaskRatio: config.textMaskRatio,
    ...config,
  });
  const shown = (rows: readonly Row[]): readonly Row[] =>
    config.blind
      ? rows.map((row) => ({ ...row, frames: new Uint8Array(row.frames.length).fill(128) }))
      : rows;
  const question = (asked: FlavaQuestion, rows: readonly Row[]): HostBatch =>
    assembler.question(shown(rows), asked, splits.heldOut);

  const task = (
    name: string,
    {
      asked,
      objective,
      numClasses,
      answers,
    }: {
      readonly asked: FlavaQuestion;
      readonly objective: string;
      readonly numClasses: number;
      readonly answers: readonly [labels: string, weights: string];
    },
  ): HeldOutTask => ({
    ...{ name, objective, numClasses },
    asks: (sample) => ownKind(sample) === 'pair',
    assemble: (rows) => question(asked, rows),
    labels: ({ arrays }) => countedOf(arrays[answers[0]]!, arrays[answers[1]]!),
  });
  /** A hidden word, of each list that a picture tells or any, with its picture and with another one. */
  const wordTasks = (config.pictureWords.length === 0 ? [undefined] : config.pictureWords).flatMap(
    (among) => {
      const name = among === undefined ? 'masked-word' : `${among[0]!} or another`;
      const words = {
        objective: 'mmm-text',
        numClasses: tokenizer.vocabularySize,
        answers: ['wordLabels', 'wordJointWeights'],
      } as const;
      const asked = { kind: 'word', ...(among && { among }) } as const;
      return [
        task(name, { ...words, asked }),
        task(`${name}, with another picture`, { ...words, asked: { ...asked, isOther: true } }),
      ];
    },
  );
  const recall = captionRecall({
    ...{ seed: data.seed, heldOut: splits.heldOut },
    idsOf: assembler.groupOf,
    textArray: (texts, ...shape) => assembler.textArrays(texts, ...shape).ids,
    assemble: (rows) => assembler.pictures(shown(rows)),
  });

  const imagesOf = (batch: TensorBatch): tf.Tensor => unpackedPictures(batch['pixels']!, data);
  const bertInput = (ids: tf.Tensor, present: tf.Tensor): BertInput => ({
    ...{ ids, present },
    segments: tf.zerosLike(ids),
  });
  const jointStates = (params: FlavaTrainingParams, batch: TensorBatch): tf.Tensor => {
    const text = bertInput(batch['maskedIds']!, batch['maskedPresent']!);
    const seen = flavaImageStates(params, imagesOf(batch), sizes, {
      hidden: batch['hiddenPatches']!,
    });
    const read = flavaTextStates(params, text, sizes);
    return flavaJointStates(params, seen, read, text.present, sizes);
  };
  /** Logits of the hidden words of pictures and texts, [B K, V]. */
  const wordLogits = (params: FlavaTrainingParams, batch: TensorBatch): tf.Tensor =>
    flavaJointWordLogits(
      params,
      jointStates(params, batch),
      { positions: batch['wordPositions']!, length: maxTokens },
      sizes,
    );
  /** @param ids [texts, L] */
  const textVectors = (params: FlavaTrainingParams, ids: tf.Tensor): tf.Tensor => {
    const pad = tf.scalar(tokenizer.special.pad, 'int32');
    const present = tf.cast(tf.notEqual(ids, pad), 'float32');
    return flavaTextEmbedding(params, bertInput(ids, present), sizes);
  };
  const captionScores = (params: FlavaTrainingParams, batch: TensorBatch): ObjectiveSums => {
    const texts = textVectors(params, tf.reshape(batch['candidates']!, [-1, maxTokens]));
    const scores = tf.matMul(
      flavaImageEmbedding(params, imagesOf(batch), sizes),
      texts,
      false,
      true,
    ); // [B, candidates]
    return crossEntropySums(scores, batch['labels']!, batch['answerWeights']!);
  };

  return {
    name: 'flava',
    objectives: { mim: 1, mlm: 1, contrastive: 1, 'mmm-image': 1, 'mmm-text': 1, itm: 1 },
    heldOutTasks: [
      ...wordTasks,
      {
        ...task('masked-patch', {
          ...{ asked: { kind: 'patch' }, objective: 'mim', numClasses: vocabulary.numWords },
          answers: ['patchLabels', 'patchAloneWeights'],
        }),
        asks: (sample) => ownKind(sample) !== 'text',
        frameAnswers: ['patchLabels'],
      },
      task('match', {
        ...{ asked: { kind: 'match' }, objective: 'itm', numClasses: 2 },
        answers: ['matchLabels', 'matchWeights'],
      }),
      {
        ...recall,
        asks: (sample) => ownKind(sample) === 'pair' && (recall.asks?.(sample) ?? true),
      },
    ],
    init: (initializer) => initFlavaTraining(sizes, initializer),
    kinds: {
      image: encoderKind(sizes.image),
      text: encoderKind(sizes.text),
      joint: encoderKind(sizes.joint),
    },
    published: [publishedFlava(sizes)],
    frozen: {},
    decays: decaysMatrices,
    bounds: { logitScale: LOGIT_SCALE_BOUNDS },
    assemble: (rows) => assembler.training(shown(rows), splits.train),
    similarity: {
      assembleClips: (rows) => assembler.pictures(shown(rows)),
      clips: (params, _frozen, batch) =>
        flavaImageEmbedding(params, imagesOf(batch as TensorBatch), sizes),
      assembleTexts: (texts) => {
        const { ids } = assembler.textArrays(texts, texts.length);
        return { arrays: { ids }, counts: {}, numTokens: texts.length * maxTokens };
      },
      texts: (params, _frozen, batch) => textVectors(params, (batch as TensorBatch)['ids']!),
    },
    sums(params, _frozen, batch): Record<string, ObjectiveSums> {
      const own = batch as TensorBatch;
      if (own['candidates'] !== undefined) return { contrastive: captionScores(params, own) };
      const sums = flavaSums(
        params,
        {
          images: imagesOf(own),
          hiddenPatches: own['hiddenPatches']!,
          masked: bertInput(own['maskedIds']!, own['maskedPresent']!),
          patches: { positions: own['patchPositions']!, labels: own['patchLabels']! },
          words: { positions: own['wordPositions']!, labels: own['wordLabels']! },
          patchWeights: { alone: own['patchAloneWeights']!, joint: own['patchJointWeights']! },
          wordWeights: { alone: own['wordAloneWeights']!, joint: own['wordJointWeights']! },
          ...{ matchLabels: own['matchLabels']!, matchWeights: own['matchWeights']! },
        },
        sizes,
      );
      // A held-out question of something else has no texts to contrast.
      return own['ids'] === undefined
        ? { ...sums, contrastive: { lossSum: tf.scalar(0), correct: tf.scalar(0) } }
        : sums;
    },
    contrast: {
      objectives: ['contrastive'],
      parameters: ['logitScale'],
      embed(params, _frozen, batch) {
        const own = batch as TensorBatch;
        const text = bertInput(own['ids']!, own['present']!);
        return {
          pictures: flavaImageEmbedding(params, imagesOf(own), sizes),
          texts: flavaTextEmbedding(params, text, sizes),
          captionIds: tf.clone(own['captions']!),
          pairIds: tf.clone(own['pairWeights']!),
        };
      },
      sums: ({ logitScale }, { pictures, texts, captionIds, pairIds }) => ({
        contrastive: infoNceSums(
          { left: pictures!, right: texts!, groupIds: captionIds!, paired: pairIds! },
          tf.exp(logitScale),
          config.contrastChunk ?? undefined,
        ),
      }),
    },
    look: {
      assemble: (rows) => question({ kind: 'word' }, rows),
      guess: (params, _frozen, batch) => ({
        words: tf.argMax(wordLogits(params, batch as TensorBatch), -1),
      }),
      explain: ({ arrays }, guesses) =>
        hiddenWordsExplained(tokenizer, {
          ids: arrays['maskedIds']!,
          positions: arrays['wordPositions']!,
          labels: arrays['wordLabels']!,
          weights: arrays['wordJointWeights']!,
          guesses: guesses['words']!,
          numWindows: data.windows,
        }),
    },
    fillIn: {
      example: '[MASK] [MASK]',
      assemble: (rows, text) =>
        assembler.toFillIn(shown(rows), idsToFillIn(tokenizer, text, maxTokens - 2)),
      given: (_row, text) => ({
        ...questionGiven(tokenizer, text, maxTokens - 2),
        windows: config.blind ? [] : [0],
      }),
      logits(params, _frozen, batch) {
        const own = batch as TensorBatch;
        const shape = [...own['wordPositions']!.shape, tokenizer.vocabularySize];
        return tf.reshape(wordLogits(params, own), shape);
      },
      complete: ({ arrays }, logits) =>
        filledIn(
          tokenizer,
          {
            ids: arrays['maskedIds']!,
            positions: arrays['wordPositions']!,
            end: tokenizer.special.sep,
          },
          logits,
        ),
    },
  };
}
