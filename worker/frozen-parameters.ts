/** Freezing: parameters that the loss goes through and no step changes. */
import type * as tf from '@tensorflow/tfjs-core';
import { UsageError } from '../proto/errors.ts';
import type { TensorData } from './checkpoint/format.ts';
import type { LanguageModel } from './models/language-model.ts';
import { nearest } from './nearest.ts';
import { pathMatcher, treesOf } from './parameter-paths.ts';
import type { AnsweringParams, HostArray, VideoLanguageSystem } from './systems/system.ts';
import { leavesOf, partsOf, withLeaves, type TensorTree } from './tree.ts';

/** Under these names the program gets them, beside the system's own arrays. */
const PREFIX = 'parameter:';

/**
 * The system with the parameters at `patterns` frozen: they are no part of what `init` gives, so they have no
 * gradient, no moments, no place in an all-reduce or a checkpoint, and no decay. Gradients still pass through them.
 *
 * @param form the system's parameters, for their paths and shapes
 * @param weights the frozen parameters' values by name, one a layer; or none, to plan by shapes
 * @throws UsageError `FROZEN_INVALID` where a pattern fits no parameter or all are frozen
 */
export function freezeParameters(
  system: VideoLanguageSystem,
  patterns: readonly string[],
  form: TensorTree,
  weights: ReadonlyMap<string, TensorData> | 'shapes alone',
): VideoLanguageSystem {
  const paths = leavesOf(form).map(([path]) => path);
  const isFrozen = frozenPaths(patterns, paths);
  if (paths.every((path) => isFrozen.has(path))) {
    throw new UsageError('FROZEN_INVALID', 'train.frozen leaves no parameter to train');
  }
  const frozen: Record<string, HostArray> = { ...system.frozen };
  for (const [path, { shape }] of leavesOf(form)) {
    if (!isFrozen.has(path)) continue;
    frozen[PREFIX + path] = frozenValues(path, shape, weights);
  }
  /** The whole tree from both parts. */
  const join = (trained: TensorTree, arrays: TensorTree): TensorTree => {
    const own = new Map(leavesOf(trained));
    const fixed = arrays as Record<string, tf.Tensor>;
    return withLeaves(
      form,
      paths.map((path) => own.get(path) ?? fixed[PREFIX + path]!),
    );
  };
  const { contrast, look, answers, fillIn, similarity, draws } = system;
  const joined = (model: LanguageModel<AnsweringParams>): LanguageModel<AnsweringParams> => ({
    ...model,
    prefill: ({ params, frozen: arrays }, prompt, numSteps) =>
      model.prefill({ params: join(params, arrays), frozen: arrays }, prompt, numSteps),
    step: ({ params, frozen: arrays }, state, tokens) =>
      model.step({ params: join(params, arrays), frozen: arrays }, state, tokens),
  });
  return {
    ...system,
    frozen,
    init: (initializer) =>
      Object.fromEntries(
        leavesOf(system.init(initializer)).filter(([path, tensor]) => {
          if (isFrozen.has(path)) tensor.dispose();
          return !isFrozen.has(path);
        }),
      ),
    sums: (params, arrays, batch) => system.sums(join(params, arrays), arrays, batch),
    ...(contrast === undefined
      ? {}
      : {
          contrast: {
            ...contrast,
            parameters: contrast.parameters.filter((path) => !isFrozen.has(path)),
            embed: (params, arrays, batch) => contrast.embed(join(params, arrays), arrays, batch),
            ...(contrast.together === undefined
              ? {}
              : {
                  together: (params: TensorTree, arrays: TensorTree, batch: TensorTree) =>
                    contrast.together!(join(params, arrays), arrays, batch),
                }),
            sums: (params, embeddings, arrays) =>
              contrast.sums(join(params, arrays), embeddings, arrays),
          },
        }),
    ...(look === undefined
      ? {}
      : {
          look: {
            ...look,
            guess: (params, arrays, batch) => look.guess(join(params, arrays), arrays, batch),
          },
        }),
    ...(fillIn === undefined
      ? {}
      : {
          fillIn: {
            ...fillIn,
            logits: (params, arrays, batch) => fillIn.logits(join(params, arrays), arrays, batch),
          },
        }),
    ...(answers === undefined ? {} : { answers: { ...answers, model: joined(answers.model) } }),
    ...(draws === undefined ? {} : { draws: { ...draws, model: joined(draws.model) } }),
    ...(similarity === undefined
      ? {}
      : {
          similarity: {
            ...similarity,
            clips: (params, arrays, batch) => similarity.clips(join(params, arrays), arrays, batch),
            texts: (params, arrays, batch) => similarity.texts(join(params, arrays), arrays, batch),
            ...(similarity.compare === undefined
              ? {}
              : {
                  compare: (
                    params: TensorTree,
                    arrays: TensorTree,
                    clips: tf.Tensor,
                    texts: tf.Tensor,
                  ) => similarity.compare!(join(params, arrays), arrays, clips, texts),
                }),
          },
        }),
  };
}

/** Path and size of each parameter that {@link freezeParameters} has frozen in a system. */
export function frozenLeaves({
  frozen,
}: Pick<VideoLanguageSystem, 'frozen'>): [path: string, leaf: { readonly size: number }][] {
  return Object.entries(frozen)
    .filter(([name]) => name.startsWith(PREFIX))
    .map(([name, { shape }]) => [
      name.slice(PREFIX.length),
      { size: shape.reduce((a, b) => a * b, 1) },
    ]);
}

/** Paths at or below the patterns. */
export function frozenPaths(patterns: readonly string[], paths: readonly string[]): Set<string> {
  const frozen = new Set<string>();
  for (const pattern of patterns) {
    const matches = paths.filter(pathMatcher(pattern));
    if (matches.length === 0) {
      const near = nearest(pattern, paths.flatMap(treesOf));
      throw new UsageError(
        'FROZEN_INVALID',
        `train.frozen has ${pattern}, and the model has no such parameters` +
          (near === undefined ? '' : `; did you mean ${near}?`),
      );
    }
    for (const path of matches) frozen.add(path);
  }
  return frozen;
}

/** A parameter's values, of a plan by shapes none. */
export function frozenValues(
  path: string,
  shape: readonly number[],
  weights: ReadonlyMap<string, TensorData> | 'shapes alone',
): HostArray {
  if (weights === 'shapes alone') return { data: new Float32Array(0), shape };
  const bytes = Buffer.concat(partsOf(path, shape).map(({ name }) => weights.get(name)!.data));
  const data = new Float32Array(bytes.length / 4);
  bytes.copy(new Uint8Array(data.buffer));
  return { data, shape };
}
