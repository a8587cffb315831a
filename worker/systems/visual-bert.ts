/** VisualBERT: one BERT over words and regions of a picture. Source: Li et al. 2019, arXiv:1908.03557. */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import type { Sample } from '../../video/index/sample.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { count, share } from '../config-fields.ts';
import {
  initVisualBert,
  type VisualBertParams,
  type VisualBertSizes,
} from '../models/visual-bert.ts';
import {
  visualBertHiddenLogits,
  visualBertSums,
  type VisualBertBatch,
} from '../models/visual-bert-training.ts';
import { encoderKind } from '../part-kind.ts';
import { publishedVisualBert } from '../pretrained/published-parts.ts';
import type { TensorTree } from '../tree.ts';
import { decaysMatrices } from './dialogue-system.ts';
import { countedOf } from './host-arrays.ts';
import { hiddenWordsExplained } from './hidden-words.ts';
import { pictureWordsField } from './picture-words.ts';
import { findRegions, readRegions, writeNoRegions, type RegionsOfFiles } from './regions.ts';
import {
  defineSystem,
  isOneMediumWithWords,
  type HeldOutTask,
  type VideoLanguageSystem,
} from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import { boxesFault, checkBlocks, encoderSizes, textFields } from './tower-fields.ts';
import {
  openVisualBertAssembler,
  regionWidth,
  type VisualBertQuestion,
} from './visual-bert-batch.ts';

const fields = z.strictObject({
  name: z.literal('visual-bert').describe('Li et al. 2019, arXiv:1908.03557'),
  text: textFields.describe('The encoder that reads words and regions together'),
  maxRegions: count('Regions of a picture; the largest are seen where there are more'),
  grid: count('Columns and rows of the grid of regions of a picture whose regions no file tells'),
  boxEmbedding: z
    .enum(['none', 'cxcywh'])
    .describe('cxcywh: centre, width and height of its box, as shares, beside what a region shows'),
  textMaskRatio: share('Share of the word pieces that is hidden; regions never are'),
  pictureWords: pictureWordsField,
  blank: z.boolean().describe('Whether all regions are zeros, for comparison'),
});

type VisualBertConfig = z.infer<typeof fields>;

export const visualBert = defineSystem<VisualBertConfig, VisualBertParams>({
  schema: fields,
  sampleKind: 'a picture or a clip of one video, with words',
  takes: isOneMediumWithWords,
  check: ({ model, data }) => {
    const { grid, maxRegions } = model;
    if (grid ** 2 > maxRegions)
      return `model.grid of ${grid} has ${grid ** 2} regions, and model.maxRegions is ${maxRegions}: lower the one or raise the other`;
    return checkBlocks('model.text', model.text) ?? boxesFault(data);
  },
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.text.vocabulary);
    const numKnown = await findRegions(
      context.index,
      context.folder,
      context.config.model.maxRegions,
    );
    const { files } = context.index;
    return `${vocabularySize} word pieces, regions of ${numKnown} of ${files.length} media, of the others a grid`;
  },
  standIn: ({ index, folder }) => writeNoRegions(folder, index.files.length),
  async open({ config: { model, data, train }, folder, index }) {
    const assets = {
      tokenizer: await readTokenizer(folder),
      regionsOfFiles: await readRegions(folder),
    };
    return visualBertSystem(model, { ...data, seed: train.seed }, assets, index);
  },
});

export function visualBertSizes(
  { text, boxEmbedding }: Pick<VisualBertConfig, 'text' | 'boxEmbedding'>,
  vocabulary: number,
): VisualBertSizes {
  return {
    ...encoderSizes(text, { activation: 'gelu', epsilon: 1e-12 }),
    ...{ vocabulary, length: text.maxTokens, numSegments: 2 },
    regionWidth: regionWidth(boxEmbedding === 'cxcywh'),
  };
}

export function visualBertSystem(
  config: VisualBertConfig,
  data: {
    readonly windows: number;
    readonly framesPerWindow: number;
    readonly frameSize: number;
  } & {
    readonly seed: number;
  },
  {
    tokenizer,
    regionsOfFiles,
  }: { readonly tokenizer: Tokenizer; readonly regionsOfFiles: RegionsOfFiles },
  splits: { readonly train: readonly Sample[]; readonly heldOut: readonly Sample[] },
): VideoLanguageSystem<VisualBertParams> {
  const sizes = visualBertSizes(config, tokenizer.vocabularySize);
  const assembler = openVisualBertAssembler({
    ...{ seed: data.seed, tokenizer, regionsOfFiles, frameSize: data.frameSize },
    ...{ maxTokens: config.text.maxTokens, wordMaskRatio: config.textMaskRatio },
    ...{ maxRegions: config.maxRegions, grid: config.grid, blank: config.blank },
    hasBoxes: config.boxEmbedding === 'cxcywh',
    pictureWords: config.pictureWords,
    samples: [...splits.train, ...splits.heldOut],
  });
  const tasksOf = (
    name: string,
    asked: VisualBertQuestion,
    task: Pick<HeldOutTask, 'objective' | 'numClasses'> & {
      readonly answers: readonly [labels: string, weights: string];
    },
  ): HeldOutTask[] =>
    [false, true].map((isOther) => ({
      name: isOther ? `${name}, with regions of another` : name,
      ...{ objective: task.objective, numClasses: task.numClasses },
      assemble: (rows) => assembler.question(rows, { ...asked, isOther }, splits.heldOut),
      labels: ({ arrays }) => countedOf(arrays[task.answers[0]]!, arrays[task.answers[1]]!),
    }));
  const wordTasks = (config.pictureWords.length === 0 ? [undefined] : config.pictureWords).flatMap(
    (among) =>
      tasksOf(
        among === undefined ? 'masked-word' : `${among[0]!} or another`,
        { kind: 'word', ...(among && { among }) },
        {
          ...{ objective: 'mlm', numClasses: tokenizer.vocabularySize },
          answers: ['wordLabels', 'wordWeights'],
        },
      ),
  );
  return {
    name: 'visual-bert',
    objectives: { mlm: 1, match: 1 },
    heldOutTasks: [
      ...tasksOf(
        'match',
        { kind: 'match' },
        { objective: 'match', numClasses: 2, answers: ['matchLabels', 'matchWeights'] },
      ),
      ...wordTasks,
    ],
    init: (initializer) => initVisualBert(sizes, initializer),
    kinds: { bert: encoderKind(sizes, 'behind') },
    published: [publishedVisualBert(sizes)],
    frozen: {},
    decays: decaysMatrices,
    assemble: (rows) => assembler.training(rows, splits.train),
    sums: (params, _frozen, batch) => visualBertSums(params, given(batch), sizes),
    look: {
      assemble: (rows) => assembler.question(rows, { kind: 'word' }, splits.heldOut),
      guess: (params, _frozen, batch) => ({
        words: tf.argMax(visualBertHiddenLogits(params, given(batch), sizes).words, -1),
      }),
      explain: ({ arrays }, guesses) =>
        hiddenWordsExplained(tokenizer, {
          ids: arrays['ids']!,
          positions: arrays['wordPositions']!,
          labels: arrays['wordLabels']!,
          weights: arrays['wordWeights']!,
          guesses: guesses['words']!,
          numWindows: data.windows,
        }),
    },
  };
}

/** A batch as {@link openVisualBertAssembler} made it. */
function given(batch: TensorTree): VisualBertBatch {
  return batch as unknown as VisualBertBatch;
}
