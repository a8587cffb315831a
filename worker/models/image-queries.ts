/** BLIP-2's image side: a vision tower and the queries that read it, without what was for texts. */
import * as tf from '@tensorflow/tfjs-core';
import type { Initializer } from '../initializer.ts';
import { initQFormer, qFormer, type QFormerParams, type QFormerSizes } from './q-former.ts';
import { vit, type VitParams, type VitSizes } from './vit.ts';

export type QueryParams = {
  readonly queries: tf.Tensor; // [Q, D]
  readonly qFormer: QFormerParams;
};

/** Named as in the first stage's parameters, so that they can be taken from there. */
export type ImageQueryParams = QueryParams & { readonly vision: VitParams };

export function initQueries(
  sizes: QFormerSizes,
  numQueries: number,
  init: Initializer,
  path = '',
): QueryParams {
  return {
    queries: init.normal(`${path}queries`, [numQueries, sizes.width], 0.02),
    qFormer: initQFormer(sizes, init, `${path}qFormer/`),
  };
}

/** What the queries read in states [B, N, C]: [B, Q, D]. */
export function readQueries(
  { queries, qFormer: params }: QueryParams,
  context: tf.Tensor,
  sizes: QFormerSizes,
): tf.Tensor {
  const all = tf.tile(tf.expandDims(queries, 0), [context.shape[0], 1, 1]);
  return qFormer(params, { queries: all, context }, sizes);
}

/** What the queries read in pictures [B, H, W, 3]: [B, Q, D]. */
export function imageQueries(
  params: ImageQueryParams,
  images: tf.Tensor,
  sizes: { readonly vision: VitSizes; readonly qFormer: QFormerSizes },
): tf.Tensor {
  return readQueries(params, vit(params.vision, images, sizes.vision), sizes.qFormer);
}
