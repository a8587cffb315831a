/** How far a model of ours is from the same one of transformers, whose files `peers/parity.py` makes. */
import path from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import type { Engine } from '../../backend/engine.ts';
import { leavesOf, numElements, withLeaves, type TensorTree } from '../../tree.ts';
import { openModelFolder, openWeights, writeModelFolder } from '../model-folder.ts';
import { exportTree, loadTree } from '../weights.ts';
import { architectureOf } from './architectures.ts';
import { largestDifference, readTensors } from './reference-tensors.ts';

/** Of float32, in outputs and gradients of size 1. */
export const TOLERANCE = 1e-4;

/** The models of `peers/parity.py`. */
export const MODEL_NAMES = [
  'bert',
  'vit',
  'clip',
  'clip-openai',
  'siglip',
  'siglip-border',
  'blip-2',
  'visual-bert',
  'flava',
  'video-llava',
  'llama-grouped',
  'llama-tied',
  'llama-linear',
  'opt-pre',
  'opt-post',
] as const;

/** A tensor of ours and how far it is from theirs. */
export interface TensorDifference {
  /** Of an output, or the path of a parameter. */
  readonly name: string;
  /** Of any element. */
  readonly difference: number;
  /** The largest element of theirs: what a difference is to be seen beside. */
  readonly largest: number;
}

export interface ModelDifference {
  readonly numParameters: number;
  /** Logits, embeddings and hidden states. */
  readonly outputs: readonly TensorDifference[];
  /** Of the loss sum(output * weight), by parameter. */
  readonly gradients: readonly TensorDifference[];
}

/** Inputs that are not float32 here. */
const INTEGER_INPUTS = ['ids', 'segments', 'softIds', 'softRows', 'labels'];

/**
 * Loads the model of a folder by the names in its files, compares outputs and gradients, and writes the folder that is
 * given as `exported` for `peers/parity.py check`.
 */
export async function compareModel(
  engine: Engine,
  folder: string,
  exported: string,
): Promise<ModelDifference> {
  const { config, weights } = await openModelFolder(folder);
  const { form, table, json, outputs } = architectureOf(config);
  const params = await loadTree(form, weights, table, {
    upload: (data, shape) => engine.upload(data, shape),
  });
  const reference = await readTensors(path.join(folder, 'reference.safetensors'));
  const of = (kind: string): Record<string, tf.Tensor> =>
    Object.fromEntries(
      [...reference]
        .filter(([name]) => name.startsWith(`${kind}.`))
        .map(([name, tensor]) => [name.slice(kind.length + 1), tensor]),
    );
  const inputs = Object.fromEntries(
    Object.entries(of('input')).map(([name, tensor]) => [
      name,
      INTEGER_INPUTS.includes(name) ? tf.cast(tensor, 'int32') : tensor,
    ]),
  );
  const run = engine.compile(
    (own: TensorTree, given: typeof inputs, factors: Record<string, tf.Tensor>) => {
      let found: Record<string, tf.Tensor> = {};
      const total = (...leaves: tf.Tensor[]): tf.Scalar => {
        const made = outputs(withLeaves(own, leaves), given);
        found = Object.fromEntries(
          Object.entries(made).map(([name, tensor]) => [name, tf.keep(tensor)]),
        );
        return tf.addN([
          ...Object.entries(factors).map(([name, factor]) =>
            tf.sum<tf.Scalar>(tf.mul(made[name]!, factor)),
          ),
          // Parameters that nothing depends on, of blocks whose states are not taken, have a gradient too: none.
          ...leaves.map((leaf) => tf.mul<tf.Scalar>(tf.sum(leaf), 0)),
        ]);
      };
      const gradients = tf.grads(total)(leavesOf(own).map(([, leaf]) => leaf));
      return { found, gradients };
    },
    { name: 'parity' },
  );
  const { found, gradients } = await run(params, inputs, of('weight'));
  run.close();
  const theirs = await loadTree(form, await openWeights(path.join(folder, 'gradients')), table);
  const gradientDifferences: TensorDifference[] = [];
  for (const [i, [name, wanted]] of leavesOf(theirs).entries())
    gradientDifferences.push(await differenceOf(name, gradients[i], wanted));
  const outputDifferences: TensorDifference[] = [];
  for (const [name, wanted] of Object.entries(of('output')))
    outputDifferences.push(await differenceOf(name, found[name], wanted));
  await writeModelFolder(exported, { config: json, tensors: await exportTree(params, table) });
  return {
    numParameters: numElements(form),
    outputs: outputDifferences,
    gradients: gradientDifferences,
  };
}

async function differenceOf(
  name: string,
  found: tf.Tensor | undefined,
  wanted: tf.Tensor,
): Promise<TensorDifference> {
  const largest = ((await wanted.data()) as Float32Array).reduce(
    (most, value) => Math.max(most, Math.abs(value)),
    0,
  );
  const difference = found === undefined ? Infinity : await largestDifference(found, wanted);
  return { name, difference, largest };
}

/** The one that is furthest off. */
export function worstOf(differences: readonly TensorDifference[]): TensorDifference {
  return differences.reduce((worst, own) => (own.difference > worst.difference ? own : worst));
}
