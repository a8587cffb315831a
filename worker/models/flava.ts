import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { keyBias } from '../layers/attention-mask.ts';
import { dense, initDense, type DenseParams } from '../layers/dense.ts';
import { prependToken } from '../layers/embedding.ts';
import { encoder, initEncoder, type EncoderSizes } from '../layers/encoder.ts';
import { initLayerNorm, layerNorm, type LayerNormParams } from '../layers/norm.ts';
import type { BlockParams } from '../layers/transformer-block.ts';
import type { Stacked } from '../tree.ts';
import {
  bertWords,
  initBertEmbedding,
  type BertEmbeddingParams,
  type BertInput,
  type BertSizes,
} from './bert.ts';
import { initVit, vitStates, type VitParams, type VitSizes } from './vit.ts';

export interface FlavaSizes {
  readonly image: VitSizes;
  readonly text: BertSizes;
  readonly joint: EncoderSizes;
  /** Width of the embeddings that are contrasted. */
  readonly embedding: number;
}

/** What is trained: the released model but for the poolers of the two encoders of one modality, which no loss reads. */
export type FlavaEncoders = {
  readonly image: VitParams & {
    readonly maskToken: tf.Tensor; // [D], stands for a hidden patch
  };
  readonly text: {
    readonly embedding: BertEmbeddingParams;
    readonly blocks: Stacked<BlockParams>;
    readonly finalNorm: LayerNormParams;
  };
  readonly joint: {
    readonly classToken: tf.Tensor; // [D]
    readonly blocks: Stacked<BlockParams>;
    readonly finalNorm: LayerNormParams;
    readonly pooler: DenseParams;
  };
  /** From each encoder's width to the joint one's. */
  readonly imageToJoint: DenseParams;
  readonly textToJoint: DenseParams;
  readonly imageProjection: DenseParams; // D to E
  readonly textProjection: DenseParams;
  /** ln(1 / temperature), a scalar. */
  readonly logitScale: tf.Tensor;
};

export type FlavaParams = FlavaEncoders & {
  readonly image: { readonly pooler: DenseParams };
  readonly text: { readonly pooler: DenseParams };
};

/** Source: Singh et al. 2022, arXiv:2112.04482, sec. 4.1; pre-norm encoders, joined by self-attention. */
export function initFlava(sizes: FlavaSizes, init: Initializer): FlavaParams {
  const encoders = initFlavaEncoders(sizes, init);
  const [{ width: seen }, { width: read }] = [sizes.image, sizes.text];
  return {
    ...encoders,
    image: { ...encoders.image, pooler: initDense(init, 'image/pooler', seen, seen) },
    text: { ...encoders.text, pooler: initDense(init, 'text/pooler', read, read) },
  };
}

/** As {@link initFlava}. */
export function initFlavaEncoders(sizes: FlavaSizes, init: Initializer): FlavaEncoders {
  const { image, text, joint, embedding } = sizes;
  return {
    image: {
      ...initVit(image, init, { path: 'image/' }),
      maskToken: init.fill('image/maskToken', [image.width], 0),
    },
    text: {
      embedding: initBertEmbedding(text, init, 'text/embedding'),
      blocks: initEncoder(init, 'text/blocks', text),
      finalNorm: initLayerNorm(init, 'text/finalNorm', text.width),
    },
    joint: {
      classToken: init.normal('joint/classToken', [joint.width], 0.02),
      blocks: initEncoder(init, 'joint/blocks', joint),
      finalNorm: initLayerNorm(init, 'joint/finalNorm', joint.width),
      pooler: initDense(init, 'joint/pooler', joint.width, joint.width),
    },
    imageToJoint: initDense(init, 'imageToJoint', image.width, joint.width),
    textToJoint: initDense(init, 'textToJoint', text.width, joint.width),
    imageProjection: initDense(init, 'imageProjection', image.width, embedding),
    textProjection: initDense(init, 'textProjection', text.width, embedding),
    logitScale: init.fill('logitScale', [], Math.log(1 / 0.07)),
  };
}

/** States of images [B, H, W, C] before their final norm, [B, 1 + N, D]. `hidden` [B, N] float32: 1 at masked patches. */
export function flavaImageStates(
  { image }: Pick<FlavaEncoders, 'image'>,
  images: tf.Tensor,
  sizes: FlavaSizes,
  { hidden }: { readonly hidden?: tf.Tensor } = {},
): tf.Tensor {
  if (hidden === undefined) return vitStates(image, images, sizes.image);
  const mask = tf.expandDims(hidden, -1);
  const changePatches = (patches: tf.Tensor): tf.Tensor =>
    tf.add(tf.mul(patches, tf.sub(1, mask)), tf.mul(image.maskToken, mask));
  return vitStates(image, images, sizes.image, { changePatches });
}

/** States of texts before their final norm, [B, L, D]. */
export function flavaTextStates(
  { text }: Pick<FlavaEncoders, 'text'>,
  input: BertInput,
  sizes: FlavaSizes,
): tf.Tensor {
  const words = bertWords(text.embedding, input);
  const x = layerNorm(text.embedding.norm, words, sizes.text.epsilon);
  return encoder(text.blocks, x, sizes.text, { bias: keyBias(input.present) });
}

/** The normed joint states, [B, 1 + (1 + N) + L, D], of both encoders' states before their final norms. */
export function flavaJointStates(
  params: Pick<FlavaEncoders, 'joint' | 'imageToJoint' | 'textToJoint'>,
  imageStates: tf.Tensor,
  textStates: tf.Tensor,
  present: tf.Tensor,
  sizes: FlavaSizes,
): tf.Tensor {
  const { classToken, blocks, finalNorm } = params.joint;
  const both = [dense(params.imageToJoint, imageStates), dense(params.textToJoint, textStates)];
  const x = prependToken(classToken, tf.concat(both, 1));
  const [batch, numSeen] = imageStates.shape as [number, number];
  const bias = keyBias(tf.concat([tf.ones([batch, 1 + numSeen]), present], 1));
  return layerNorm(finalNorm, encoder(blocks, x, sizes.joint, { bias }), sizes.joint.epsilon);
}
