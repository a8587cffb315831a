/** The three models of the engine bench, with the shapes of their peers in `peers/`. */
import * as tf from '@tensorflow/tfjs-core';

import { openRng } from '../../proto/random.ts';
import type { Rng } from '../../proto/random.ts';
import type { Engine } from '../backend/engine.ts';
import { openInitializer } from '../initializer.ts';
import { repeatLayers } from '../layer-loop.ts';
import { attend, selfAttention } from '../layers/attention.ts';
import { dense, initDense } from '../layers/dense.ts';
import { gelu } from '../layers/activations.ts';
import { initBlock, transformerBlock } from '../layers/transformer-block.ts';
import { initLayerNorm, layerNorm } from '../layers/norm.ts';
import type { BlockParams } from '../layers/transformer-block.ts';
import type { DenseParams } from '../layers/dense.ts';
import type { LayerNormParams } from '../layers/norm.ts';
import { gatherTokens } from '../tokens/gather-tokens.ts';
import type { Stacked, TensorTree } from '../tree.ts';

/** A model with data of its own: what a training step needs. */
export interface BenchModel {
  readonly params: TensorTree;
  readonly batch: TensorTree;
  readonly loss: (params: TensorTree, batch: TensorTree) => tf.Scalar;
  /** Of products that the backward pass computes again where attention's weights are not kept. */
  readonly recomputedFlops?: number;
}

/** Word pieces of all three. */
export const VOCABULARY = 4096;

const init = openInitializer(0);
const table = (path: string, ...shape: number[]): tf.Tensor => init.normal(path, shape, 0.02);

/** Mean cross entropy of logits [N, V] against labels [N] int32, in nats. */
export function crossEntropy(logits: tf.Tensor, labels: tf.Tensor): tf.Scalar {
  const picked = tf.oneHot(labels, logits.shape[1]!);
  return tf.neg(tf.mean(tf.sum(tf.mul(tf.logSoftmax(logits), picked), -1)));
}

export function embed(words: tf.Tensor, ids: tf.Tensor): tf.Tensor {
  const [batch, length] = ids.shape as [number, number];
  return tf.reshape(tf.gather(words, tf.reshape(ids, [-1])), [batch, length, -1]);
}

/** Host data of a batch; the seed is the bench's. */
export class Draw {
  readonly #engine: Engine;
  readonly #rng: Rng = openRng(0, 'bench');

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  normal(...shape: number[]): tf.Tensor {
    const length = shape.reduce((a, b) => a * b, 1);
    return this.#engine.upload(
      Float32Array.from({ length }, () => this.#rng.normal()),
      shape,
    );
  }

