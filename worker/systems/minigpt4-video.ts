/**
 * MiniGPT4-Video: of each frame every four tokens that follow one another are put side by side and projected by one
 * linear layer; frames stand among the subtitles that are spoken during them; the language model is adapted by LoRA.
 * Source: Ataallah et al. 2024, arXiv:2404.03413, sec. 3, and its released code (Vision-CAIR/MiniGPT4-video).
 */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { filledTemplate, type Piece } from './dialogue.ts';
import { dialogueFields, dialogueSystem } from './dialogue-system.ts';
import { languageOf } from './language-part.ts';
import {
  mergedPatches,
  mergedPatchesFault,
  mergedPatchesFields,
  tokensPerPicture,
  type MergedPatchesParams,
} from './merged-patches.ts';
import { spokenDuring } from './subtitles.ts';
import { defineSystem, isClipWithWords, type Row } from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import { allPictures, packedPictures } from './vision-part.ts';

const fields = z.strictObject({
  name: z.literal('minigpt4-video').describe('Ataallah et al. 2024, arXiv:2404.03413'),
  ...mergedPatchesFields,
  template: z.string().describe('A conversation up to the answer, with {frames} and {question}'),
  frameTemplate: z.string().describe('What stands for a frame, with {seen} and {words}'),
  subtitles: z.boolean().describe('Whether subtitles are given; false for comparison'),
  ...dialogueFields,
});

export const miniGpt4Video = defineSystem<z.infer<typeof fields>, MergedPatchesParams>({
  schema: fields,
  sampleKind: 'a clip of one video with words',
  takes: isClipWithWords,
  check: mergedPatchesFault,
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.textVocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder }) {
    const tokenizer = await readTokenizer(folder);
    const language = languageOf(model.language, tokenizer.vocabularySize);
    const { frameSize, framesPerWindow, windows } = data;
    const perFrame = tokensPerPicture(model, data);
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
    const { seen, ...parts } = mergedPatches(model, data, language);
    return dialogueSystem<MergedPatchesParams>({
      name: 'minigpt4-video',
      config: model,
      ...{ frameSize, seed: train.seed, tokenizer, language },
      ...parts,
      see(params, batch) {
        const { films } = batch as Readonly<Record<string, tf.Tensor>>;
        const frames = seen(params, films!);
        return tf.reshape(frames, [-1, windows * perFrame, model.language.width]);
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
