/**
 * Frozen: a vision encoder is trained from nothing, through a language model that never changes, to say what a picture
 * shows in a few vectors among the model's words. It learns from captions alone; what else the language model can do, as
 * answering questions and reading examples before one, it does with pictures too. Source: Tsimpoukelli et al. 2021,
 * arXiv:2106.13884, sec. 3.
 */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { shownKey, type Sample } from '../../video/index/sample.ts';
import { count } from '../config-fields.ts';
import { under } from '../initializer.ts';
import { dense, type DenseParams } from '../layers/dense.ts';
import {
  initNfResNet,
  nfResNet,
  nfResNetChannels,
  type NfResNetParams,
  type NfResNetSizes,
} from '../models/nf-resnet.ts';
import type { TensorTree } from '../tree.ts';
import { clipOf, factsByClip, longestOf } from './clip-facts.ts';
import { turnsOf } from './dialogue.ts';
import { dialogueFields, dialogueSystem } from './dialogue-system.ts';
import { fewShotPrompt } from './few-shot.ts';
import { otherRow, withFramesOfOthers } from './frame-changes.ts';
import { languageFault, languageFields, languageOf } from './language-part.ts';
import { wantsPreferences } from './preference-part.ts';
import { defineSystem, isOneMediumWithWords, type Row } from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import { anyPicture, packedPictures, unpackedPictures } from './vision-part.ts';

const fields = z.strictObject({
  name: z.literal('frozen').describe('Tsimpoukelli et al. 2021, arXiv:2106.13884'),
  permuted: z
    .boolean()
    .describe(
      'Each conversation is trained on with the picture of another one of its microbatch; for comparison',
    ),
  vision: z
    .strictObject({
      width: count('Channels of the first convolution; stage s has 4 x 2^s times as many'),
      blocks: z
        .array(z.int().positive())
        .min(1)
        .describe('Blocks of each stage, 3, 4, 6 and 3 in NF-ResNet-50'),
    })
    .describe('The NF-ResNet that looks at each picture'),
  prefix: count('Vectors that a picture becomes'),
  examples: count(
    'A caption is trained on behind others with their pictures, so many at most and each number equally often; 0 in the ' +
      'original',
    0,
  ),
  language: languageFields,
  template: z
    .string()
    .describe('A conversation up to the answer, with {examples}, {seen} and {question}'),
  exampleTemplate: z
    .string()
    .describe(
      'What stands for an example before what is asked, with {seen}, {question} and {answer}',
    ),
  ...dialogueFields,
});

type FrozenConfig = z.infer<typeof fields>;

type FrozenParams = {
  readonly vision: NfResNetParams;
  readonly prefix: DenseParams; // channels of the last stage to prefix x width
  readonly language: TensorTree;
};