  ids(...shape: number[]): tf.Tensor {
    const length = shape.reduce((a, b) => a * b, 1);
    const values = Int32Array.from({ length }, () => this.#rng.integer(VOCABULARY));
    return this.#engine.upload(values, shape);
  }

  /** `count` different positions below `below` in each of `batch` rows, [batch, count]. */
  positions(batch: number, below: number, count: number): tf.Tensor {
    const rows = Array.from({ length: batch }, () => {
      const all = Array.from({ length: below }, (_, i) => i);
      for (let i = 0; i < count; i++) {
        const j = i + this.#rng.integer(below - i);
        [all[i], all[j]] = [all[j]!, all[i]!];
      }
      return all.slice(0, count);
    });
    return this.#engine.upload(Int32Array.from(rows.flat()), [batch, count]);
  }
}

type EarlyFusion = {
  readonly text: tf.Tensor; // [V, D]
  readonly position: tf.Tensor; // [L, D]
  readonly visualMask: tf.Tensor; // [D]
  readonly projection: DenseParams;
  readonly blocks: Stacked<BlockParams>;
  readonly norm: LayerNormParams;
  readonly languageHead: DenseParams;
  readonly regressionHead: DenseParams;
};
type EarlyFusionBatch = {
  readonly text: tf.Tensor; // [B, 128] int32
  readonly features: tf.Tensor; // [B, 392, 768]
  readonly textPositions: tf.Tensor; // [B, 20] int32
  readonly textLabels: tf.Tensor; // [B, 20] int32
  readonly visualPositions: tf.Tensor; // [B, 60] int32
};

/**
 * Early fusion as VideoBERT's: 128 text and 392 visual tokens of 768 projected to D = 256, 4 layers of 4 heads, batch
 * 8; masked language modelling on 20 positions and regression of 60 masked visual tokens. 5.8 M parameters.
 */
export function earlyFusion(engine: Engine): BenchModel {
  const [batchSize, numText, numVisual, feature, width] = [8, 128, 392, 768, 256];
  const params: EarlyFusion = {
    text: init.normal('text', [VOCABULARY, width], 1),
    position: table('position', numText + numVisual, width),
    visualMask: table('visualMask', width),
    projection: initDense(init, 'projection', feature, width),
    blocks: { '*': initBlock(init.layers(4), 'blocks/*', width, 4) },
    norm: initLayerNorm(init, 'norm', width),
    languageHead: initDense(init, 'languageHead', width, VOCABULARY),
    regressionHead: initDense(init, 'regressionHead', width, feature),
  };
  const draw = new Draw(engine);
  const batch: EarlyFusionBatch = {
    text: draw.ids(batchSize, numText),
    features: draw.normal(batchSize, numVisual, feature),
    textPositions: draw.positions(batchSize, numText, 20),
    textLabels: draw.ids(batchSize, 20),
    visualPositions: draw.positions(batchSize, numVisual, 60),
  };
  return {
    params,
    batch,
    recomputedFlops: 4 * 2 * batchSize * (numText + numVisual) ** 2 * width,
    loss(tree, inputs) {
      const own = tree as EarlyFusion;
      const given = inputs as EarlyFusionBatch;
      const isMasked = tf.sum(tf.oneHot(given.visualPositions, numVisual), 1); // [B, 392]
      const visual = tf.where(
        tf.cast(tf.expandDims(isMasked, -1), 'bool'),
        own.visualMask,
        dense(own.projection, given.features),
      );
      const embedded = tf.add(tf.concat([embed(own.text, given.text), visual], 1), own.position);
      const encoded = repeatLayers(own.blocks, embedded, (block, x) =>
        transformerBlock(block, x, { numHeads: 4 }),
      );
      const states = layerNorm(own.norm, encoded);
      const [textStates, visualStates] = tf.split(states, [numText, numVisual], 1) as [
        tf.Tensor,
        tf.Tensor,
      ];
      const chosen = gatherTokens(textStates, given.textPositions);
      const logits = tf.reshape(dense(own.languageHead, chosen), [-1, VOCABULARY]);
      const predicted = dense(
        own.regressionHead,
        gatherTokens(visualStates, given.visualPositions),
      );
      const wanted = gatherTokens(given.features, given.visualPositions);
      return tf.add(
        crossEntropy(logits, tf.reshape(given.textLabels, [-1])),
        tf.mean(tf.squaredDifference(predicted, wanted)),
      );
    },
  };
}

type TwoTower = {
  readonly patch: DenseParams;
  readonly start: tf.Tensor; // [1, 1, D]
  readonly visualPosition: tf.Tensor; // [50, D]
  readonly visualBlocks: Stacked<BlockParams>;
  readonly visualNorm: LayerNormParams;
  readonly visualOutput: DenseParams;
  readonly text: tf.Tensor; // [V, D]
  readonly textPosition: tf.Tensor; // [32, D]
  readonly textBlocks: Stacked<BlockParams>;
  readonly textNorm: LayerNormParams;
  readonly textOutput: DenseParams;
  readonly logScale: tf.Tensor;
};
type TwoTowerBatch = {
  readonly frames: tf.Tensor; // [B, 8, 3, 112, 112]
  readonly text: tf.Tensor; // [B, 32] int32
};

/**
 * Two towers as CLIP's: ViT-Tiny/16 (D = 192, 12 layers of 3 heads) at 112 pixels on 8 frames, mean of their [CLS], and
 * a text transformer of 4 layers on 32 tokens; batch 16, InfoNCE. 8.1 M parameters.
 */
export function twoTower(engine: Engine): BenchModel {
  const [batchSize, numFrames, size, patch, width, numText] = [16, 8, 112, 16, 192, 32];
  const side = size / patch;
  const params: TwoTower = {
    patch: initDense(init, 'patch', 3 * patch * patch, width),
    start: table('start', 1, 1, width),
    visualPosition: table('visualPosition', side * side + 1, width),
    visualBlocks: { '*': initBlock(init.layers(12), 'visualBlocks/*', width, 4) },
    visualNorm: initLayerNorm(init, 'visualNorm', width),
    visualOutput: initDense(init, 'visualOutput', width, width),
    text: table('text', VOCABULARY, width),
    textPosition: table('textPosition', numText, width),
    textBlocks: { '*': initBlock(init.layers(4), 'textBlocks/*', width, 4) },
    textNorm: initLayerNorm(init, 'textNorm', width),
    textOutput: initDense(init, 'textOutput', width, width),
    logScale: tf.scalar(2.6593),
  };
  const draw = new Draw(engine);
  const batch: TwoTowerBatch = {
    frames: draw.normal(batchSize, numFrames, 3, size, size),
    text: draw.ids(batchSize, numText),
  };
  const encode = (blocks: Stacked<BlockParams>, x: tf.Tensor): tf.Tensor =>
    repeatLayers(blocks, x, (block, state) => transformerBlock(block, state, { numHeads: 3 }));
  const unit = (x: tf.Tensor): tf.Tensor =>
    tf.mul(x, tf.rsqrt(tf.add(tf.sum(tf.square(x), -1, true), 1e-12)));
  return {
    params,
    batch,
    loss(tree, inputs) {
      const own = tree as TwoTower;
      const { frames, text } = inputs as TwoTowerBatch;
      const images = batchSize * numFrames;
      const cut = tf.reshape(frames, [images, 3, side, patch, side, patch]);
      const patches = tf.reshape(tf.transpose(cut, [0, 2, 4, 1, 3, 5]), [images, side * side, -1]);
      const start = tf.tile(own.start, [images, 1, 1]);
      const tokens = tf.add(tf.concat([start, dense(own.patch, patches)], 1), own.visualPosition);
      const seen = tf.slice(encode(own.visualBlocks, tokens), [0, 0, 0], [-1, 1, -1]);
      const pooled = tf.mean(
        tf.reshape(layerNorm(own.visualNorm, seen), [batchSize, numFrames, width]),
        1,
      );
      const read = encode(own.textBlocks, tf.add(embed(own.text, text), own.textPosition));
      const last = tf.reshape(tf.slice(read, [0, numText - 1, 0], [-1, 1, -1]), [-1, width]);
      const videos = unit(dense(own.visualOutput, pooled)); // [B, D]
      const texts = unit(dense(own.textOutput, layerNorm(own.textNorm, last)));
      const product = tf.matMul(videos, texts, false, true);
      const logits = tf.mul(product, tf.exp(own.logScale));
      const labels = tf.range(0, batchSize, 1, 'int32');
      return tf.mul(
        tf.add(crossEntropy(logits, labels), crossEntropy(tf.transpose(logits), labels)),
        0.5,
      );
    },
  };
}

type QFormerBlock = {
  readonly block: BlockParams;
  readonly crossNorm: LayerNormParams;
  readonly query: DenseParams;
  readonly keyValue: DenseParams;
  readonly output: DenseParams;
};
type QFormer = {
  readonly queries: tf.Tensor; // [1, 32, D]
  readonly text: tf.Tensor; // [V, D]
  readonly position: tf.Tensor; // [32, D]
  readonly blocks: Stacked<QFormerBlock>;
  readonly norm: LayerNormParams;
  readonly languageHead: DenseParams;
};
type QFormerBatch = {
  readonly features: tf.Tensor; // [B, 257, 1024]
  readonly text: tf.Tensor; // [B, 32] int32
  readonly labels: tf.Tensor; // [B, 32] int32
};

/**
 * A Q-Former: 32 queries, D = 256, 2 layers of 4 heads, cross-attention to 257 frozen features of 1024, 32 text tokens
 * behind the queries under a multimodal causal mask, language head; batch 8. 5.0 M parameters.
 */
export function qFormer(engine: Engine): BenchModel {
  const [batchSize, numQueries, numText, width, feature, numHeads] = [8, 32, 32, 256, 1024, 4];
  const stacked = init.layers(2);
  const params: QFormer = {
    queries: table('queries', 1, numQueries, width),
    text: table('text', VOCABULARY, width),
    position: table('position', numText, width),
    blocks: {
      '*': {
        block: initBlock(stacked, 'blocks/*', width, 4),
        crossNorm: initLayerNorm(stacked, 'blocks/*/crossNorm', width),
        query: initDense(stacked, 'blocks/*/query', width, width),
        keyValue: initDense(stacked, 'blocks/*/keyValue', feature, 2 * width),
        output: initDense(stacked, 'blocks/*/output', width, width),
      },
    },
    norm: initLayerNorm(init, 'norm', width),
    languageHead: initDense(init, 'languageHead', width, VOCABULARY),
  };
  const draw = new Draw(engine);
  const batch: QFormerBatch = {
    features: draw.normal(batchSize, 257, feature),
    text: draw.ids(batchSize, numText),
    labels: draw.ids(batchSize, numText),
  };
  const length = numQueries + numText;
  // Queries see one another; text sees the queries and the text before it.
  const hidden = Float32Array.from({ length: length * length }, (_, i) => {
    const [row, column] = [Math.floor(i / length), i % length];
    const limit = Math.max(row, numQueries - 1);
    return column <= limit && !(row < numQueries && column >= numQueries) ? 0 : -1e9;
  });
  const mask = tf.tensor(hidden, [1, 1, length, length]);
  return {
    params,
    batch,
    loss(tree, inputs) {
      const own = tree as QFormer;
      const { features, text, labels } = inputs as QFormerBatch;
      const queries = tf.tile(own.queries, [batchSize, 1, 1]);
      const words = tf.add(embed(own.text, text), own.position);
      const encoded = repeatLayers(
        own.blocks,
        tf.concat([queries, words], 1),
        ({ block, crossNorm, query, keyValue, output }, x, [seen, bias]) => {
          const attended = tf.add(
            x,
            selfAttention(block.attention, layerNorm(block.attentionNorm, x), {
              numHeads,
              bias: bias!,
            }),
          );
          const [looking, reading] = tf.split(attended, [numQueries, numText], 1) as [
            tf.Tensor,
            tf.Tensor,
          ];
          const [keys, values] = tf.split(dense(keyValue, seen!), 2, -1) as [tf.Tensor, tf.Tensor];
          const asked = dense(query, layerNorm(crossNorm, looking));
          const found = dense(output, attend(asked, keys, values, { numHeads }));
          const mixed = tf.concat([tf.add(looking, found), reading], 1);
          const wide = gelu(dense(block.mlpIn, layerNorm(block.mlpNorm, mixed)));
          return tf.add(mixed, dense(block.mlpOut, wide));
        },
        { shared: [features, mask] },
      );
      const states = layerNorm(own.norm, tf.slice(encoded, [0, numQueries, 0], [-1, -1, -1]));
      const logits = tf.reshape(dense(own.languageHead, states), [-1, VOCABULARY]);
      return crossEntropy(logits, tf.reshape(labels, [-1]));
    },
  };
}
