/**
 * Video-LLaMA: BLIP-2 looks at each frame; a Video Q-Former reads what it saw in all frames, each with its place in time,
 * an Audio Q-Former reads segments of the sound; both become soft prompts of a frozen language model. Source: Zhang et
 * al. 2023, arXiv:2306.02858, sec. 2, and its released code (DAMO-NLP-SG/Video-LLaMA, video_llama.py). The original
 * trains its audio branch on pictures, which ImageBind's encoder takes too; here it is trained on sound.
 */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { under } from '../initializer.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { addPositions } from '../layers/embedding.ts';
import { audioTower, initAudioTower, type AudioTowerParams } from '../models/audio-tower.ts';
import {
  imageQueries,
  initQueries,
  readQueries,
  type ImageQueryParams,
  type QueryParams,
} from '../models/image-queries.ts';
import { encoderKind } from '../part-kind.ts';
import { publishedVision } from '../pretrained/published-parts.ts';
import type { TensorTree } from '../tree.ts';
import { audioFault, audioFields, audioSizes, spectrograms } from './audio-part.ts';
import { filledTemplate } from './dialogue.ts';
import { dialogueFields, dialogueSystem } from './dialogue-system.ts';
import { languageFault, languageFields, languageOf } from './language-part.ts';
import { qFormerFault, qFormerFields, qFormerSizes } from './q-former-part.ts';
import { defineSystem, isClipWithWords } from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import {
  allPictures,
  initVision,
  packedPictures,
  unpackedPictures,
  visionFault,
  visionFields,
  visionSizes,
} from './vision-part.ts';

const fields = z.strictObject({
  name: z.literal('video-llama').describe('Zhang et al. 2023, arXiv:2306.02858'),
  vision: visionFields,
  qFormer: qFormerFields.describe("BLIP-2's Q-Former, which reads each frame"),
  videoQFormer: qFormerFields.describe('The Q-Former that reads all frames'),
  audio: audioFields.nullable().describe('The frozen encoder of sound; null: the model is deaf'),
  audioQFormer: qFormerFields.describe('The Q-Former that reads the sound'),
  framePositions: z
    .boolean()
    .describe('Whether the Video Q-Former is told which frame is which; false for comparison'),
  language: languageFields,
  template: z
    .string()
    .describe(
      'A conversation up to the answer, with {seen}, {heard} if it listens, and {question}',
    ),
  ...dialogueFields,
});

type VideoLlamaConfig = z.infer<typeof fields>;

type VideoLlamaParams = ImageQueryParams & {
  readonly video: QueryParams & {
    /** One row a frame, [F, D]; not there for the model without. */
    readonly position?: tf.Tensor;
    readonly projection: DenseParams;
  };
  readonly audio?: QueryParams & {
    readonly tower: AudioTowerParams;
    readonly position: tf.Tensor; // [S, D]
    readonly projection: DenseParams;
  };
  readonly language: TensorTree;
};

export const videoLlama = defineSystem<VideoLlamaConfig, VideoLlamaParams>({
  schema: fields,
  sampleKind: 'a clip of one video with words',
  takes: isClipWithWords,
  check: ({ model, data, train }) =>
    visionFault(model.vision, data.frameSize) ??
    [model.qFormer, model.videoQFormer, model.audioQFormer]
      .map(qFormerFault)
      .find((fault) => fault !== undefined) ??
    (model.audio === null ? undefined : audioFault(model.audio, data.audio)) ??
    languageFault({ model, train }),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.textVocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder }) {
    const tokenizer = await readTokenizer(folder);
    const language = languageOf(model.language, tokenizer.vocabularySize);
    const { frameSize, windows } = data;
    const vision = visionSizes(model.vision, data);
    const looking = { contextWidth: model.vision.width, hasText: false };
    const qFormer = qFormerSizes(model.qFormer, looking);
    const watching = { contextWidth: model.qFormer.width, hasText: false };
    const videoQFormer = qFormerSizes(model.videoQFormer, watching);
    const audio =
      model.audio === null || data.audio === null
        ? undefined
        : {
            tower: audioSizes(model.audio, data.audio),
            qFormer: qFormerSizes(model.audioQFormer, {
              contextWidth: model.audio.width,
              hasText: false,
            }),
          };
    return dialogueSystem<VideoLlamaParams>({
      name: 'video-llama',
      config: model,
      ...{ frameSize, seed: train.seed, tokenizer, language },
      kinds: {
        vision: encoderKind(vision),
        qFormer: encoderKind(qFormer, 'behind'),
        'video/qFormer': encoderKind(videoQFormer, 'behind'),
        ...(audio && {
          'audio/tower': encoderKind(audio.tower),
          'audio/qFormer': encoderKind(audio.qFormer, 'behind'),
        }),
      },
      published: [publishedVision('vision', model.vision.kind, vision)],
      init: (init) => ({
        vision: initVision(model.vision, data, { init, path: 'vision' }),
        ...initQueries(qFormer, model.qFormer.queries, init),
        video: {
          ...initQueries(videoQFormer, model.videoQFormer.queries, init, 'video/'),
          ...(model.framePositions && {
            position: init.normal('video/position', [windows, model.qFormer.width], 0.02),
          }),
          projection: initDense(
            init,
            'video/projection',
            model.videoQFormer.width,
            model.language.width,
          ),
        },
        ...(audio !== undefined && {
          audio: {
            tower: initAudioTower(audio.tower, init, 'audio/tower/'),
            position: init.normal(
              'audio/position',
              [audio.tower.numSegments, audio.tower.width],
              0.02,
            ),
            ...initQueries(audio.qFormer, model.audioQFormer.queries, init, 'audio/'),
            projection: initDense(
              init,
              'audio/projection',
              model.audioQFormer.width,
              model.language.width,
            ),
          },
        }),
        language: language.init(under('language', init)),
      }),
      languageOf: ({ language: own }) => own,
      see(params, batch) {
        const { films, sounds } = batch as Readonly<Record<string, tf.Tensor>>;
        const frames = unpackedPictures(films!, data);
        const seen = imageQueries(params, frames, { vision, qFormer }); // [B F, Q, D]
        const [, queries, width] = seen.shape as [number, number, number];
        const byFrame = tf.reshape(seen, [-1, windows, queries, width]);
        const { position } = params.video;
        const placed =
          position === undefined ? byFrame : tf.add(byFrame, tf.expandDims(position, 1));
        const all = tf.reshape(placed, [-1, windows * queries, width]);
        const soft = dense(params.video.projection, readQueries(params.video, all, videoQFormer));
        if (audio === undefined || params.audio === undefined) return soft;
        const segments = audioTower(params.audio.tower, sounds!, audio.tower);
        const heard = addPositions(segments, params.audio.position);
        const own = dense(params.audio.projection, readQueries(params.audio, heard, audio.qFormer));
        return tf.concat([soft, own], 1);
      },
      arrays: (rows) => ({
        films: packedPictures(rows, data, allPictures),
        ...(audio !== undefined && { sounds: spectrograms(rows) }),
      }),
      prompt: (_row, question) =>
        filledTemplate(model.template, {
          seen: [{ numSoft: model.videoQFormer.queries }],
          ...(audio !== undefined && { heard: [{ numSoft: model.audioQFormer.queries }] }),
          question: [{ words: question, isQuestion: true }],
        }),
    });
  },
});
