import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import type { Sample } from '../../video/index/sample.ts';
import { isFixedView, type ViewOptions } from '../../video/sampling/clip-view.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import {
  assignVisualWords,
  emptyVocabulary,
  fitVisualVocabulary,
  frameFeatures,
  type VisualVocabulary,
} from '../../video/visual-words/visual-vocabulary.ts';
import { readVisualVocabulary, writeVisualVocabulary } from '../assets.ts';
import { count, share } from '../config-fields.ts';
import type { PartKind } from '../part-kind.ts';
import type { TensorTree } from '../tree.ts';
import { filledIn, idsToFillIn } from './fill-in.ts';
import { fittingFeatures } from './fitting-features.ts';
import { questionGiven } from './question-given.ts';
import {
  defineSystem,
  isClipOfOneVideo,
  type Explained,
  type FitContext,
  type HeldOutTask,
  type HostBatch,
  type Row,
  type VideoLanguageSystem,
} from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import { textKey } from './text-number.ts';
import {
  initVideoBert,
  videoBertLogits,
  videoBertSums,
  VIDEOBERT_BLOCKS,
  type VideoBertBatch,
  type VideoBertLogits,
  type VideoBertParams,
} from '../models/videobert.ts';
import {
  assembleVideoBert,
  countedLabels,
  sequenceLength,
  TRAINING,
  type AssemblyConfig,
  type Question,
  type VideoBertExample,
} from './videobert-batch.ts';
import { joinSegments } from './videobert-segments.ts';
import { wholeWords } from './whole-words.ts';

const fields = z.strictObject({
  name: z.literal('videobert').describe('Sun et al. 2019, arXiv:1904.01766'),
  width: count('Width of the encoder'),
  layers: count('Transformer blocks'),
  heads: count('Attention heads; divides the width'),
  mlpRatio: count('Width of the MLP over the width of the encoder'),
  blocks: z
    .enum(['pre-norm', 'bert'])
    .default('pre-norm')
    .describe("pre-norm trains best from scratch; bert: BERT's own, to begin from its weights"),
  maxTextTokens: count('Word pieces of a sequence; longer text is cut'),
  textVocabulary: count(
    'Most word pieces that the tokenizer is trained to, special tokens included',
    32,
  ),
  visualBranching: count('Branches of each level of the hierarchical k-means', 2),
  visualDepth: count('Levels of the hierarchical k-means; branching^depth visual words'),
  visualComponents: count('Principal components of the frame features'),
  textMaskRatio: share('Share of the word pieces that is hidden'),
  visualMaskRatio: share(
    'Share of the visual words that is hidden: up to this in training, this in evaluation',
  ),
  visualMaskSpan: count('Visual words are hidden in runs of this many'),
  visualStrides: count(
    'In training every s-th visual word of a clip is shown, s drawn up to this: films go at several speeds',
  ).default(1),
  joinedShare: share(
    'Share of the training samples that are joined with the one that follows in the film',
  ).default(0),
  textOnlyShare: share('Share of the samples shown as text alone'),
  videoOnlyShare: share('Share of the samples shown as video alone'),
  mismatchedShare: share("Share of the pairs that get another sample's text, for alignment"),
  fillIn: z
    .strictObject({
      text: z.string().includes('[MASK]').describe('A text that no sample has, with [MASK]s'),
      slots: z
        .array(z.array(z.string().min(1)).min(1))
        .min(1)
        .describe(
          "For each [MASK] the words of its kind to choose among: a clip's word is the first of them in its text",
        ),
    })
    .nullable()
    .default(null)
    .describe('Zero-shot question of videoloom probe: what is done, and to what (sec. 4.3)'),
  modalities: z
    .enum(['both', 'text', 'video'])
    .describe('text and video train the one-modality model of the same size, for comparison'),
});

type VideoBertConfig = z.infer<typeof fields>;

const VOCABULARY_FILE = 'visual-vocabulary.safetensors';

