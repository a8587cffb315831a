/** MERLOT: frames beside what is said, hidden words, and shuffled frames. Source: Zellers et al. 2021, arXiv:2106.02636. */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { count, share, type RunConfig } from '../config-fields.ts';
import { crossEntropySums, type ObjectiveSums } from '../losses/cross-entropy.ts';
import { infoNceSums } from '../losses/contrastive.ts';
import {
  initMerlot,
  merlotAttention,
  merlotFrames,
  merlotJoint,
  merlotPairLogits,
  merlotTexts,
  merlotWordLogits,
  type MerlotParams,
  type MerlotSizes,
} from '../models/merlot.ts';
import { STEM_STRIDE } from '../models/resnet-stem.ts';
import { encoderKind } from '../part-kind.ts';
import { attendedPositions } from '../tokens/attended-mask.ts';
import { constantOf } from '../tokens/constant.ts';
import { rowsOfAll } from '../tokens/gather-tokens.ts';
import { CLIP_PIXELS, normalizePixels } from '../tokens/pixels.ts';
import { hiddenWordsExplained } from './hidden-words.ts';
import { countedOf, floatArray, intArray } from './host-arrays.ts';
import {
  assembleMerlot,
  MERLOT_TRAINING,
  numMaskSlots,
  segmentIds,
  type MerlotAssembly,
  type MerlotQuestion,
} from './merlot-batch.ts';
import { wordsAt } from './subtitles.ts';
import {
  defineSystem,
  isClipOfOneVideo,
  type Explained,
  type HeldOutTask,
  type HostBatch,
  type Row,
  type SystemContext,
  type VideoLanguageSystem,
} from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import { candidateTexts, TEXT_NUMBERS } from './text-number.ts';
import { checkBlocks, encoderFields, encoderSizes } from './tower-fields.ts';

const fields = z.strictObject({
  name: z.literal('merlot').describe('Zellers et al. 2021, arXiv:2106.02636'),
  stem: z
    .array(count('Blocks of a stage'))
    .nullable()
    .describe('Blocks of the stages of a ResNet that pictures go through first; null: patches'),
  patchSize: count('Height and width of a patch, pixels; 16 behind a stem of three stages'),
  vision: encoderFields.describe('What sees single frames'),
  joint: encoderFields.describe('What reads frames and words; as wide as vision'),
  embedding: count('Width of what is contrasted'),
  temperature: z.number().positive().describe('Similarities are divided by it'),
  groupSize: count('Segments that are encoded together; divides data.windows', 2),
  segmentTokens: count('Word pieces of a segment, the one that starts it included', 2),
  vocabulary: count(
    'Rows of the table of word pieces; the tokenizer is trained to at most so many',
    32,
  ),
  maskRatio: share('Share of the words that is hidden, half of them among the most attended'),
  shuffleShare: share('Share of the groups in which frames are shuffled'),
  weights: z
    .strictObject({
      frameText: z.number().min(0).describe('Contrast of frames and transcripts'),
      maskedToken: z.number().min(0).describe('Hidden words'),
      frameOrder: z.number().min(0).describe('Order of shuffled frames'),
    })
    .describe('Of the objectives in the loss'),
  transcript: z
    .enum(['shown', 'blank'])
    .describe('blank: the joint encoder reads no words, and nothing tells the order of frames'),
  contrastChunk: count('Rows of the global batch that are compared at a time').nullable(),
});

type MerlotConfig = z.infer<typeof fields>;

/** Of a pair of frames whose places are told, in hundredths. Source: MERLOT's released code. */
const TOLD_WEIGHT = 1;

export const merlot = defineSystem<MerlotConfig, MerlotParams>({
  schema: fields,
  sampleKind: 'a clip of one video with words and their times',
  takes: (sample, files) => isClipOfOneVideo(sample, files) && sample.cues.length > 0,
  check: ({ model, data }) => {
    const { vision, joint, patchSize, stem, groupSize } = model;
    if (vision.width !== joint.width) {
      return `model.vision.width (${vision.width}) and model.joint.width (${joint.width}) differ`;
    }
    if (data.framesPerWindow !== 1) {
      return `data.framesPerWindow is ${data.framesPerWindow}, and each segment shows one frame: set it to 1`;
    }
    if (data.windows % groupSize !== 0) {
      return `data.windows (${data.windows}) is not a multiple of model.groupSize (${groupSize})`;
    }
    if (data.frameSize % (2 * patchSize) !== 0) {
      return `data.frameSize (${data.frameSize}) is no even number of model.patchSize (${patchSize})`;
    }
    if (stem !== null && (patchSize !== STEM_STRIDE || stem.length !== 3)) {
      return `model.stem has three stages and model.patchSize ${STEM_STRIDE}`;
    }
    return checkBlocks('model.vision', vision) ?? checkBlocks('model.joint', joint);
  },
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.vocabulary);
    return `${vocabularySize} word pieces`;
  },
  open,
});

