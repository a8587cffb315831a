import type * as tf from '@tensorflow/tfjs-core';
import type { Engine } from './backend/engine.ts';
import type { TensorData } from './checkpoint/format.ts';
import { blank, openInitializer } from './initializer.ts';
import type { VideoLanguageSystem } from './systems/system.ts';
import { initAdamW, type AdamWState } from './optim/adamw.ts';
import { disposeTree, fillTree, leavesOf, partsOf, type TensorTree } from './tree.ts';

/** All that a step changes. */
export interface TrainingState<P extends TensorTree = TensorTree> {
  /** The last step that is in the parameters; 0 before the first. */
  readonly step: number;
  readonly params: P;
  readonly optimizer: AdamWState<P>;
}

/** Tensors by name on the host: parameters under their paths, moments under `optimizer/…`. */
export type HostState = Map<string, TensorData>;

const OPTIMIZER_PREFIX = 'optimizer/';

export function initState<P extends TensorTree>(
  system: VideoLanguageSystem<P>,
  seed: number,
): TrainingState<P> {
  const params = system.init(openInitializer(seed));
  return { step: 0, params, optimizer: initAdamW(params) };
}

/** A state of the right form to warm up with: large models take a while to draw. */
export function blankState<P extends TensorTree>(system: VideoLanguageSystem<P>): TrainingState<P> {
  const params = system.init(blank());
  return { step: 0, params, optimizer: initAdamW(params) };
}

/** Names and sizes in bytes of everything that {@link readState} gives. */
export function stateSizes(state: TrainingState): Map<string, number> {
  const parts = namedLeaves(state).flatMap(([path, { shape }]) => partsOf(path, shape));
  return new Map(parts.map(({ name, shape }) => [name, 4 * shape.reduce((a, b) => a * b, 1)]));
}

/** Names of the parameters in {@link readState}'s result. */
export function parameterNames({ params }: TrainingState): Set<string> {
  const parts = leavesOf(params).flatMap(([path, { shape }]) => partsOf(path, shape));
  return new Set(parts.map(({ name }) => name));
}

/** Copies the named tensors, or all of them, to the host. */
export async function readState(
  state: TrainingState,
  names?: ReadonlySet<string>,
): Promise<HostState> {
  const copies = namedLeaves(state).map(async ([path, tensor]): Promise<[string, TensorData][]> => {
    const parts = partsOf(path, tensor.shape);
    const isWanted = parts.map(({ name }) => names?.has(name) ?? true);
    if (!isWanted.includes(true)) return [];
    const values = (await tensor.data()) as Float32Array;
    const size = values.byteLength / parts.length;
    return parts.flatMap(({ name, shape }, k): [string, TensorData][] => {
      const data = new Uint8Array(values.buffer, values.byteOffset + k * size, size);
      return isWanted[k] ? [[name, { dtype: 'F32', shape, data }]] : [];
    });
  });
  return new Map((await Promise.all(copies)).flat());
}

/**
 * The state that {@link readState} read, on the device again.
 *
 * @throws VideoloomError `STATE_MISMATCH` when it is that of another model.
 */
export function stateFromHost<P extends TensorTree>(
  engine: Engine,
  form: Pick<TrainingState<P>, 'params'>,
  step: number,
  host: HostState,
): TrainingState<P> {
  const below = (prefix: string): HostState =>
    new Map(
      [...host].flatMap(([name, tensor]) =>
        name.startsWith(prefix) ? [[name.slice(prefix.length), tensor]] : [],
      ),
    );
  const fill = (tree: P, tensors: HostState): P =>
    fillTree(tree, tensors, (parts, shape) => {
      const bytes = Buffer.concat(parts.map(({ data }) => data));
      const values = new Float32Array(bytes.length / 4);
      bytes.copy(new Uint8Array(values.buffer));
      return engine.upload(values, shape);
    });
  const params = new Map([...host].filter(([name]) => !name.startsWith(OPTIMIZER_PREFIX)));
  return {
    step,
    params: fill(form.params, params),
    optimizer: {
      first: fill(form.params, below(`${OPTIMIZER_PREFIX}first/`)),
      second: fill(form.params, below(`${OPTIMIZER_PREFIX}second/`)),
    },
  };
}

export function isOptimizerTensor(name: string): boolean {
  return name.startsWith(OPTIMIZER_PREFIX);
}

export function disposeState(state: TrainingState): void {
  disposeTree(state.params);
  disposeTree(state.optimizer);
}

/** Every tensor by the path under which {@link readState} gives it or its parts. */
export function namedLeaves({ params, optimizer }: TrainingState): [string, tf.Tensor][] {
  return [
    ...leavesOf(params),
    ...leavesOf(optimizer).map(([path, tensor]): [string, tf.Tensor] => [
      OPTIMIZER_PREFIX + path,
      tensor,
    ]),
  ];
}
