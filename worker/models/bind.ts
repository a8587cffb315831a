/**
 * Towers for pictures, films and sounds that are bound to one for words, so that their embeddings lie in one space.
 * Source: LanguageBind, Zhu et al. 2023, arXiv:2310.01852, sec. 3; ImageBind, Girdhar et al. 2023, arXiv:2305.05665.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { causalBias, keyBias } from '../layers/attention-mask.ts';
import { dense, type DenseParams } from '../layers/dense.ts';
import { layerNorm } from '../layers/norm.ts';
import { l2Normalize } from '../layers/normalize.ts';
import { constantOf } from '../tokens/constant.ts';
import { gatherTokens } from '../tokens/gather-tokens.ts';
import {
  audioTower,
  initAudioTower,
  type AudioSizes,
  type AudioTowerParams,
} from './audio-tower.ts';
import {
  initTextTower,
  textTower,
  type TextTowerParams,
  type TextTowerSizes,
} from './text-tower.ts';
import { initVideoTower, videoTowerStates, type VideoTowerParams } from './video-tower.ts';
import { initVit, vitStates, type VitParams, type VitParts, type VitSizes } from './vit.ts';

export const SENSES = ['image', 'video', 'audio'] as const;
export type Sense = (typeof SENSES)[number];

export interface BindSizes {
  readonly vision: VitSizes;
  readonly visionParts: VitParts;
  readonly numFrames: number;
  readonly audio: AudioSizes | undefined;
  readonly text: TextTowerSizes;
  readonly embedding: number;
  readonly senses: readonly Sense[];
  /** One space for all; else each sense has a text tower of its own, and its space. */
  readonly isShared: boolean;
}

type Bound<T> = { readonly tower: T; readonly projection: DenseParams };

export type BindParams = {
  readonly image?: Bound<VitParams>;
  readonly video?: Bound<VideoTowerParams>;
  readonly audio?: Bound<AudioTowerParams>;
  /** By `all`, or by sense. */
  readonly text: Readonly<Record<string, Bound<TextTowerParams>>>;
  /** ln(1 / temperature), a scalar. */
  readonly logitScale: tf.Tensor;
};

export type BindBatch = {
  readonly image?: tf.Tensor; // [B, S, S, 3]
  readonly video?: tf.Tensor; // [B F, S, S, 3]
  readonly audio?: tf.Tensor; // [B, mels frames]
  readonly ids: tf.Tensor; // [B, L] int32
  readonly present: tf.Tensor; // [B, L]
};

export function initBind(sizes: BindSizes, init: Initializer): BindParams {
  const { vision, numFrames, audio, text, embedding, senses, isShared } = sizes;
  const parts = sizes.visionParts;
  const bound = <T>(path: string, tower: T, width: number): Bound<T> => ({
    tower,
    projection: {
      kernel: init.normal(`${path}/projection/kernel`, [width, embedding], 1 / Math.sqrt(width)),
    },
  });
  const has = (sense: Sense): boolean => senses.includes(sense);
  return {
    ...(has('image') && {
      image: bound('image', initVit(vision, init, { parts, path: 'image/tower/' }), vision.width),
    }),
    ...(has('video') && {
      video: bound(
        'video',
        initVideoTower(vision, init, { numFrames, parts, path: 'video/tower/' }),
        vision.width,
      ),
    }),
    ...(has('audio') && {
      audio: bound('audio', initAudioTower(audio!, init, 'audio/tower/'), audio!.width),
    }),
    text: Object.fromEntries(
      (isShared ? ['all'] : senses).map((name) => [
        name,
        bound(`text/${name}`, initTextTower(text, init, `text/${name}/tower`), text.width),
      ]),
    ),
    logitScale: init.fill('logitScale', [], Math.log(1 / 0.07)),
  };
}

/** Embeddings of length 1, [B, E], by sense; those of the words by `text`, or by `text-` and the sense. */
export function bindEmbeddings(
  params: BindParams,
  batch: BindBatch,
  sizes: BindSizes,
): Record<string, tf.Tensor> {
  const { vision, numFrames, audio, isShared } = sizes;
  const embeddings: Record<string, tf.Tensor> = {};
  const { image, video } = params;
  if (image !== undefined) {
    const states = visionNormed(image.tower, vitStates(image.tower, batch.image!, vision), vision);
    embeddings['image'] = projected(image.projection, tf.mean(states, 1));
  }
  if (video !== undefined) {
    const states = videoTowerStates(video.tower, batch.video!, vision, numFrames);
    embeddings['video'] = projected(
      video.projection,
      tf.mean(visionNormed(video.tower, states, vision), 1),
    );
  }
  if (params.audio !== undefined) {
    const states = audioTower(params.audio.tower, batch.audio!, audio!);
    embeddings['audio'] = projected(params.audio.projection, tf.mean(states, 1));
  }
  for (const [name, text] of Object.entries(params.text)) {
    embeddings[textName(name as Sense, isShared)] = projected(
      text.projection,
      textState(text.tower, batch, sizes.text),
    );
  }
  return embeddings;
}

/** Under which name {@link bindEmbeddings} has the words that a sense is compared with. */
export function textName(sense: Sense, isShared: boolean): string {
  return isShared ? 'text' : `text-${sense}`;
}

function visionNormed(params: VitParams, states: tf.Tensor, { epsilon }: VitSizes): tf.Tensor {
  return layerNorm(params.finalNorm, states, epsilon);
}

function projected(params: DenseParams, x: tf.Tensor): tf.Tensor {
  return l2Normalize(dense(params, x));
}

/** The state of each text's last token, which has seen all of it, [B, D]. */
function textState(
  params: TextTowerParams,
  { ids, present }: BindBatch,
  sizes: TextTowerSizes,
): tf.Tensor {
  const length = ids.shape[1]!;
  const bias = tf.add(causalBias(length), keyBias(present));
  const states = textTower(params, ids, sizes, { bias });
  const last = constantOf(() => tf.cast(tf.sub(tf.sum(present, 1, true), tf.scalar(1)), 'int32')); // [B, 1]
  return tf.reshape(gatherTokens(states, last), [-1, sizes.width]);
}
