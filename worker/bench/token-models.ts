/** An early-fusion model as in `models.ts`, with an operator on its visual tokens. */
import * as tf from '@tensorflow/tfjs-core';

import { openRng } from '../../proto/random.ts';
import type { Engine } from '../backend/engine.ts';
import { openInitializer } from '../initializer.ts';
import { repeatLayers } from '../layer-loop.ts';
import { dense, initDense } from '../layers/dense.ts';
import { initBlock, transformerBlock } from '../layers/transformer-block.ts';
import { initLayerNorm, layerNorm } from '../layers/norm.ts';
import type { BlockParams } from '../layers/transformer-block.ts';
import type { DenseParams } from '../layers/dense.ts';
import type { LayerNormParams } from '../layers/norm.ts';
import { mergingBlocks } from '../layers/merging-blocks.ts';
import { concatenateTokens } from '../tokens/concatenate-merge.ts';
import { gatherTokens } from '../tokens/gather-tokens.ts';
import { maskRows } from '../tokens/mask-rng.ts';
import { keepPatches } from '../tokens/patch-drop.ts';
import { poolSpace, poolTime } from '../tokens/pool-merge.ts';
import { tubeMask } from '../tokens/tube-mask.ts';
import type { Stacked } from '../tree.ts';
import { crossEntropy, Draw, embed, VOCABULARY } from './models.ts';
import type { BenchModel } from './models.ts';

const [BATCH, NUM_TEXT, WIDTH, FEATURE, NUM_LAYERS, NUM_HEADS] = [8, 128, 256, 768, 4, 4];
/** 392 visual tokens: two tubelets in time, 14 x 14 in space. */
const GRID = { frames: 2, height: 14, width: 14 };
const NUM_VISUAL = GRID.frames * GRID.height * GRID.width;

type Keep = (rng: ReturnType<typeof openRng>) => Int32Array;

/** What is done to the visual tokens; one of these, or nothing. */
interface Operator {
  /** On the host: which tokens the model sees. */
  readonly keep?: Keep;
  /** Features [B, N, F] or embeddings [B, N, D] to fewer. */
  readonly features?: (x: tf.Tensor) => tf.Tensor;
  readonly embeddings?: (x: tf.Tensor) => tf.Tensor;
  /** Width of what is projected. */
  readonly featureWidth?: number;
  /** Tokens that each layer merges. */
  readonly schedule?: readonly number[];
}

/** By name. */
export const OPERATORS: Readonly<Record<string, Operator>> = {
  'all tokens': {},
  'concatenate 4 to 1': {
    features: (x) => concatenateTokens(x, 4),
    featureWidth: 4 * FEATURE,
  },
  'pool 2 in time': { embeddings: (x) => poolTime(x, GRID, 2) },
  'pool 2 x 2 in space': { embeddings: (x) => poolSpace(x, GRID, { height: 2, width: 2 }) },
  'ToMe, 32 a layer': { schedule: [32, 32, 32, 32] },
  'ToMe, 64 a layer': { schedule: [64, 64, 64, 64] },
  'ToMe, 128 falling': { schedule: [128, 85, 42, 0] },
  'FLIP, drop 50 %': { keep: (rng) => keepPatches(NUM_VISUAL, { ratio: 0.5 }, rng) },
  'tubes, mask 75 %': { keep: (rng) => tubeMask(GRID, 0.75, rng).kept },
  'tubes, mask 90 %': { keep: (rng) => tubeMask(GRID, 0.9, rng).kept },
};

type Params = {
  readonly text: tf.Tensor; // [V, D]
  readonly textPosition: tf.Tensor; // [L, D]
  readonly position: tf.Tensor; // [N, D]
  readonly projection: DenseParams;
  readonly blocks: Stacked<BlockParams>;
  readonly norm: LayerNormParams;
  readonly head: DenseParams;
};
type Batch = {
  readonly text: tf.Tensor; // [B, L] int32
  readonly features: tf.Tensor; // [B, N, F]
  readonly textPositions: tf.Tensor; // [B, 20] int32
  readonly textLabels: tf.Tensor; // [B, 20] int32
  readonly kept?: tf.Tensor; // [B, K] int32
};

export interface TokenModel extends BenchModel {
  /** Visual tokens in each layer's MLP. */
  readonly numTokens: readonly number[];
  /** The least that the host takes for the masks of a batch; 0 where there are none. */
  readonly maskSeconds: number;
}

