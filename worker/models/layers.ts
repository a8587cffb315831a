import * as tf from '@tensorflow/tfjs-core';

/** Source of initial weights: named by path, so that they do not depend on the order of creation. */
export interface Initializer {
  /** Normal of the given standard deviation, cut at two of them. */
  normal(path: string, shape: readonly number[], std: number): tf.Tensor;
  fill(path: string, shape: readonly number[], value: number): tf.Tensor;
  /** For the tensors of that many equal layers at once: paths have `*` for the layer's number, see `Stacked`. */
  layers(numLayers: number): Initializer;
}

export type DenseParams = {
  readonly kernel: tf.Tensor; // [in, out]
  readonly bias: tf.Tensor; // [out]
};

export type LayerNormParams = {
  readonly scale: tf.Tensor; // [D]
  readonly offset: tf.Tensor; // [D]
};

export type AttentionParams = {
  /** Query, key and value in one kernel, [D, 3 D]: one large product instead of three. */
  readonly qkv: DenseParams;
  readonly output: DenseParams;
};

export type BlockParams = {
  readonly attentionNorm: LayerNormParams;
  readonly attention: AttentionParams;
  readonly mlpNorm: LayerNormParams;
  readonly mlpIn: DenseParams;
  readonly mlpOut: DenseParams;
};

export interface AttentionOptions {
  readonly numHeads: number;
  /** Added to the scores, [B, 1, 1, L]. */
  readonly bias?: tf.Tensor;
}

export function initDense(
  init: Initializer,
  path: string,
  numIn: number,
  numOut: number,
): DenseParams {
  return {
    // BERT's 0.02 is for a width of 768; at this scale the outputs have the same size at every width.
    kernel: init.normal(`${path}/kernel`, [numIn, numOut], 1 / Math.sqrt(numIn)),
    bias: init.fill(`${path}/bias`, [numOut], 0),
  };
}

export function initLayerNorm(init: Initializer, path: string, width: number): LayerNormParams {
  return {
    scale: init.fill(`${path}/scale`, [width], 1),
    offset: init.fill(`${path}/offset`, [width], 0),
  };
}

export function initBlock(
  init: Initializer,
  path: string,
  width: number,
  mlpRatio: number,
): BlockParams {
  return {
    attentionNorm: initLayerNorm(init, `${path}/attentionNorm`, width),
    attention: {
      qkv: initDense(init, `${path}/attention/qkv`, width, 3 * width),
      output: initDense(init, `${path}/attention/output`, width, width),
    },
    mlpNorm: initLayerNorm(init, `${path}/mlpNorm`, width),
    mlpIn: initDense(init, `${path}/mlpIn`, width, mlpRatio * width),
    mlpOut: initDense(init, `${path}/mlpOut`, mlpRatio * width, width),
  };
}

/** [..., in] to [..., out]; the leading axes are folded so that the product is one matrix product. */
export function dense(params: DenseParams, x: tf.Tensor): tf.Tensor {
  const [numIn, numOut] = params.kernel.shape as [number, number];
  const flat = tf.reshape(x, [-1, numIn]);
  const y = tf.add(tf.matMul(flat as tf.Tensor2D, params.kernel as tf.Tensor2D), params.bias);
  return tf.reshape(y, [...x.shape.slice(0, -1), numOut]);
}

/** Over the last axis. Source: Ba et al. 2016, arXiv:1607.06450, sec. 3; epsilon 1e-5. */
export function layerNorm(params: LayerNormParams, x: tf.Tensor): tf.Tensor {
  const centred = tf.sub(x, tf.mean(x, -1, true));
  const variance = tf.mean(tf.square(centred), -1, true);
  const normal = tf.mul(centred, tf.rsqrt(tf.add(variance, 1e-5)));
  return tf.add(tf.mul(normal, params.scale), params.offset);
}

/** The tanh form. Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, sec. 2. */
export function gelu(x: tf.Tensor): tf.Tensor {
  const inner = tf.mul(
    tf.add(x, tf.mul(tf.mul(tf.square(x), x), 0.044715)),
    Math.sqrt(2 / Math.PI),
  );
  return tf.mul(tf.mul(x, 0.5), tf.add(tf.tanh(inner), 1));
}

/**
 * Multi-head self-attention, [B, L, D] to [B, L, D]. `bias` [B, 1, 1, L] is added to the scores: 0 where a position
 * may be looked at, a large negative number where not. Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2.
 */
export function selfAttention(
  params: AttentionParams,
  x: tf.Tensor,
  options: AttentionOptions,
): tf.Tensor {
  return selfAttentionAndKeys(params, x, options).output;
}

/** {@link selfAttention}, and its keys, [B, A, L, D/A]. */
export function selfAttentionAndKeys(
  params: AttentionParams,
  x: tf.Tensor,
  { numHeads, bias }: AttentionOptions,
): { output: tf.Tensor; keys: tf.Tensor } {
  const [batch, length, width] = x.shape as [number, number, number];
  const headWidth = width / numHeads;
  const packed = tf.reshape(dense(params.qkv, x), [batch, length, 3, numHeads, headWidth]);
  const [query, key, value] = tf.unstack(tf.transpose(packed, [2, 0, 3, 1, 4])) as [
    tf.Tensor,
    tf.Tensor,
    tf.Tensor,
  ]; // each [B, A, L, D/A]
  const scores = tf.matMul(tf.mul(query, 1 / Math.sqrt(headWidth)), key, false, true); // [B, A, L, L]
  const weights = tf.softmax(bias === undefined ? scores : tf.add(scores, bias));
  const mixed = tf.transpose(tf.matMul(weights, value), [0, 2, 1, 3]); // [B, L, A, D/A]
  const output = dense(params.output, tf.reshape(mixed, [batch, length, width]));
  return { output, keys: key };
}

/**
 * Multi-head attention of queries [B, Lq, D] to keys and values [B, Lk, D], each cut into heads: [B, Lq, D]. `bias`,
 * broadcast to [B, A, Lq, Lk], is added to the scores. Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2.
 */
export function attend(
  query: tf.Tensor,
  key: tf.Tensor,
  value: tf.Tensor,
  { numHeads, bias }: { readonly numHeads: number; readonly bias?: tf.Tensor },
): tf.Tensor {
  const [batch, length, width] = query.shape as [number, number, number];
  const headWidth = width / numHeads;
  const heads = (x: tf.Tensor): tf.Tensor =>
    tf.transpose(tf.reshape(x, [batch, -1, numHeads, headWidth]), [0, 2, 1, 3]); // [B, A, L, D/A]
  const scaled = tf.mul(heads(query), 1 / Math.sqrt(headWidth));
  const scores = tf.matMul(scaled, heads(key), false, true); // [B, A, Lq, Lk]
  const weights = tf.softmax(bias === undefined ? scores : tf.add(scores, bias));
  const mixed = tf.transpose(tf.matMul(weights, heads(value)), [0, 2, 1, 3]);
  return tf.reshape(mixed, [batch, length, width]);
}

/** A pre-norm transformer block, [B, L, D] to [B, L, D]. */
export function transformerBlock(
  params: BlockParams,
  x: tf.Tensor,
  options: AttentionOptions,
): tf.Tensor {
  const attended = tf.add(
    x,
    selfAttention(params.attention, layerNorm(params.attentionNorm, x), options),
  );
  const hidden = gelu(dense(params.mlpIn, layerNorm(params.mlpNorm, attended)));
  return tf.add(attended, dense(params.mlpOut, hidden));
}
