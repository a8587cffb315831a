/** What CLIP and SigLIP share: clips and texts of one space, compared over the global batch, found by one another. */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import type { Sample } from '../../video/index/sample.ts';
import { count, type RunConfig } from '../config-fields.ts';
import type { Initializer } from '../initializer.ts';
import { crossEntropySums, type ObjectiveSums } from '../losses/cross-entropy.ts';
import type { Pairs } from '../losses/contrastive.ts';
import { l2Normalize } from '../layers/normalize.ts';
import { normalizePixels, type PixelStatistics } from '../tokens/pixels.ts';
import type { Bounds } from '../optim/adamw.ts';
import type { PartKinds } from '../part-kind.ts';
import type { PublishedPart } from '../pretrained/published-parts.ts';
import { tubelets } from '../tokens/tubelets.ts';
import type { TensorTree } from '../tree.ts';
import { captionRecall } from './caption-recall.ts';
import { captionedBatches, type CaptionedBatchOptions } from './captioned-batch.ts';
import type { HostBatch, Row, VideoLanguageSystem } from './system.ts';

/** Fields of recipes that systems of two towers share. */
export const retrievalFields = {
  frames: z
    .enum(['tubelets', 'bag'])
    .describe(
      'tubelets: all frames in one sequence, those of a window in one token; bag: each frame by itself and the mean of ' +
        'them, which cannot tell their order',
    ),
  contrastChunk: count('Rows of the global batch that are compared at a time').nullable(),
};

/** How the frames of a clip are seen. */
export type FrameUse = z.infer<(typeof retrievalFields)['frames']>;

type RetrievalBatch = {
  readonly pixels: tf.Tensor; // [B, bytes / 4] int32
  readonly ids: tf.Tensor; // [B, L] int32
  readonly captions: tf.Tensor; // [B, 2] float32, equal for captions that are read alike
  /** In a held-out question alone: captions to choose from, one after another, [B, K, L] int32. */
  readonly candidates?: tf.Tensor;
  readonly labels?: tf.Tensor; // [B] int32
  readonly answerWeights?: tf.Tensor; // [B]
};

/** What is to be said of a system of two towers. */
export interface RetrievalOptions<P extends TensorTree> extends CaptionedBatchOptions {
  readonly name: string;
  readonly seed: number;
  readonly splits: { readonly heldOut: readonly Sample[] };
  readonly kinds: PartKinds;
  readonly published: readonly PublishedPart[];
  /** Those that the comparison uses itself. */
  readonly parameters: readonly string[];
  readonly bounds?: Bounds;
  readonly init: (initializer: Initializer) => P;
  /** Packed frames [B, bytes / 4] (int32) to unit vectors [B, E]. */
  readonly clips: (params: P, pixels: tf.Tensor) => tf.Tensor;
  /** [B, L] int32 to unit vectors [B, E]. */
  readonly texts: (params: P, ids: tf.Tensor) => tf.Tensor;
  /** Of the global batch. */
  readonly sums: (params: P, pairs: Pairs) => ObjectiveSums;
}

/** Colour channels of what a tower gets: those of all frames of a window in one, or of one frame. */
export function channelsOf(frames: FrameUse, { framesPerWindow }: RunConfig['data']): number {
  return frames === 'tubelets' ? 3 * framesPerWindow : 3;
}

/** Moments of a clip within one sequence. */
export function momentsOf(frames: FrameUse, { windows }: RunConfig['data']): number {
  return frames === 'tubelets' ? windows : 1;
}

export function retrievalSystem<P extends TensorTree>(
  options: RetrievalOptions<P>,
): VideoLanguageSystem<P> {
  const { name, maxTokens, splits } = options;
  const { idsOf, textArray, assemble: withCaptions, similarity } = captionedBatches(options);
  const assemble = (rows: readonly Row[]): HostBatch =>
    withCaptions(
      rows,
      rows.map(({ sample }) => sample.text),
    );

  const recall = captionRecall({
    ...{ seed: options.seed, heldOut: splits.heldOut },
    ...{ idsOf, textArray, assemble },
  });
  return {
    name,
    objectives: { contrastive: 1 },
    heldOutTasks: [recall],
    init: (initializer) => options.init(initializer),
    kinds: options.kinds,
    published: options.published,
    frozen: {},
    // Of stacked layers `shape` is that of one; a table of words or positions is no map between spaces.
    decays: (path, shape) => shape.length > 1 && !/(^|\/)(words|position)$/.test(path),
    ...(options.bounds && { bounds: options.bounds }),
    assemble,
    similarity: {
      ...similarity,
      clips: (params, _frozen, batch) => options.clips(params, (batch as RetrievalBatch).pixels),
      texts: (params, _frozen, batch) => options.texts(params, (batch as RetrievalBatch).ids),
    },
    sums(params, _frozen, batch): Record<string, ObjectiveSums> {
      const asked = batch as RetrievalBatch;
      if (asked.candidates === undefined) return {};
      const texts = options.texts(params, tf.reshape(asked.candidates, [-1, maxTokens]));
      const scores = tf.matMul(options.clips(params, asked.pixels), texts, false, true); // [B, candidates]
      return { contrastive: crossEntropySums(scores, asked.labels!, asked.answerWeights!) };
    },
    contrast: {
      objectives: ['contrastive'],
      parameters: options.parameters,
      embed(params, _frozen, batch) {
        const given = batch as RetrievalBatch;
        return {
          clips: options.clips(params, given.pixels),
          texts: options.texts(params, given.ids),
          captionIds: given.captions,
        };
      },
      sums: (params, { clips: left, texts: right, captionIds: groupIds }) => ({
        contrastive: options.sums(params, { left: left!, right: right!, groupIds: groupIds! }),
      }),
    },
  };
}

/** How clips become the pictures that a tower sees. */
export interface ClipShape {
  readonly data: RunConfig['data'];
  readonly frames: FrameUse;
  readonly pixels: PixelStatistics;
}

/** Pictures that a clip is seen as, each by itself. */
export function picturesPerClip({ frames, data }: Omit<ClipShape, 'pixels'>): number {
  return frames === 'bag' ? data.windows * data.framesPerWindow : 1;
}

/** Packed frames of clips [B, bytes / 4] as pictures, [B F, H, W, C] with F as {@link picturesPerClip} has it. */
export function clipPictures(packed: tf.Tensor, { frames, data, pixels }: ClipShape): tf.Tensor {
  const { windows, framesPerWindow, frameSize } = data;
  const batch = packed.shape[0];
  const count = windows * framesPerWindow;
  const shown = normalizePixels(packed, [batch * count, frameSize, frameSize, 3], pixels);
  if (frames === 'bag' || count === 1) return shown;
  const size = [batch, windows * frameSize, frameSize, 3 * framesPerWindow] as const;
  return tf.reshape(tubelets(shown, framesPerWindow), [...size]);
}

/**
 * Unit vectors of clips, [B, E], by a tower of pictures; of a bag of frames the mean of theirs.
 * @param images [B, H, W, C] to unit vectors [B, E]
 */
export function clipEmbeddings(
  packed: tf.Tensor,
  shape: ClipShape,
  images: (pictures: tf.Tensor) => tf.Tensor,
): tf.Tensor {
  const each = images(clipPictures(packed, shape));
  if (shape.frames !== 'bag') return each;
  return l2Normalize(tf.mean(tf.reshape(each, [packed.shape[0], picturesPerClip(shape), -1]), 1));
}
