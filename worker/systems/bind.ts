/**
 * Frozen encoders that other systems see and hear with, where no pretrained ones can be had: towers for pictures, films
 * and sounds, bound to words by contrast over the global batch.
 */
import * as z from 'zod';
import * as tf from '@tensorflow/tfjs-core';
import { count } from '../config-fields.ts';
import { infoNceSums, LOGIT_SCALE_BOUNDS } from '../losses/contrastive.ts';
import {
  bindEmbeddings,
  initBind,
  SENSES,
  textName,
  type BindBatch,
  type BindParams,
  type BindSizes,
  type Sense,
} from '../models/bind.ts';
import { encoderKind } from '../part-kind.ts';
import { publishedVision } from '../pretrained/published-parts.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import type { Sample } from '../../video/index/sample.ts';
import { audioFields, audioFault, audioSizes, spectrograms } from './audio-part.ts';
import { clipOf, factsByClip, longestOf, type Facts } from './clip-facts.ts';
import { decaysMatrices } from './dialogue-system.ts';
import { assembleDialogues, readIds } from './dialogue.ts';
import { countedOf } from './host-arrays.ts';
import {
  defineSystem,
  isClipWithWords,
  type HeldOutTask,
  type HostBatch,
  type Row,
  type VideoLanguageSystem,
} from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import { firstAlike, textNumbers } from './text-number.ts';
import {
  allPictures,
  anyPicture,
  packedPictures,
  partsOfVision,
  unpackedPictures,
  visionFault,
  visionFields,
  visionSizes,
  type PictureShape,
} from './vision-part.ts';

const fields = z.strictObject({
  name: z
    .literal('bind')
    .describe('LanguageBind (Zhu et al. 2023, arXiv:2310.01852), ImageBind (arXiv:2305.05665)'),
  senses: z.array(z.enum(SENSES)).min(1).describe('What is bound to words'),
  shared: z
    .boolean()
    .describe('One space for all senses; false: each has a text tower of its own, for comparison'),
  vision: visionFields,
  audio: audioFields.nullable(),
  textLayers: count('Blocks of the tower for words, which is as wide as the one for pictures'),
  textLength: count('Tokens of a text; longer ones are cut', 4),
  textVocabulary: count(
    'Most word pieces that a tokenizer is trained to, special tokens included',
    32,
  ),
  embedding: count('Width of the space'),
});

type BindConfig = z.infer<typeof fields>;

export const bind = defineSystem<BindConfig, BindParams>({
  schema: fields,
  sampleKind: 'a clip of one video with words',
  takes: isClipWithWords,
  check: ({ model, data }) =>
    visionFault(model.vision, data.frameSize) ??
    (model.senses.includes('audio') ? audioFault(model.audio, data.audio) : undefined),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.textVocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder, index }) {
    const tokenizer = await readTokenizer(folder);
    return bindSystem(model, { ...data, seed: train.seed }, tokenizer, [
      ...index.train,
      ...index.heldOut,
    ]);
  },
});

