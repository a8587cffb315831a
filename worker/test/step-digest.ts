// Prints the SHA-256 of the parameters, moments and losses of a small VideoBERT after three steps: the last test
// of `reproducible.test.ts` runs it in processes of their own. Arguments: threads of the engine, cache folder.
import { createHash } from 'node:crypto';
import * as tf from '@tensorflow/tfjs-core';
import { openEngine } from '../backend/engine.ts';
import { uploadBatch } from '../batches.ts';
import { openInitializer } from '../initializer.ts';
import {
  initVideoBert,
  videoBertLogits,
  videoBertSums,
  type VideoBertBatch,
  type VideoBertParams,
} from '../models/videobert.ts';
import { sequenceLength } from '../systems/videobert-batch.ts';
import { adamW, adamWScalars, type AdamWState } from '../optim/adamw.ts';
import { cpuPlugin } from '../pjrt/test/client.ts';
import { leavesOf, mapTree, withLeaves } from '../tree.ts';
import { testAssembly, testBatch } from './assembly.ts';

const ADAMW = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01 };
const ASSEMBLY = testAssembly();
const SIZES = {
  width: 128,
  numLayers: 2,
  numHeads: 4,
  mlpRatio: 4,
  textVocabulary: 20,
  visualVocabulary: 8,
  centroidWidth: 5,
  length: sequenceLength(ASSEMBLY),
};

type State = { readonly params: VideoBertParams; readonly optimizer: AdamWState<VideoBertParams> };

function trainStep(
  { params, optimizer }: State,
  centroids: tf.Tensor,
  batch: Record<string, tf.Tensor>,
  scalars: tf.Tensor,
): { state: State; loss: tf.Tensor } {
  const loss = (...leaves: tf.Tensor[]): tf.Scalar => {
    const asked = batch as unknown as VideoBertBatch;
    const logits = videoBertLogits(withLeaves(params, leaves), centroids, asked, SIZES);
    return tf.sum(
      tf.stack(Object.values(videoBertSums(logits, asked)).map(({ lossSum }) => lossSum)),
    );
  };
  const { value, grads } = tf.valueAndGrads(loss)(leavesOf(params).map(([, leaf]) => leaf));
  const gradient = withLeaves(params, grads);
  const updated = adamW(ADAMW, {
    params,
    state: optimizer,
    gradient,
    scalars,
    decays: () => true,
  });
  return { state: { params: updated.params, optimizer: updated.state }, loss: value };
}

async function main([threads, cacheDir]: string[]): Promise<void> {
  const engine = await openEngine({
    engine: 'xla',
    pluginPath: await cpuPlugin(),
    cacheDir: cacheDir!,
    threads: Number(threads),
  });
  const params = initVideoBert(SIZES, openInitializer(9));
  const zeros = () => mapTree(params, ({ shape }) => tf.zeros(shape));
  let state: State = { params, optimizer: { first: zeros(), second: zeros() } };
  const centroids = engine.upload(
    Float32Array.from({ length: 40 }, (_, i) => Math.sin(i)),
    [8, 5],
  );
  const step = engine.compile(trainStep, { name: 'step', donate: [0] });
  const digest = createHash('sha256');
  for (let n = 1; n <= 3; n++) {
    const scalars = adamWScalars(ADAMW, { step: n, learningRate: 1e-3, gradientScale: 1 });
    const result = await step(
      state,
      centroids,
      uploadBatch(engine, testBatch(ASSEMBLY, { rows: 32, step: n })),
      engine.upload(scalars, [4]),
    );
    digest.update(await result.loss.data<'float32'>());
    state = result.state;
  }
  for (const [, leaf] of leavesOf(state)) digest.update(await leaf.data<'float32'>());
  process.stdout.write(`${digest.digest('hex')}\n`);
  engine.close();
}

await main(process.argv.slice(2));