export function merlotSizes(model: MerlotConfig, data: RunConfig['data']): MerlotSizes {
  const kind = { activation: 'gelu-tanh', epsilon: 1e-5 } as const;
  const { patchSize, stem, vision, joint, groupSize, segmentTokens, vocabulary, embedding } = model;
  const gridSize = data.frameSize / patchSize;
  return {
    picture: { width: vision.width, patchSize, gridSize, stem: stem ?? undefined },
    vision: encoderSizes(vision, kind),
    joint: encoderSizes(joint, kind),
    ...{ vocabulary, embedding, groupSize },
    numSegments: data.windows,
    segmentLength: segmentTokens,
  };
}

type MerlotBatch = {
  readonly [
    K in
      | 'pixels'
      | 'ids'
      | 'present'
      | 'textNumbers'
      | 'jointPresent'
      | 'moments'
      | 'candidateWeights'
      | 'draws'
      | 'reachLeft'
      | 'reachRight'
      | 'replacements'
      | 'maskWeights'
      | 'pairLabels'
      | 'pairWeights'
  ]: tf.Tensor;
} & {
  /** In a held-out question of which words belong to a frame: transcripts to choose from, [B, S L]. */
  readonly choiceIds?: tf.Tensor;
  readonly choiceLabels?: tf.Tensor; // [B, S]
  readonly choiceWeights?: tf.Tensor;
  /** 0 where a row is filled up with what is no choice, [B, S]. */
  readonly isChoice?: tf.Tensor;
};