export const videobert = defineSystem<VideoBertConfig, VideoBertParams>({
  schema: fields,
  sampleKind: 'a clip of one video',
  takes: isClipOfOneVideo,
  check: ({ model: { width, heads } }) =>
    width % heads === 0
      ? undefined
      : `model.width (${width}) is not a multiple of model.heads (${heads})`,
  arrange: ({ model, train }, samples) =>
    joinSegments(samples, { share: model.joinedShare, seed: train.seed }),
  async fit(context) {
    await fitTokenizer(context, context.config.model.textVocabulary);
    const vocabulary = await fitVocabulary(context);
    await writeVisualVocabulary(join(context.folder, VOCABULARY_FILE), vocabulary);
    return `${vocabulary.numWords} visual words`;
  },
  async standIn({ config: { model }, folder }) {
    const { visualBranching: branching, visualDepth: depth, visualComponents } = model;
    const vocabulary = emptyVocabulary({ branching, depth, numComponents: visualComponents });
    await writeVisualVocabulary(join(folder, VOCABULARY_FILE), vocabulary);
  },
  async open({ config: { model, data, train }, folder, index }) {
    const assets = {
      tokenizer: await readTokenizer(folder),
      vocabulary: await readVisualVocabulary(join(folder, VOCABULARY_FILE)),
    };
    return videoBertSystem(model, { ...data, seed: train.seed }, assets, index);
  },
});

export interface VideoBertAssets {
  readonly tokenizer: Tokenizer;
  readonly vocabulary: VisualVocabulary;
}

const ASKING: Record<'masked-token' | 'masked-frame' | 'alignment', Question> = {
  'masked-token': question('masked-token', { hideText: true }),
  'masked-frame': question('masked-frame', { hideVideo: true }),
  alignment: question('alignment', { alignment: 'alternate' }),
};

const TEXT_TO_VIDEO = question('text-to-video', { hideVideo: true, windows: 'all' });
const VIDEO_TO_FUTURE = question('video-to-future', {
  ...{ hideVideo: true, windows: 'later', isSilent: true },
});
const FILLING_IN = question('fill-in', {});
const LOOKING = question('look', { hideText: true, hideVideo: true });

function question(purpose: string, asked: Partial<Question>): Question {
  return {
    purpose,
    hideText: false,
    hideVideo: false,
    maskAll: true,
    alignment: 'matched',
    ...asked,
  };
}

