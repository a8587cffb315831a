/**
 * BLIP-2, first stage: a Q-Former reads a frozen vision tower and learns to tell pictures and texts apart, whether they
 * match, and to write. Source: Li et al. 2023, arXiv:2301.12597, sec. 3.2; salesforce/LAVIS, blip2_qformer.py.
 */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { openRng, type Rng } from '../../proto/random.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { count } from '../config-fields.ts';
import { NO_LABEL } from '../losses/next-token.ts';
import { queryContrastSums } from '../losses/query-contrast.ts';
import { blip2ImageEmbeddings, blip2TextEmbeddings, type Blip2Sizes } from '../models/blip2.ts';
import {
  blip2Embeddings,
  blip2PairSums,
  blip2Sums,
  initBlip2Training,
  writeSums,
  type Blip2Batch,
  type Blip2TrainingParams,
} from '../models/blip2-training.ts';
import { vit } from '../models/vit.ts';
import { encoderKind } from '../part-kind.ts';
import { publishedBlip2, publishedVision } from '../pretrained/published-parts.ts';
import { disposeTree } from '../tree.ts';
import { decaysMatrices } from './dialogue-system.ts';
import { assembleDialogues, readIds } from './dialogue.ts';
import { countedOf } from './host-arrays.ts';
import { qFormerFault, qFormerFields, qFormerSizes } from './q-former-part.ts';
import {
  defineSystem,
  isOneMediumWithWords,
  type HeldOutTask,
  type HostArray,
  type HostBatch,
  type Row,
  type VideoLanguageSystem,
} from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import { exchanged, openPictureWords, pictureWordsField } from './picture-words.ts';
import { firstAlike, textKey, textNumbers } from './text-number.ts';
import {
  anyPicture,
  initVision,
  packedPictures,
  unpackedPictures,
  visionFault,
  visionFields,
  visionSizes,
  type PictureShape,
} from './vision-part.ts';

const fields = z.strictObject({
  name: z.literal('blip2').describe('Li et al. 2023, arXiv:2301.12597, the first stage'),
  vision: visionFields.describe('`layers` are those whose output is taken: all but the last'),
  qFormer: qFormerFields,
  embedding: count('Width of what is contrasted'),
  textLength: count('Tokens of a text; longer ones are cut', 4),
  textVocabulary: count(
    'Most word pieces that a tokenizer is trained to, special tokens included',
    32,
  ),
  hardNegatives: z
    .boolean()
    .describe(
      'Pairs that do not match are drawn by their similarity; false: evenly, for comparison',
    ),
  pictureWords: pictureWordsField,
});

type Blip2Config = z.infer<typeof fields>;

export const blip2 = defineSystem<Blip2Config, Blip2TrainingParams>({
  schema: fields,
  sampleKind: 'a picture or a clip of one video, with words',
  takes: isOneMediumWithWords,
  check: ({ model, data }) =>
    visionFault(model.vision, data.frameSize) ?? qFormerFault(model.qFormer),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.textVocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder }) {
    const tokenizer = await readTokenizer(folder);
    return blip2System(model, { ...data, seed: train.seed }, tokenizer);
  },
});

/** Of one microbatch; `ask` of held-out clips. */
type Purpose = 'train' | 'contrast' | 'match' | 'write';

