import * as tf from '@tensorflow/tfjs-core';
import { shuffled, openRng } from '../../proto/random.ts';
import type { Sample } from '../../video/sample-index.ts';
import type { Tokenizer } from '../../video/tokenizer.ts';
import {
  assignVisualWords,
  frameFeatures,
  type VisualVocabulary,
} from '../../video/visual-vocabulary.ts';
import type { VideoBertConfig } from '../config.ts';
import type { HeldOutTask, HostBatch, Row, VideoLanguageSystem } from './system.ts';
import {
  initVideoBert,
  videoBertSums,
  type VideoBertBatch,
  type VideoBertParams,
} from './videobert.ts';
import {
  assembleVideoBert,
  countedLabels,
  sequenceLength,
  TRAINING,
  type AssemblyConfig,
  type Question,
  type VideoBertExample,
} from './videobert-batch.ts';

export interface VideoBertAssets {
  readonly tokenizer: Tokenizer;
  readonly vocabulary: VisualVocabulary;
}

const ASKING: Record<'masked-token' | 'masked-frame' | 'alignment', Question> = {
  'masked-token': question('masked-token', { hideText: true }),
  'masked-frame': question('masked-frame', { hideVideo: true }),
  alignment: question('alignment', { alignment: 'alternate' }),
};

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
    modalities: config.modalities,
  };
  const frameShape = [
    data.windows,
    data.framesPerWindow,
    data.frameSize,
    data.frameSize,
    3,
  ] as const;

  // Texts are encoded once: the index that holds them stays in memory anyway.
  const encoded = new Map<Sample, Int32Array>();
  const textIdsOf = (sample: Sample): Int32Array => {
    const known = encoded.get(sample);
    if (known !== undefined) return known;
    const ids = Int32Array.from(tokenizer.encode(sample.text));
    encoded.set(sample, ids);
    return ids;
  };
  const exampleOf = (row: Row): VideoBertExample => ({
    number: row.number,
    epoch: row.epoch,
    textIds: textIdsOf(row.sample),
    visualWords: assignVisualWords(vocabulary, frameFeatures(row.frames, frameShape)),
  });
  const assemble = (rows: readonly Row[], asked: Question, split: readonly Sample[]): HostBatch =>
    assembleVideoBert(assembly, rows.map(exampleOf), asked, (rng, own) => {
      const ownText = split[own.number]!.text;
      // A split with few texts may have no other one within reach: the pair then counts as matched.
      for (let attempt = 0; attempt < 8; attempt++) {
        const other = split[rng.integer(split.length)]!;
        if (other.text !== ownText && other.text !== '') return textIdsOf(other);
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
  });

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
        },
        initializer,
      ),
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
    sums: (params, frozen, batch) =>
      videoBertSums(
        params,
        (frozen as { centroids: tf.Tensor }).centroids,
        batch as VideoBertBatch,
        config.heads,
      ),
  };
}

/** Samples to fit a vocabulary on: all of them, or as many as `limit`, evenly drawn. */
export function fittingSamples(numSamples: number, limit: number, seed: number): number[] {
  const all = Array.from({ length: numSamples }, (_, i) => i);
  if (numSamples <= limit) return all;
  return shuffled(all, openRng(seed, 'fitting-samples'))
    .slice(0, limit)
    .sort((a, b) => a - b);
}