/** VideoBERT as the training loop sees it. Source: Sun et al. 2019, arXiv:1904.01766. */
export function videoBertSystem(
  config: VideoBertConfig,
  data: {
    readonly windows: number;
    readonly framesPerWindow: number;
    readonly frameSize: number;
    readonly sampling: ViewOptions['sampling'];
    readonly augment: ViewOptions['augment'];
    readonly seed: number;
  },
  { tokenizer, vocabulary }: VideoBertAssets,
  splits: { readonly train: readonly Sample[]; readonly heldOut: readonly Sample[] },
): VideoLanguageSystem<VideoBertParams> {
  const assembly: AssemblyConfig = {
    seed: data.seed,
    special: { ...tokenizer.special, firstWord: tokenizer.firstWordId },
    textVocabulary: tokenizer.vocabularySize,
    visualVocabulary: vocabulary.numWords,
    maxTextTokens: config.maxTextTokens,
    numWindows: data.windows,
    textMaskRatio: config.textMaskRatio,
    visualMaskRatio: config.visualMaskRatio,
    visualMaskSpan: config.visualMaskSpan,
    textOnlyShare: config.textOnlyShare,
    videoOnlyShare: config.videoOnlyShare,
    mismatchedShare: config.mismatchedShare,
    visualStrides: config.visualStrides,
    modalities: config.modalities,
  };
  const frameShape = [
    data.windows,
    data.framesPerWindow,
    data.frameSize,
    data.frameSize,
    3,
  ] as const;

  // Word pieces of a sample never change, its visual words only where it is looked at in another way each epoch; both are
  // far smaller than the index that lists the samples.
  const textIds = new Map<Sample, Int32Array>();
  const visualWords = new Map<Sample, Int32Array>();
  const looksTheSame = isFixedView({ ...data, isTraining: true });
  const visualWordsOf = (row: Row): Int32Array =>
    assignVisualWords(vocabulary, filmFeatures(row, frameShape));
  const textIdsOf = (sample: Sample): Int32Array =>
    remembered(textIds, sample, () => Int32Array.from(tokenizer.encode(sample.text)));
  const exampleOf = (row: Row): VideoBertExample => ({
    number: row.number,
    epoch: row.epoch,
    textIds: textIdsOf(row.sample),
    visualWords: looksTheSame
      ? remembered(visualWords, row.sample, () => visualWordsOf(row))
      : visualWordsOf(row),
  });
  const assemble = (rows: readonly Row[], asked: Question, split: readonly Sample[]): HostBatch =>
    assembleVideoBert(assembly, rows.map(exampleOf), asked, (rng, own) => {
      const readOf = (ids: Int32Array): string => textKey(ids.subarray(0, config.maxTextTokens));
      const ownText = readOf(own.textIds);
      // A split with few texts may have no other one within reach: the pair then counts as matched.
      for (let attempt = 0; attempt < 8; attempt++) {
        const other = textIdsOf(split[rng.integer(split.length)]!);
        if (other.length > 0 && readOf(other) !== ownText) return other;
      }
      return undefined;
    });

  const task = (
    objective: keyof typeof ASKING,
    numClasses: number,
    labelsOf: (batch: HostBatch) => number[],
  ): HeldOutTask => ({
    name: `${objective}-accuracy`,
    objective,
    numClasses,
    assemble: (rows) => assemble(rows, ASKING[objective], splits.heldOut),
    labels: labelsOf,
    ...(objective === 'masked-frame' && { frameAnswers: ['visualLabels'] }),
  });
  const prediction = (name: string, asked: Question): HeldOutTask => ({
    ...{ name, objective: 'masked-frame', numClasses: assembly.visualVocabulary },
    assemble: (rows) => assemble(rows, asked, splits.heldOut),
    labels: (batch) => countedLabels(batch, 'visualLabels', 'visualWeights'),
    frameAnswers: ['visualLabels'],
  });

  /** Each row's clip with the same text, whose `[MASK]`s are asked; those beyond the longest text are not. */
  const fillIn = (rows: readonly Row[], text: string): HostBatch => {
    const { ids, places } = idsToFillIn(tokenizer, text, assembly.maxTextTokens);
    const examples = rows.map((row) => ({ ...exampleOf(row), textIds: Int32Array.from(ids) }));
    const { arrays, ...rest } = assembleVideoBert(assembly, examples, FILLING_IN, () => undefined);
    const shape = [rows.length, places.length];
    const filled = (value: (place: number) => number): number[] =>
      rows.flatMap(() => places.map(value));
    return {
      ...rest,
      arrays: {
        ...arrays,
        textPositions: { data: Int32Array.from(filled((place) => 1 + place)), shape },
        textLabels: { data: new Int32Array(filled(() => 0)), shape },
        textWeights: { data: Float32Array.from(filled(() => 1)), shape },
      },
    };
  };
  const fillInTasks = (config.fillIn?.slots ?? []).map((words, slot): HeldOutTask => {
    const ids = wholeWords(tokenizer, words); // one [MASK] is one piece
    /** The first word of the kind in a text. */
    const wordOf = (sample: Sample): number | undefined =>
      ids.get(sample.text.split(/[^\p{L}]+/u).find((part) => ids.has(part)) ?? '');
    const choices = new Float32Array(assembly.textVocabulary);
    for (const id of ids.values()) choices[id] = 1;
    return {
      name: `fill-in of ${words[0]!} or another`,
      objective: 'masked-token',
      numClasses: assembly.textVocabulary,
      asks: (sample) => wordOf(sample) !== undefined,
      assemble(rows) {
        const batch = fillIn(rows, config.fillIn!.text);
        const { textLabels: labels, textWeights: weights } = batch.arrays;
        const numSlots = labels!.shape[1]!;
        const own = (at: number): number | undefined =>
          at % numSlots === slot ? wordOf(rows[Math.floor(at / numSlots)]!.sample) : undefined;
        const asked = {
          textLabels: { ...labels!, data: Int32Array.from(labels!.data, (_, at) => own(at) ?? 0) },
          textWeights: {
            ...weights!,
            data: Float32Array.from(weights!.data, (_, at) => (own(at) === undefined ? 0 : 1)),
          },
          textChoices: {
            data: Float32Array.from(
              { length: rows.length * choices.length },
              (_, at) => choices[at % choices.length]!,
            ),
            shape: [rows.length, choices.length],
          },
        };
        return { ...batch, arrays: { ...batch.arrays, ...asked } };
      },
      labels: (batch) => countedLabels(batch, 'textLabels', 'textWeights'),
    };
  });

  const logits = (
    params: VideoBertParams,
    frozen: TensorTree,
    batch: TensorTree,
  ): VideoBertLogits =>
    videoBertLogits(
      params,
      (frozen as { centroids: tf.Tensor }).centroids,
      batch as VideoBertBatch,
      { numHeads: config.heads, blocks: config.blocks },
    );

  return {
    name: 'videobert',
    objectives: { 'masked-token': 1, 'masked-frame': 1, alignment: 1 },
    heldOutTasks: [
      task('masked-token', assembly.textVocabulary, (b) =>
        countedLabels(b, 'textLabels', 'textWeights'),
      ),
      task('masked-frame', assembly.visualVocabulary, (b) =>
        countedLabels(b, 'visualLabels', 'visualWeights'),
      ),
      task('alignment', 2, (b) => countedLabels(b, 'matched', 'alignmentWeights')),
    ],
    furtherTasks: [
      prediction('text-to-video', TEXT_TO_VIDEO),
      prediction('video-to-future', VIDEO_TO_FUTURE),
      ...fillInTasks,
    ],
    init: (initializer) =>
      initVideoBert(
        {
          width: config.width,
          numLayers: config.layers,
          numHeads: config.heads,
          mlpRatio: config.mlpRatio,
          textVocabulary: assembly.textVocabulary,
          visualVocabulary: assembly.visualVocabulary,
          centroidWidth: vocabulary.numComponents,
          length: sequenceLength(assembly),
          blocks: config.blocks,
        },
        initializer,
      ),
    kinds: { '': kindOf(config) },
    frozen: {
      centroids: {
        data: vocabulary.centroids,
        shape: [vocabulary.numWords, vocabulary.numComponents],
      },
    },
    // BERT's choice: no decay on biases, norms and embeddings.
    decays: (path, shape) =>
      shape.length > 1 && !['text', 'position', 'segment', 'visualMask'].includes(path),
    assemble: (rows) => assemble(rows, TRAINING, splits.train),
    look: {
      assemble: (rows) => assemble(rows, LOOKING, splits.heldOut),
      guess: (params, frozen, batch) => {
        const { text, visual } = logits(params, frozen, batch);
        return { text: tf.argMax(text, -1), visual: tf.argMax(visual, -1) };
      },
      explain: (batch, guesses) => explain(assembly, tokenizer, batch, guesses),
    },
    fillIn: {
      example: config.fillIn?.text ?? '[MASK] [MASK]',
      assemble: fillIn,
      given: (row, text) => {
        const shown = config.modalities === 'text' ? 0 : numFilmWindows(row, data.framesPerWindow);
        return {
          ...questionGiven(tokenizer, text, assembly.maxTextTokens),
          ...(shown < data.windows && { windows: [...Array(shown).keys()] }),
        };
      },
      logits: (params, frozen, batch) => logits(params, frozen, batch).text,
      complete: ({ arrays }, guesses) =>
        filledIn(
          tokenizer,
          {
            ids: arrays['ids']!,
            positions: arrays['textPositions']!,
            end: tokenizer.special.join,
          },
          guesses,
        ),
    },
    sums: (params, frozen, batch) =>
      videoBertSums(logits(params, frozen, batch), batch as VideoBertBatch),
  };
}

