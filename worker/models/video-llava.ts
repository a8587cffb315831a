/**
 * Video-LLaVA: towers for pictures and for frames whose features, aligned with one another before, go through one
 * projection into a language model. Source: Lin et al. 2023, arXiv:2311.10122, sec. 3.1; transformers,
 * modeling_video_llava.py.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { ACTIVATIONS, type Activation } from '../layers/activations.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { firstLayers } from '../layers/encoder.ts';
import { CLIP_VISION } from './clip.ts';
import { initLlama, type LlamaConfig, type LlamaParams } from './llama.ts';
import { initVit, vitStates, type VitParams, type VitSizes } from './vit.ts';

export interface VideoLlavaSizes {
  /** Of both towers. */
  readonly vision: VitSizes;
  readonly language: LlamaConfig;
  readonly activation: Activation;
  /** Whose states are taken: how many of a tower's last blocks are left out. */
  readonly blocksLeftOut: number;
}

export type VideoLlavaParams = {
  readonly imageTower: VitParams;
  readonly videoTower: VitParams;
  readonly projection: { readonly in: DenseParams; readonly out: DenseParams };
  readonly language: LlamaParams;
};

export function initVideoLlava(sizes: VideoLlavaSizes, init: Initializer): VideoLlavaParams {
  const { vision, language } = sizes;
  const tower = (path: string): VitParams => initVit(vision, init, { parts: CLIP_VISION, path });
  return {
    imageTower: tower('imageTower/'),
    videoTower: tower('videoTower/'),
    projection: {
      in: initDense(init, 'projection/in', vision.width, language.width),
      out: initDense(init, 'projection/out', language.width, language.width),
    },
    language: initLlama(language, under(init, 'language/')),
  };
}

/** Pictures [B, H, W, C] as soft tokens, one a patch, [B, N, D]. */
export function videoLlavaImages(
  params: VideoLlavaParams,
  images: tf.Tensor,
  sizes: VideoLlavaSizes,
): tf.Tensor {
  const states = towerStates(params.imageTower, images, sizes);
  return project(params, tf.slice(states, [0, 1, 0], [-1, -1, -1]), sizes);
}

/** Clips [B, T, H, W, C] as soft tokens, for each frame its class token and one a patch, [B, T (1 + N), D]. */
export function videoLlavaClips(
  params: VideoLlavaParams,
  clips: tf.Tensor,
  sizes: VideoLlavaSizes,
): tf.Tensor {
  const [batch, , ...frame] = clips.shape as [number, number, number, number, number];
  const states = towerStates(params.videoTower, tf.reshape(clips, [-1, ...frame]), sizes);
  const tokens = project(params, states, sizes);
  return tf.reshape(tokens, [batch, -1, sizes.language.width]);
}

function towerStates(
  tower: VitParams,
  images: tf.Tensor,
  { vision, blocksLeftOut }: VideoLlavaSizes,
): tf.Tensor {
  const blocks = firstLayers(tower.blocks, vision.numLayers - blocksLeftOut);
  return vitStates({ ...tower, blocks }, images, vision);
}

function project(
  { projection }: VideoLlavaParams,
  states: tf.Tensor,
  { activation }: VideoLlavaSizes,
): tf.Tensor {
  return dense(projection.out, ACTIVATIONS[activation](dense(projection.in, states)));
}

/** Paths of a part's own, within the whole. */
function under(init: Initializer, prefix: string): Initializer {
  return {
    normal: (path, shape, std, cut) => init.normal(`${prefix}${path}`, shape, std, cut),
    fill: (path, shape, value) => init.fill(`${prefix}${path}`, shape, value),
    layers: (count) => under(init.layers(count), prefix),
  };
}