export function blip2System(
  config: Blip2Config,
  data: PictureShape & { readonly seed: number },
  tokenizer: Tokenizer,
): VideoLanguageSystem<Blip2TrainingParams> {
  const { seed } = data;
  const { textLength, pictureWords, hardNegatives: isHard } = config;
  const sizes: Blip2Sizes = {
    vision: visionSizes(config.vision, data),
    qFormer: qFormerSizes(config.qFormer, { contextWidth: config.vision.width, hasText: true }),
    numQueries: config.qFormer.queries,
    vocabulary: tokenizer.vocabularySize,
    length: textLength,
    embedding: config.embedding,
  };
  const told = openPictureWords(tokenizer, pictureWords);
  // By id: another model's tokenizer may have no piece that is spelt [CLS] or [>].
  const { cls, join } = tokenizer.special;
  const tokens = (texts: readonly string[], begin: number) =>
    assembleDialogues(
      { tokenizer, length: textLength },
      texts.map((words) => [{ ids: [begin] }, { words, isAnswer: true }]),
    );

  const assemble = (rows: readonly Row[], purpose: Purpose): HostBatch => {
    const rngOf = (row: Row, what: string): Rng =>
      openRng(seed, `blip2/${what}`, row.epoch, row.number);
    const own = rows.map(({ sample }) => sample.text);
    const labels = rows.map(({ epoch, number }) =>
      purpose === 'match' ? (epoch + number) % 2 : 1,
    );
    const asked = rows.map((row, i) =>
      labels[i] === 1 ? own[i]! : exchanged(own[i]!, pictureWords, rngOf(row, 'exchange')),
    );
    const texts = asked.map((text, i) => text ?? own[i]!);
    const read = tokens(texts, cls);
    const { ids, present } = read;
    const ownRead = tokens(own, cls);
    const ownIds = rows.map((_, i) => readIds(ownRead, i));
    // A word that is cut off can be exchanged, and then nothing is.
    const isAsked = asked.map(
      (text, i) =>
        text !== undefined &&
        (labels[i] === 1 || textKey(readIds(read, i)) !== textKey(ownIds[i]!)),
    );
    const write = tokens(texts, join);
    const textIds = textNumbers(ownIds.map((ids) => told.groupedBy(ids)));
    const hasOther = firstAlike(textIds).data.some((first) => first !== 0);
    const [count, length] = [rows.length, textLength];
    const noise = (what: string): HostArray => ({
      data: Float32Array.from(rows.flatMap((row) => gumbel(rngOf(row, what), count))),
      shape: [count, count],
    });
    const common = {
      images: packedPictures(rows, data, anyPicture(seed, purpose)),
      ids,
      present,
    };
    const numTokens = [...present.data].reduce((a, b) => a + b, 0);
    const ones = (): HostArray => ({ data: new Float32Array(count).fill(1), shape: [count] });
    const isCounted = (label: number): boolean =>
      label !== NO_LABEL &&
      (purpose === 'train' || pictureWords.length === 0 || told.isWord(label));
    const writing = {
      writeIds: write.ids,
      writeLabels: write.labels,
      writeWeights: {
        data: Float32Array.from(write.labels.data, (label) => (isCounted(label) ? 1 : 0)),
        shape: [count, length],
      },
    };
    const counts = {
      contrast: count,
      match: count * (hasOther ? 3 : 1),
      write: writing.writeWeights.data.reduce((a, b) => a + b, 0),
    };
    switch (purpose) {
      case 'train': {
        const other = hasOther ? 1 : 0;
        const matchWeights = Float32Array.from(rows.flatMap(() => [1, other, other]));
        const negatives = { textNoise: noise('text'), imageNoise: noise('image') };
        return {
          arrays: {
            ...{ ...common, ...writing, ...negatives, textIds, rowWeights: ones() },
            matchWeights: { data: matchWeights, shape: [count, 3] },
          },
          ...{ counts, numTokens },
        };
      }
      case 'contrast':
        return { arrays: { ...common, textIds, rowWeights: ones() }, counts, numTokens };
      case 'match':
        return {
          arrays: {
            ...common,
            pairLabels: { data: Int32Array.from(labels), shape: [count] },
            pairWeights: { data: Float32Array.from(isAsked, Number), shape: [count] },
          },
          ...{ counts, numTokens },
        };
      case 'write':
        return { arrays: { ...common, ...writing }, counts, numTokens };
    }
  };
  const unpacked = (batch: TensorBatch): Pick<Blip2Batch, 'images' | 'ids' | 'present'> => ({
    images: unpackedPictures(batch['images']!, data),
    ids: batch['ids']!,
    present: batch['present']!,
  });
  const task = (
    objective: Exclude<Purpose, 'train'>,
    numClasses: number,
    labels: (arrays: HostBatch['arrays']) => number[],
  ): HeldOutTask => ({
    ...{ name: objective, objective, numClasses },
    assemble: (rows) => assemble(rows, objective),
    labels: ({ arrays }) => labels(arrays),
  });
  return {
    name: 'blip2',
    objectives: { contrast: 1, match: 1, write: 1 },
    heldOutTasks: [
      // Which row of its microbatch.
      task('contrast', 1 << 16, ({ textIds, rowWeights }) =>
        countedOf(firstAlike(textIds!), rowWeights!),
      ),
      ...(pictureWords.length === 0
        ? []
        : [
            task('match', 2, ({ pairLabels, pairWeights }) => countedOf(pairLabels!, pairWeights!)),
          ]),
      task('write', tokenizer.vocabularySize, ({ writeLabels, writeWeights }) =>
        countedOf(writeLabels!, writeWeights!),
      ),
    ],
    init(initializer) {
      const { vision, ...rest } = initBlip2Training(sizes, initializer);
      // Of the tower's own kind, which may be another than a plain ViT.
      disposeTree(vision);
      const place = { init: initializer, path: 'vision' };
      return { vision: initVision(config.vision, data, place), ...rest };
    },
    kinds: { vision: encoderKind(sizes.vision), qFormer: encoderKind(sizes.qFormer, 'behind') },
    published:
      config.vision.kind === 'vit'
        ? [publishedBlip2(sizes)]
        : [publishedVision('vision', 'clip', sizes.vision)],
    frozen: {},
    decays: decaysMatrices,
    assemble: (rows) => assemble(rows, 'train'),
    similarity: {
      assembleClips: (rows) => ({
        arrays: { images: packedPictures(rows, data, anyPicture(seed, 'contrast')) },
        ...{ counts: {}, numTokens: rows.length },
      }),
      clips(params, _frozen, batch) {
        const seen = unpackedPictures((batch as TensorBatch)['images']!, data);
        return blip2ImageEmbeddings(params, vit(params.vision, seen, sizes.vision), sizes);
      },
      assembleTexts(texts) {
        const { ids, present } = tokens(texts, cls);
        return { arrays: { ids, present }, counts: {}, numTokens: texts.length * textLength };
      },
      texts(params, _frozen, batch) {
        const { ids, present } = batch as TensorBatch;
        return blip2TextEmbeddings(params, { ids: ids!, present: present! }, sizes);
      },
    },
    sums(params, _frozen, batch) {
      const own = batch as TensorBatch;
      const { pairLabels, pairWeights, writeIds, textNoise } = own;
      const seen = unpacked(own);
      if (pairLabels !== undefined && pairWeights !== undefined)
        return { match: blip2PairSums(params, { ...seen, pairLabels, pairWeights }, sizes) };
      if (writeIds === undefined) return {};
      const writing = {
        writeIds,
        writeLabels: tf.where(
          tf.greater(own['writeWeights']!, 0),
          own['writeLabels']!,
          tf.fill(writeIds.shape, NO_LABEL, 'int32'),
        ),
      };
      if (textNoise === undefined) {
        const states = vit(params.vision, seen.images, sizes.vision);
        return { write: writeSums(params, states, { ...writing, present: seen.present }, sizes) };
      }
      return blip2Sums(
        params,
        {
          ...{ ...seen, ...writing, textNoise, imageNoise: own['imageNoise']! },
          textIds: own['textIds']!,
          // A row of the batch has one of each kind, and the pairs come kind by kind.
          matchWeights: tf.reshape(tf.transpose(own['matchWeights']!), [-1]),
        },
        sizes,
        { isHard },
      );
    },
    contrast: {
      objectives: ['contrast'],
      parameters: ['logitScale'],
      embed(params, _frozen, batch) {
        const own = batch as TensorBatch;
        const count = own['ids']!.shape[0];
        return {
          ...blip2Embeddings(params, unpacked(own), sizes),
          textIds: own['textIds'] === undefined ? tf.zeros([count]) : tf.clone(own['textIds']),
          rowIds: own['rowWeights'] === undefined ? tf.ones([count]) : tf.clone(own['rowWeights']),
        };
      },
      sums: (params, { images, texts, textIds, rowIds }) => ({
        contrast: queryContrastSums(
          { images: images!, texts: texts!, groupIds: textIds!, counted: rowIds! },
          tf.exp(params.logitScale),
        ),
      }),
    },
  };
}

type TensorBatch = Readonly<Record<string, tf.Tensor | undefined>>;

/** Draws of Gumbel's distribution. Source: Gumbel-max trick, arXiv:1611.01144, eq. 1. */
function gumbel(rng: Rng, count: number): number[] {
  return Array.from({ length: count }, () => -Math.log(-Math.log(Math.max(rng.uniform(), 1e-12))));
}