/** Of all that words and frames go through. */
function kindOf({ heads, blocks }: VideoBertConfig): PartKind {
  const { norm, activation, epsilon } = VIDEOBERT_BLOCKS[blocks];
  return { heads, activation, epsilon, norms: norm === 'post' ? 'behind' : 'before' };
}

/**
 * Windows up to the one that shows the film's last frame for the first time. Those behind it repeat that frame, as where
 * a clip is shorter than the frames that are asked of it: no film, and nothing to learn to predict.
 */
function numFilmWindows(
  { timesSeconds }: Pick<Row, 'timesSeconds'>,
  framesPerWindow: number,
): number {
  return 1 + Math.floor(timesSeconds.indexOf(timesSeconds.at(-1)!) / framesPerWindow);
}

/** Features of a clip's {@link numFilmWindows}, one after another: what the others repeat is no background either. */
function filmFeatures(
  clip: Pick<Row, 'frames' | 'timesSeconds'>,
  [, framesPerWindow, ...picture]: Parameters<typeof frameFeatures>[1],
): Float32Array {
  const numWindows = numFilmWindows(clip, framesPerWindow);
  const numBytes = [framesPerWindow, ...picture].reduce((a, b) => a * b, numWindows);
  return frameFeatures(clip.frames.subarray(0, numBytes), [
    numWindows,
    framesPerWindow,
    ...picture,
  ]);
}