function bindSystem(
  config: BindConfig,
  data: PictureShape & {
    readonly windows: number;
    readonly seed: number;
    readonly audio: { readonly numMels: number; readonly numFrames: number } | null;
  },
  tokenizer: Tokenizer,
  samples: readonly Sample[],
): VideoLanguageSystem<BindParams> {
  const { seed } = data;
  const { senses, shared: isShared } = config;
  const vision = visionSizes(config.vision, data);
  const sizes: BindSizes = {
    vision,
    visionParts: partsOfVision(config.vision),
    numFrames: data.windows,
    audio:
      config.audio === null || data.audio === null
        ? undefined
        : audioSizes(config.audio, data.audio),
    text: {
      ...vision,
      numLayers: config.textLayers,
      vocabulary: tokenizer.vocabularySize,
      length: config.textLength,
    },
    embedding: config.embedding,
    senses,
    isShared,
  };
  const facts = factsByClip(samples, '');
  const assemble = (rows: readonly Row[], purpose: 'train' | 'held-out'): HostBatch => {
    const texts = rows.map(({ sample }) => textOf(sample, facts));
    const { ids, present } = assembleDialogues(
      { tokenizer, length: config.textLength },
      // By id: another model's tokenizer may have no piece that is spelt [CLS].
      texts.map((words) => [{ ids: [tokenizer.special.cls] }, { words, isAnswer: true }]),
    );
    return {
      arrays: {
        ids,
        present,
        textIds: textNumbers(rows.map((_, i) => readIds({ ids, present }, i))),
        ...(senses.includes('image') && {
          image: packedPictures(rows, data, anyPicture(seed, purpose)),
        }),
        ...(senses.includes('video') && { video: packedPictures(rows, data, allPictures) }),
        ...(senses.includes('audio') && { audio: spectrograms(rows) }),
        rowWeights: { data: new Float32Array(rows.length).fill(1), shape: [rows.length] },
      },
      counts: Object.fromEntries(senses.map((sense) => [sense, rows.length])),
      numTokens: [...present.data].reduce((a, b) => a + b, 0),
    };
  };
  const unpacked = (batch: TensorBatch): BindBatch => ({
    ids: batch['ids']!,
    present: batch['present']!,
    ...(batch['image'] && { image: unpackedPictures(batch['image'], data) }),
    ...(batch['video'] && { video: unpackedPictures(batch['video'], data) }),
    ...(batch['audio'] && { audio: batch['audio'] }),
  });
  return {
    name: 'bind',
    objectives: Object.fromEntries(senses.map((sense) => [sense, 1])),
    heldOutTasks: senses.map((sense): HeldOutTask => ({
      name: `${sense} to its words`,
      objective: sense,
      // Which of the rows of its microbatch: chance is one in so many.
      numClasses: 1 << 16,
      assemble: (rows) => assemble(rows, 'held-out'),
      labels: ({ arrays }) => countedOf(firstAlike(arrays['textIds']!), arrays['rowWeights']!),
    })),
    init: (initializer) => initBind(sizes, initializer),
    kinds: {
      'image/tower': encoderKind(vision),
      'video/tower': encoderKind(vision),
      ...(sizes.audio && { 'audio/tower': encoderKind(sizes.audio) }),
      text: encoderKind(sizes.text),
    },
    published: senses.includes('image')
      ? [publishedVision('image/tower', config.vision.kind, vision)]
      : [],
    frozen: {},
    decays: decaysMatrices,
    bounds: { logitScale: LOGIT_SCALE_BOUNDS },
    assemble: (rows) => assemble(rows, 'train'),
    sums: () => ({}),
    contrast: {
      objectives: senses,
      parameters: ['logitScale'],
      embed: (params, _frozen, batch) => {
        const own = batch as TensorBatch;
        return {
          ...bindEmbeddings(params, unpacked(own), sizes),
          textIds: tf.clone(own['textIds']!),
          rowWeightIds: tf.clone(own['rowWeights']!),
        };
      },
      sums: (params, embeddings) =>
        Object.fromEntries(
          senses.map((sense: Sense) => [
            sense,
            infoNceSums(
              {
                left: embeddings[sense]!,
                right: embeddings[textName(sense, isShared)]!,
                groupIds: embeddings['textIds']!,
                counted: embeddings['rowWeightIds']!,
              },
              tf.exp(params.logitScale),
            ),
          ]),
        ),
    },
  };
}

type TensorBatch = Readonly<Record<string, tf.Tensor | undefined>>;

/** All answers about the clip but the longest, where there are several; else what the sample says. */
function textOf(sample: Sample, facts: Facts): string {
  const own = facts.get(clipOf(sample)) ?? [];
  if (own.length < 2) return own[0]?.answer ?? sample.text;
  const caption = longestOf(own);
  return own.flatMap(({ answer }) => (answer === caption ? [] : [answer])).join(' ');
}
