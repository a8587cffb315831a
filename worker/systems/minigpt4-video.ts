/**
 * MiniGPT4-Video: of each frame every four tokens that follow one another are put side by side and projected by one
 * linear layer; frames stand among the subtitles that are spoken during them; the language model is adapted by LoRA.
 * Source: Ataallah et al. 2024, arXiv:2404.03413, sec. 3, and its released code (Vision-CAIR/MiniGPT4-video).
 */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { count } from '../config-fields.ts';
import { shapesOnly, under } from '../initializer.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { initLora, withLora, type LoraParams } from '../layers/lora.ts';
import { vit, type VitParams } from '../models/vit.ts';
import { concatenateTokens } from '../tokens/concatenate-merge.ts';
import { encoderKind } from '../part-kind.ts';
import { publishedAdapter, publishedVision } from '../pretrained/published-parts.ts';
import type { TensorTree } from '../tree.ts';
import { filledTemplate, type Piece } from './dialogue.ts';
import { dialogueFields, dialogueSystem } from './dialogue-system.ts';
import { languageFault, languageFields, languageOf } from './language-part.ts';
import { spokenDuring } from './subtitles.ts';
import { defineSystem, isClipWithWords, type Row } from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import {
  allPictures,
  initVision,
  packedPictures,
  patchesPerPicture,
  unpackedPictures,
  visionFault,
  visionFields,
  visionSizes,
} from './vision-part.ts';

const fields = z.strictObject({
  name: z.literal('minigpt4-video').describe('Ataallah et al. 2024, arXiv:2404.03413'),
  vision: visionFields,
  merge: count('Tokens of a row of patches that become one; 1 merges none, for comparison'),
  language: languageFields,
  lora: z
    .strictObject({
      rank: count('Rank of the change'),
      alpha: z.number().positive().describe('The change is scaled by alpha / rank'),
    })
    .describe('Of queries and values of the language model'),
  template: z.string().describe('A conversation up to the answer, with {frames} and {question}'),
  frameTemplate: z.string().describe('What stands for a frame, with {seen} and {words}'),
  subtitles: z.boolean().describe('Whether subtitles are given; false for comparison'),
  ...dialogueFields,
});

type MiniGpt4VideoConfig = z.infer<typeof fields>;

type MiniGpt4VideoParams = {
  readonly vision: VitParams;
  readonly projection: DenseParams;
  readonly lora: LoraParams;
  readonly language: TensorTree;
};

export const miniGpt4Video = defineSystem<MiniGpt4VideoConfig, MiniGpt4VideoParams>({
  schema: fields,
  sampleKind: 'a clip of one video with words',
  takes: isClipWithWords,
  check({ model, data }) {
    const perRow = data.frameSize / model.vision.patchSize;
    return (
      visionFault(model.vision, data.frameSize) ??
      languageFault(model) ??
      (perRow % model.merge === 0
        ? undefined
        : `a row of patches has ${perRow}, which is not a multiple of model.merge (${model.merge})`)
    );
  },
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.textVocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder }) {
    const tokenizer = await readTokenizer(folder);
    const language = languageOf(model.language, tokenizer.vocabularySize);
    const { frameSize, framesPerWindow, windows } = data;
    const vision = visionSizes(model.vision, data);
    const numPatches = patchesPerPicture(model.vision, frameSize);
    const perFrame = numPatches / model.merge;
    const framesOf = (row: Row): Piece[] => {
      const starts = row.timesSeconds.filter((_, at) => at % framesPerWindow === 0);
      const spoken = model.subtitles ? spokenDuring(row.sample.cues, starts) : [];
      return Array.from({ length: windows }, (_, frame) =>
        filledTemplate(model.frameTemplate, {
          seen: [{ numSoft: perFrame }],
          words: [{ words: spoken[frame] ?? '', isContext: true }],
        }),
      ).flat();
    };
    return dialogueSystem<MiniGpt4VideoParams>({
      name: 'minigpt4-video',
      config: model,
      ...{ frameSize, seed: train.seed, tokenizer, language },
      kinds: { vision: encoderKind(vision) },
      published: [
        publishedVision('vision', model.vision.kind, vision),
        publishedAdapter('lora', initLora(shapesOnly(), language.init(shapesOnly()), model.lora), {
          config: model.lora,
          table: language.published.table,
        }),
      ],
      init: (init) => ({
        vision: initVision(model.vision, data, { init, path: 'vision' }),
        projection: initDense(
          init,
          'projection',
          model.merge * model.vision.width,
          model.language.width,
        ),
        lora: initLora(under('lora', init), language.init(shapesOnly()), model.lora),
        language: language.init(under('language', init)),
      }),
      languageOf: ({ language: own, lora }) => withLora(own, lora, model.lora),
      see(params, batch) {
        const { films } = batch as Readonly<Record<string, tf.Tensor>>;
        const states = vit(params.vision, unpackedPictures(films!, data), vision);
        const patches = tf.slice(states, [0, 1, 0], [-1, numPatches, -1]);
        const seen = dense(params.projection, concatenateTokens(patches, model.merge));
        return tf.reshape(seen, [-1, windows * perFrame, model.language.width]);
      },
      arrays: (rows) => ({ films: packedPictures(rows, data, allPictures) }),
      prompt: (row, question) =>
        filledTemplate(model.template, {
          frames: framesOf(row),
          question: [{ words: question, isQuestion: true }],
        }),
    });
  },
});
