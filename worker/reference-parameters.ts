/** What a policy is compared with while it is trained: the same model as it began. */
import type * as tf from '@tensorflow/tfjs-core';
import type { TensorData } from './checkpoint/format.ts';
import { frozenPaths, frozenValues } from './frozen-parameters.ts';
import type { HostArray, VideoLanguageSystem } from './systems/system.ts';
import { leavesOf, withLeaves, type TensorTree } from './tree.ts';

/** Under these names the program gets what is trained as it was at the start, beside the system's own arrays. */
const PREFIX = 'reference:';

/**
 * The system with a copy of what it begins with and trains among its frozen arrays. What `patterns` freeze needs none:
 * policy and reference share it.
 *
 * @param form the system's parameters, for their paths and shapes
 * @param weights the values by name, one a layer; or none, to plan by shapes
 */
export function withReference(
  system: VideoLanguageSystem,
  patterns: readonly string[],
  form: TensorTree,
  weights: ReadonlyMap<string, TensorData> | 'shapes alone',
): VideoLanguageSystem {
  const leaves = leavesOf(form);
  const isShared = frozenPaths(
    patterns,
    leaves.map(([path]) => path),
  );
  const frozen: Record<string, HostArray> = { ...system.frozen };
  for (const [path, { shape }] of leaves) {
    if (!isShared.has(path)) frozen[PREFIX + path] = frozenValues(path, shape, weights);
  }
  return { ...system, frozen };
}

/** Path, below `reference`, and size of each parameter that the system has a copy of. */
export function referenceLeaves({
  frozen,
}: Pick<VideoLanguageSystem, 'frozen'>): [path: string, leaf: { readonly size: number }][] {
  return Object.entries(frozen)
    .filter(([name]) => name.startsWith(PREFIX))
    .map(([name, { shape }]) => [
      `reference/${name.slice(PREFIX.length)}`,
      { size: shape.reduce((a, b) => a * b, 1) },
    ]);
}

/** The frozen arrays without the copy, for those who do not compare. */
export function withoutReference(
  frozen: Readonly<Record<string, HostArray>>,
): Readonly<Record<string, HostArray>> {
  return Object.fromEntries(Object.entries(frozen).filter(([name]) => !name.startsWith(PREFIX)));
}

/** The reference's parameters: those of {@link withReference}, and of the policy's what is not trained. */
export function referenceOf<P extends TensorTree>(params: P, frozen: TensorTree): P {
  const kept = frozen as Readonly<Record<string, tf.Tensor | undefined>>;
  const leaves = leavesOf(params).map(([path, tensor]) => kept[PREFIX + path] ?? tensor);
  return withLeaves(params, leaves);
}