/**
 * 128 text and 392 visual tokens of 768 projected to D = 256, 4 layers of 4 heads, batch 8; masked language modelling on
 * 20 positions, so that the loss is the same task whatever becomes of the visual tokens.
 */
export function tokenModel(engine: Engine, name: string): TokenModel {
  const operator = OPERATORS[name]!;
  const init = openInitializer(0);
  const params: Params = {
    text: init.normal('text', [VOCABULARY, WIDTH], 1),
    textPosition: init.normal('textPosition', [NUM_TEXT, WIDTH], 0.02),
    position: init.normal('position', [tokensAfter(operator.features), WIDTH], 0.02),
    projection: initDense(init, 'projection', operator.featureWidth ?? FEATURE, WIDTH),
    blocks: { '*': initBlock(init.layers(NUM_LAYERS), 'blocks/*', WIDTH, 4) },
    norm: initLayerNorm(init, 'norm', WIDTH),
    head: initDense(init, 'head', WIDTH, VOCABULARY),
  };
  const { kept, maskSeconds } = keptTokens(engine, operator.keep);
  const draw = new Draw(engine);
  const batch: Batch = {
    text: draw.ids(BATCH, NUM_TEXT),
    features: draw.normal(BATCH, NUM_VISUAL, FEATURE),
    textPositions: draw.positions(BATCH, NUM_TEXT, 20),
    textLabels: draw.ids(BATCH, 20),
    ...(kept === undefined ? {} : { kept }),
  };
  const first = kept?.shape[1] ?? tokensAfter(operator.features ?? operator.embeddings);
  const merges = operator.schedule ?? new Array<number>(NUM_LAYERS).fill(0);
  return {
    params,
    batch,
    maskSeconds,
    numTokens: merges.map(
      (_, layer) => first - merges.slice(0, layer + 1).reduce((a, b) => a + b, 0),
    ),
    loss(tree, inputs) {
      const own = tree as Params;
      const given = inputs as unknown as Batch;
      const visual = embedVisual(own, given, operator);
      const words = tf.add(embed(own.text, given.text), own.textPosition);
      const embedded = tf.concat([words, visual], 1);
      const { schedule } = operator;
      // Text stands in front, where no token merges.
      const encoded =
        schedule === undefined
          ? repeatLayers(own.blocks, embedded, (block, x) =>
              transformerBlock(block, x, { numHeads: NUM_HEADS }),
            )
          : mergingBlocks(own.blocks, embedded, {
              schedule,
              numHeads: NUM_HEADS,
              numProtected: NUM_TEXT,
              isProportional: true,
            }).tokens;
      const chosen = gatherTokens(layerNorm(own.norm, encoded), given.textPositions);
      const logits = tf.reshape(dense(own.head, chosen), [-1, VOCABULARY]);
      return crossEntropy(logits, tf.reshape(given.textLabels, [-1]));
    },
  };
}

/** What a layer of the encoder gets of the video, [B, K, D]. */
function embedVisual(
  { projection, position }: Params,
  { features, kept }: Batch,
  operator: Operator,
): tf.Tensor {
  if (kept !== undefined) {
    const places = tf.tile(tf.expandDims(position, 0), [BATCH, 1, 1]);
    return tf.add(dense(projection, gatherTokens(features, kept)), gatherTokens(places, kept));
  }
  const projected = tf.add(dense(projection, operator.features?.(features) ?? features), position);
  return operator.embeddings?.(projected) ?? projected;
}

function tokensAfter(change: ((x: tf.Tensor) => tf.Tensor) | undefined): number {
  if (change === undefined) return NUM_VISUAL;
  return tf.tidy(() => change(tf.zeros([1, NUM_VISUAL, 1])).shape[1]!);
}

function keptTokens(
  engine: Engine,
  keep: Keep | undefined,
): { kept: tf.Tensor | undefined; maskSeconds: number } {
  if (keep === undefined) return { kept: undefined, maskSeconds: 0 };
  const keys = Array.from({ length: BATCH }, (_, sample) => ({ seed: 0, epoch: 0, sample }));
  let maskSeconds = Infinity;
  for (let i = 0; i < 50; i++) {
    const begin = performance.now();
    maskRows(keys, 'bench', keep);
    maskSeconds = Math.min(maskSeconds, (performance.now() - begin) / 1000);
  }
  const { data, shape } = maskRows(keys, 'bench', keep);
  return { kept: engine.upload(data, shape), maskSeconds };
}