export const frozen = defineSystem<FrozenConfig, FrozenParams>({
  schema: fields,
  sampleKind: 'a picture or a clip of one video, with words',
  takes: isOneMediumWithWords,
  check(config) {
    const { data, model, train } = config;
    const own = train.frozen.filter((part) => part !== 'language');
    if (own.length > 0 || !train.frozen.includes('language'))
      return `the language model is frozen and nothing else: set train.frozen to [language], not [${train.frozen.join(', ')}]`;
    if (model.tuning !== undefined && model.tuning !== null)
      return 'model.tuning adapts the language model, which never changes here: leave it out';
    const fewest = Math.max(2, model.examples + 1);
    if (train.microbatchSize < fewest)
      return (
        `train.microbatchSize (${train.microbatchSize}) has too few other clips to stand before one: set it to ` +
        `${fewest} or more`
      );
    return data.frameSize % 2 !== 0
      ? `data.frameSize (${data.frameSize}) is odd`
      : languageFault(config);
  },
  // A pair of answers is learned as it is.
  arrange: ({ model }, samples) =>
    wantsPreferences(model) ? samples : captionsOf(samples, model.describe),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.textVocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder }) {
    const tokenizer = await readTokenizer(folder);
    const language = languageOf(model.language, tokenizer.vocabularySize);
    const sizes: NfResNetSizes = { ...model.vision, channels: 3 * data.framesPerWindow };
    const [numRead, numPrefix] = [nfResNetChannels(sizes), model.prefix * model.language.width];
    const picture = anyPicture(train.seed, 'picture');
    const seen = [{ numSoft: model.prefix }];
    const system = dialogueSystem<FrozenParams>({
      name: 'frozen',
      config: model,
      ...{ frameSize: data.frameSize, seed: train.seed, tokenizer, language },
      views: ['picture'],
      takesExamples: true,
      askedAgain: {
        'after an example': (rows) =>
          rows.map((row, at) => {
            const other = otherRow(rows, at);
            return other === undefined ? row : { ...row, examples: [other] };
          }),
        'another picture': withFramesOfOthers,
      },
      init: (init) => ({
        vision: initNfResNet(sizes, init, 'vision'),
        prefix: {
          // A picture's vectors begin as long as the words of a language model do.
          kernel: init.normal('prefix/kernel', [numRead, numPrefix], 0.02 / Math.sqrt(numRead)),
          bias: init.fill('prefix/bias', [numPrefix], 0),
        },
        language: language.init(under('language', init)),
      }),
      languageOf: ({ language: own }) => own,
      see({ vision, prefix }, batch) {
        const { pictures } = batch as Readonly<Record<string, tf.Tensor>>;
        const read = nfResNet(vision, unpackedPictures(pictures!, data));
        return tf.reshape(dense(prefix, read), [pictures!.shape[0], -1, model.language.width]);
      },
      arrays(rows) {
        const most = Math.max(...rows.map(({ examples = [] }) => examples.length));
        // Nothing points to what a row with fewer examples is filled up with.
        const shown = rows.flatMap(({ examples = [] }, at) => [
          ...[...examples, rows[at]!],
          ...Array.from({ length: most - examples.length }, () => rows[at]!),
        ]);
        const { data: pixels } = packedPictures(shown, data, picture);
        return { pictures: { data: pixels, shape: [rows.length, pixels.length / rows.length] } };
      },
      windowsShown: (row) => picture(row, data.windows),
      prompt: ({ examples = [] }, question) =>
        fewShotPrompt(
          model,
          examples.map(({ sample }) => ({ seen, ...turnsOf(sample, question)[0]! })),
          { seen, question },
        ),
    });
    // What is asked of a run is asked about its own picture, however it was trained.
    return {
      ...system,
      assemble: (rows) =>
        system.assemble(
          behindOthers(model.permuted ? withFramesOfOthers(rows) : rows, model.examples),
        ),
    };
  },
});

/**
 * Rows with none to `most` examples, in turns, so that each microbatch has as many pictures: rows of other media, the
 * next ones first. Those that have some keep them.
 */
function behindOthers(rows: readonly Row[], most: number): Row[] {
  return rows.map((row, at) => {
    if (row.examples !== undefined) return row;
    const others = [...rows.slice(at + 1), ...rows.slice(0, at)].filter(
      ({ sample }) => shownKey(sample) !== shownKey(row.sample),
    );
    const number = others.length === 0 ? 0 : at % (most + 1);
    return {
      ...row,
      examples: Array.from({ length: number }, (_, k) => others[k % others.length]!),
    };
  });
}

/**
 * In the place of each sample the caption of its clip, which of several things said of it is the longest: questions are
 * not trained on. Where a clip has nothing but yes and no said of it, its conversation stays.
 */
function captionsOf(samples: readonly Sample[], describe: string): Sample[] {
  const facts = factsByClip(samples, describe);
  return samples.map((sample) => {
    const { parts, ...others } = sample;
    const caption = longestOf(facts.get(clipOf(sample)) ?? []);
    return parts === undefined || caption === '' ? sample : { ...others, text: caption };
  });
}
