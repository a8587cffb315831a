/**
 * Video-LLaVA: pictures and films, seen by towers that are aligned with each other before, go through one projection
 * into a language model. Source: Lin et al. 2023, arXiv:2311.10122, and its released code
 * (PKU-YuanGroup/Video-LLaVA): the class token is dropped of pictures and kept of films.
 */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { ACTIVATIONS } from '../layers/activations.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { under } from '../initializer.ts';
import { initVideoTower, videoTowerStates, type VideoTowerParams } from '../models/video-tower.ts';
import { vitStates, type VitParams } from '../models/vit.ts';
import { encoderKind } from '../part-kind.ts';
import { publishedVision } from '../pretrained/published-parts.ts';
import type { TensorTree } from '../tree.ts';
import type { RunConfig } from '../config-fields.ts';
import { filledTemplate } from './dialogue.ts';
import { dialogueFields, dialogueSystem } from './dialogue-system.ts';
import { languageFault, languageFields, languageOf } from './language-part.ts';
import { defineSystem, isClipWithWords } from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import {
  allPictures,
  anyPicture,
  initVision,
  packedPictures,
  partsOfVision,
  patchesPerPicture,
  unpackedPictures,
  visionFault,
  visionFields,
  visionSizes,
} from './vision-part.ts';

const fields = z.strictObject({
  name: z.literal('video-llava').describe('Lin et al. 2023, arXiv:2311.10122'),
  vision: visionFields.describe(
    'Both towers; `layers` are those whose output is taken, 23 of 24 in the original',
  ),
  language: languageFields,
  template: z.string().describe('A conversation up to the answer, with {seen} and {question}'),
  pictures: z
    .boolean()
    .describe('Half of each microbatch is single pictures; false: films alone, for comparison'),
  ...dialogueFields,
});

type VideoLlavaConfig = z.infer<typeof fields>;

type VideoLlavaParams = {
  readonly image: VitParams;
  readonly video: VideoTowerParams;
  readonly projection: { readonly in: DenseParams; readonly out: DenseParams };
  readonly language: TensorTree;
};

export const videoLlava = defineSystem<VideoLlavaConfig, VideoLlavaParams>({
  schema: fields,
  sampleKind: 'a clip of one video with words',
  takes: isClipWithWords,
  check: ({ model, data, ...config }) =>
    visionFault(model.vision, data.frameSize) ??
    languageFault({ model, train: config.train }) ??
    (model.pictures ? halvesFault(config) : undefined),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.textVocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder }) {
    const tokenizer = await readTokenizer(folder);
    const language = languageOf(model.language, tokenizer.vocabularySize);
    const { frameSize, windows } = data;
    const vision = visionSizes(model.vision, data);
    const numPatches = patchesPerPicture(model.vision, frameSize);
    const numSoft = windows * (numPatches + 1);
    return dialogueSystem<VideoLlavaParams>({
      name: 'video-llava',
      config: model,
      ...{ frameSize, seed: train.seed, tokenizer, language },
      kinds: { image: encoderKind(vision), video: encoderKind(vision) },
      published: [publishedVision('image', model.vision.kind, vision)],
      views: model.pictures ? ['picture', 'film'] : ['film'],
      init: (init) => ({
        image: initVision(model.vision, data, { init, path: 'image' }),
        video: initVideoTower(vision, init, {
          ...{ numFrames: windows, parts: partsOfVision(model.vision), path: 'video/' },
        }),
        projection: {
          in: initDense(init, 'projection/in', model.vision.width, model.language.width),
          out: initDense(init, 'projection/out', model.language.width, model.language.width),
        },
        language: language.init(under('language', init)),
      }),
      languageOf: ({ language: own }) => own,
      see({ image, video, projection }, batch) {
        const { pictures, films } = batch as Readonly<Record<string, tf.Tensor | undefined>>;
        const project = (x: tf.Tensor): tf.Tensor =>
          dense(projection.out, ACTIVATIONS.gelu(dense(projection.in, x)));
        const seen: tf.Tensor[] = [];
        if (pictures !== undefined) {
          const states = vitStates(image, unpackedPictures(pictures, data), vision);
          const patches = tf.slice(states, [0, 1, 0], [-1, numPatches, -1]);
          // A row of films has more; nothing points to what is added.
          const room: [number, number] = [0, films === undefined ? 0 : numSoft - numPatches];
          seen.push(tf.pad(project(patches), [[0, 0], room, [0, 0]]));
        }
        if (films !== undefined) {
          const frames = unpackedPictures(films, data);
          seen.push(project(videoTowerStates(video, frames, vision, windows)));
        }
        return tf.concat(seen, 0);
      },
      arrays(rows, views) {
        const shown = (view: string) => rows.filter((_, at) => views[at] === view);
        const [pictures, films] = [shown('picture'), shown('film')];
        const one = anyPicture(train.seed, 'picture');
        return {
          ...(pictures.length > 0 && { pictures: packedPictures(pictures, data, one) }),
          ...(films.length > 0 && { films: packedPictures(films, data, allPictures) }),
        };
      },
      prompt: (_row, question, view) =>
        filledTemplate(model.template, {
          seen: [{ numSoft: view === 'picture' ? numPatches : numSoft }],
          question: [{ words: question, isQuestion: true }],
        }),
    });
  },
});

/** What is wrong with microbatches of which half is pictures, if anything: pictures and films are cut apart. */
function halvesFault({
  train: { microbatchSize },
  engine: { devices },
  parallel: { mesh },
}: Pick<RunConfig, 'train' | 'engine' | 'parallel'>): string | undefined {
  // Of devices that are not counted yet, those that the mesh names.
  const data = mesh.data ?? (devices === 'all' ? 1 : devices / (mesh.fsdp * mesh.tensor));
  const parts = data * mesh.fsdp;
  if (microbatchSize >= 2 && (microbatchSize >> 1) % parts === 0) return undefined;
  const where = `train.microbatchSize (${microbatchSize})`;
  const why =
    parts === 1
      ? `${where} has no half to show as pictures: set it to 2 or more`
      : `half of ${where} is pictures, which the ${parts} parts that parallel.mesh cuts rows into do not share evenly: ` +
        `set it to a multiple of ${2 * parts}`;
  return `${why}, or model.pictures to false`;
}