function remembered<K, V>(known: Map<K, V>, key: K, make: () => V): V {
  const value = known.get(key) ?? make();
  known.set(key, value);
  return value;
}

/** The rows of a batch in words: what stood there, what was hidden, what the model said instead. */
function explain(
  { maxTextTokens, numWindows }: AssemblyConfig,
  tokenizer: Tokenizer,
  { arrays }: HostBatch,
  guesses: Readonly<Record<string, ArrayLike<number>>>,
): Explained[] {
  const row = (name: string, index: number): number[] => {
    const { data, shape } = arrays[name]!;
    return [...data.subarray(index * shape[1]!, (index + 1) * shape[1]!)];
  };
  return Array.from({ length: arrays['ids']!.shape[0]! }, (_, index) => {
    const hidden = (modality: 'text' | 'visual'): Map<number, { label: number; guess: number }> => {
      const [positions, labels] = [
        row(`${modality}Positions`, index),
        row(`${modality}Labels`, index),
      ];
      return new Map(
        row(`${modality}Weights`, index).flatMap((weight, slot) => {
          const guess = guesses[modality]![index * positions.length + slot]!;
          return weight === 0 ? [] : [[positions[slot]!, { label: labels[slot]!, guess }]];
        }),
      );
    };
    const [text, visual] = [hidden('text'), hidden('visual')];
    const [ids, present] = [row('ids', index), row('present', index)];
    const words = ids.slice(1, 1 + maxTextTokens).flatMap((id, i) => {
      if (present[1 + i] === 0) return [];
      const asked = text.get(1 + i);
      if (asked === undefined) return [{ text: tokenizer.decode([id]) }];
      return [{ text: tokenizer.decode([asked.label]), guess: tokenizer.decode([asked.guess]) }];
    });
    const windows = Array.from({ length: numWindows }, (_window, i) => {
      const asked = visual.get(2 + maxTextTokens + i);
      return asked === undefined ? {} : { guess: asked.label === asked.guess };
    });
    return { words, windows };
  });
}

/** Words for the frames of the training split. */
async function fitVocabulary({
  config: { model, data, train },
  index,
  loader,
}: FitContext<VideoBertConfig>): Promise<VisualVocabulary> {
  const shape = [data.windows, data.framesPerWindow, data.frameSize, data.frameSize, 3] as const;
  const { features, numClips, progress } = await fittingFeatures(
    { index, loader, seed: train.seed, what: 'visual words' },
    (clip) => filmFeatures(clip, shape),
  );
  const vocabulary = fitVisualVocabulary(features, {
    branching: model.visualBranching,
    depth: model.visualDepth,
    seed: train.seed,
    pcaDims: model.visualComponents,
  });
  progress.done(`${vocabulary.numWords} words of ${numClips} clips`);
  return vocabulary;
}