async function open({
  config: { model, data, train },
  folder,
  index,
}: SystemContext<MerlotConfig>): Promise<VideoLanguageSystem<MerlotParams>> {
  const tokenizer = await readTokenizer(folder);
  const sizes = merlotSizes(model, data);
  const assembly: MerlotAssembly = {
    seed: train.seed,
    tokenizer,
    numSegments: sizes.numSegments,
    groupSize: sizes.groupSize,
    segmentLength: sizes.segmentLength,
    maskRatio: model.maskRatio,
    shuffleShare: model.shuffleShare,
    toldWeight: TOLD_WEIGHT,
    showsWords: model.transcript === 'shown',
  };
  const { frameSize } = data;

  const frames = (params: MerlotParams, { pixels }: MerlotBatch) => {
    const count = pixels.shape[0] * sizes.numSegments;
    const shown = normalizePixels(pixels, [count, frameSize, frameSize, 3], CLIP_PIXELS);
    return merlotFrames(params, shown, sizes);
  };
  /** Frames and words, of which some are hidden, of each group together. */
  const read = (params: MerlotParams, batch: MerlotBatch) => {
    const [groups, length] = batch.jointPresent.shape as [number, number];
    const { tokens, embeddings } = frames(params, batch);
    const ids: tf.Tensor = tf.reshape(batch.ids, [groups, length]);
    const { positions, hidden } = hideWords(params, batch, ids);
    const states = merlotJoint(
      params,
      {
        tokens: tf.reshape(tokens, [groups, sizes.groupSize, -1, sizes.joint.width]),
        moments: batch.moments,
        ids: hidden,
        present: batch.jointPresent,
      },
      sizes,
    );
    return { embeddings, ids, positions, states };
  };
  const sums = (params: MerlotParams, batch: MerlotBatch): Record<string, ObjectiveSums> => {
    const { groupSize } = sizes;
    const groups = batch.jointPresent.shape[0];
    const { embeddings, ids, positions, states } = read(params, batch);
    const length = ids.shape[1]!;
    const labels = tf.gather(tf.reshape(ids, [-1]), rowsOfAll(positions, length));
    const order = tf.reshape(merlotPairLogits(params, states, sizes), [
      groups * 2 * groupSize ** 2,
      -1,
    ]);
    const flat = (x: tf.Tensor): tf.Tensor => tf.reshape(x, [-1]);
    const asked = {
      'masked-token': crossEntropySums(
        merlotWordLogits(params, states.words, positions, sizes),
        labels,
        flat(batch.maskWeights),
      ),
      'frame-order': crossEntropySums(order, flat(batch.pairLabels), flat(batch.pairWeights)),
    };
    if (batch.choiceIds === undefined) return asked;
    const present = tf.cast(
      tf.notEqual(batch.choiceIds, tf.scalar(tokenizer.special.pad, 'int32')),
      'float32',
    );
    const texts = merlotTexts(params, { ids: batch.choiceIds, present }, sizes);
    const scores = tf.add(
      tf.matMul(embeddings, tf.reshape(texts, [-1, model.embedding]), false, true),
      tf.mul(tf.sub(tf.reshape(batch.isChoice!, [1, -1]), 1), 1e9),
    );
    return {
      ...asked,
      'frame-text': crossEntropySums(
        tf.div(scores, model.temperature),
        flat(batch.choiceLabels!),
        flat(batch.choiceWeights!),
      ),
    };
  };
  /** Which words are hidden, [G, K], and all words with those hidden; without gradients. */
  const hideWords = (
    params: MerlotParams,
    batch: MerlotBatch,
    ids: tf.Tensor,
  ): { positions: tf.Tensor; hidden: tf.Tensor } => {
    const [groups, length] = ids.shape as [number, number];
    const attention = tf.reshape(merlotAttention(params, batch, sizes), [groups, length]);
    const positions = constantOf(() =>
      attendedPositions(
        { ...batch, attention, candidates: batch.candidateWeights },
        { count: numMaskSlots(assembly) },
      ),
    );
    const hidden = constantOf(() => {
      const isChosen = tf.sum(
        tf.mul(tf.oneHot(positions, length), tf.expandDims(batch.maskWeights, 2)),
        1,
      ); // [G, g L]
      return tf.where(tf.greater(isChosen, 0), batch.replacements, ids);
    });
    return { positions, hidden };
  };

  return {
    name: 'merlot',
    objectives: {
      'frame-text': model.weights.frameText,
      'masked-token': model.weights.maskedToken,
      'frame-order': model.weights.frameOrder,
    },
    heldOutTasks: [
      ...(['shown', 'blank'] as const).map((words): HeldOutTask => {
        const name = words === 'shown' ? 'frame-order-accuracy' : 'frame-order-blind-accuracy';
        return {
          name,
          objective: 'frame-order',
          numClasses: 3,
          assemble: (rows) =>
            assembleMerlot(assembly, rows, { purpose: name, words, order: 'asked' }),
          labels: ({ arrays }) => countedOf(arrays['pairLabels']!, arrays['pairWeights']!),
        };
      }),
      maskedWords(assembly),
      transcriptRecall(
        assembly,
        index.heldOut.flatMap(({ cues }) => cues.map(({ text }) => text)),
      ),
    ],
    init: (initializer) => initMerlot(sizes, initializer),
    kinds: { vision: encoderKind(sizes.vision), joint: encoderKind(sizes.joint) },
    frozen: {},
    decays: (path, shape) =>
      shape.length > 1 && !/(^|\/)(words|position|alonePosition|moment|classTokens)$/.test(path),
    assemble: (rows) => assembleMerlot(assembly, rows, MERLOT_TRAINING),
    sums: (params, _frozen, batch) => sums(params, batch as MerlotBatch),
    ...(assembly.showsWords && {
      look: {
        assemble: (rows) =>
          assembleMerlot(assembly, rows, { purpose: 'look', words: 'asked', order: 'told' }),
        guess(params, _frozen, batch) {
          const { positions, states } = read(params, batch as MerlotBatch);
          const logits = merlotWordLogits(params, states.words, positions, sizes);
          return { words: tf.argMax(logits, -1), positions };
        },
        explain: (batch, guesses) => explained(tokenizer, assembly, batch, guesses),
      },
    }),
    contrast: {
      objectives: ['frame-text'],
      parameters: [],
      embed(params, _frozen, batch) {
        const given = batch as MerlotBatch;
        const [rows, count] = given.textNumbers.shape as [number, number];
        return {
          frames: tf.reshape(frames(params, given).embeddings, [rows, count, -1]),
          texts: merlotTexts(params, given, sizes),
          textIds: given.textNumbers,
        };
      },
      sums(_params, { frames: seen, texts, textIds }) {
        const flat = (x: tf.Tensor): tf.Tensor => tf.reshape(x, [-1, model.embedding]);
        const pairs = {
          left: flat(seen!),
          right: flat(texts!),
          groupIds: tf.reshape(textIds!, [-1, TEXT_NUMBERS]),
        };
        const scale = tf.scalar(1 / model.temperature);
        return { 'frame-text': infoNceSums(pairs, scale, model.contrastChunk ?? undefined) };
      },
    },
  };
}

/** Hidden words of all groups of a row, one group after another. */
function explained(
  tokenizer: Tokenizer,
  { numSegments, groupSize, segmentLength }: MerlotAssembly,
  { arrays }: HostBatch,
  { words, positions }: Readonly<Record<string, ArrayLike<number>>>,
): Explained[] {
  const weights = arrays['maskWeights']!;
  const ids = arrays['ids']!;
  const numRows = ids.shape[0]!;
  const [slotsPerGroup, groupsPerRow] = [weights.shape[1]!, numSegments / groupSize];
  const shape = [numRows, groupsPerRow * slotsPerGroup];
  const places = intArray(...shape);
  const labels = intArray(...shape);
  for (const slot of places.data.keys()) {
    const group = Math.floor(slot / slotsPerGroup);
    places.data[slot] = (group % groupsPerRow) * groupSize * segmentLength + positions![slot]!;
    labels.data[slot] =
      ids.data[Math.floor(group / groupsPerRow) * ids.shape[1]! + places.data[slot]]!;
  }
  return hiddenWordsExplained(tokenizer, {
    ...{ ids, positions: places, labels, guesses: words! },
    weights: { data: weights.data, shape },
    numWindows: numSegments,
  });
}

/** Which word is hidden, beside frames whose places are told. */
function maskedWords(assembly: MerlotAssembly): HeldOutTask {
  const question: MerlotQuestion = { purpose: 'masked-token', words: 'asked', order: 'told' };
  return {
    name: 'masked-token-accuracy',
    objective: 'masked-token',
    numClasses: assembly.tokenizer.vocabularySize,
    assemble: (rows) => assembleMerlot(assembly, rows, question),
    labels: ({ arrays }) => countedOf(arrays['ids']!, arrays['candidateWeights']!),
  };
}

/** Which of all held-out transcripts is said while a frame is shown. */
function transcriptRecall(assembly: MerlotAssembly, said: readonly string[]): HeldOutTask {
  const { numSegments, segmentLength } = assembly;
  const { texts: choices, classOf } = candidateTexts(
    said,
    (text) => segmentIds(text, assembly),
    assembly.seed,
  );
  const question: MerlotQuestion = { purpose: 'recall', words: 'shown', order: 'told' };
  return {
    name: 'transcript-recall-at-1',
    objective: 'frame-text',
    numClasses: choices.length,
    asks: ({ cues }) => cues.some(({ text }) => classOf(text) !== undefined),
    assemble(rows: readonly Row[]): HostBatch {
      const batch = assembleMerlot(assembly, rows, question);
      // Rows hold them as transcripts of as many segments as in training: each is read beside those that it happens to
      // stand by. What fills up the last row is read, and never chosen: a copy beside others is another vector.
      const perRow = numSegments * Math.ceil(choices.length / (numSegments * rows.length));
      const choiceIds = intArray((rows.length * perRow) / numSegments, numSegments * segmentLength);
      const isChoice = floatArray(choiceIds.shape[0]!, numSegments);
      for (let i = 0; i < rows.length * perRow; i++) {
        choiceIds.data.set(segmentIds(choices[i] ?? choices[0]!, assembly), i * segmentLength);
        isChoice.data[i] = i < choices.length ? 1 : 0;
      }
      const choiceLabels = intArray(rows.length, numSegments);
      const choiceWeights = floatArray(rows.length, numSegments);
      for (const [r, { sample, timesSeconds }] of rows.entries()) {
        for (let s = 0; s < numSegments; s++) {
          const label = classOf(wordsAt(sample.cues, timesSeconds[s]!));
          choiceLabels.data[r * numSegments + s] = label ?? 0;
          choiceWeights.data[r * numSegments + s] = label === undefined ? 0 : 1;
        }
      }
      return {
        ...batch,
        arrays: { ...batch.arrays, choiceIds, isChoice, choiceLabels, choiceWeights },
      };
    },
    labels: ({ arrays }) => countedOf(arrays['choiceLabels']!, arrays['choiceWeights']!),
  };
}
