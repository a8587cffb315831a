/** Weights that a run begins with: drawn, or taken from runs before it. */
import { createReadStream } from 'node:fs';
import { access, rename, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  newestCheckpointStep,
} from '../proto/checkpoint-manifest.ts';
import { UsageError } from '../proto/errors.ts';
import { RUN_PLAN_FILE } from '../proto/run-plan.ts';
import { openCpuEngine } from './backend/cpu-engine.ts';
import type { TensorData } from './checkpoint/format.ts';
import { loadCheckpoint } from './checkpoint/load.ts';
import { readSafetensorsStream, safetensorsStream } from './checkpoint/stream.ts';
import type { RunConfig } from './config-fields.ts';
import { freezeParameters, frozenPaths } from './frozen-parameters.ts';
import { openInitializer, shapesOnly } from './initializer.ts';
import { pathMatcher } from './parameter-paths.ts';
import { isOptimizerTensor } from './state.ts';
import type { VideoLanguageSystem } from './systems/system.ts';
import { leavesOf, partsOf, withLeaves, type TensorTree } from './tree.ts';

export const INITIAL_FILE = 'initial.safetensors';

type Weights = Map<string, TensorData>;

/**
 * Writes into a run's folder what its parameters are not drawn for: those taken from other runs, and all frozen ones,
 * which no checkpoint has. Does nothing where there are none.
 *
 * @param runs the folders of `config.init`, in its order
 * @throws UsageError `INIT_INVALID` where a run has no such weights, or they do not fit the model
 */
export async function writeInitialWeights(
  system: VideoLanguageSystem,
  { init, train }: Pick<RunConfig, 'init' | 'train'>,
  { folder, runs }: { readonly folder: string; readonly runs: readonly string[] },
): Promise<string[]> {
  if (init.length === 0 && train.frozen.length === 0) return [];
  const form = formOf(system);
  const shapes = new Map(
    leavesOf(form).flatMap(([path, { shape }]) =>
      partsOf(path, shape).map((part): [string, readonly number[]] => [part.name, part.shape]),
    ),
  );
  const weights: Weights = new Map();
  const said: string[] = [];
  for (const [k, { take, as, skip }] of init.entries()) {
    const where = `init[${k}] (${runs[k]!})`;
    const taken = below(await weightsOfRun(runs[k]!), take);
    for (const pattern of skip) {
      const dropped = [...taken.keys()].filter(pathMatcher(pattern));
      if (dropped.length === 0)
        throw invalid(`${where}: skip names ${pattern}, which it does not have`);
      for (const name of dropped) taken.delete(name);
    }
    if (taken.size === 0)
      throw invalid(`${where}: it has no weights below ${take === '' ? 'its root' : take}`);
    for (const [name, tensor] of taken) {
      const target = as === '' ? name : `${as}/${name}`;
      const shape = shapes.get(target);
      if (shape === undefined)
        throw invalid(`${where}: the model has no ${target}; leave it out with skip`);
      if (shape.join() !== tensor.shape.join()) {
        throw invalid(
          `${where}: ${target} is [${tensor.shape.join(', ')}] there and [${shape.join(', ')}] in this model`,
        );
      }
      weights.set(target, tensor);
    }
    said.push(`${taken.size} tensors of ${basename(runs[k]!)}`);
  }
  const isFrozen = frozenPaths(
    train.frozen,
    leavesOf(form).map(([path]) => path),
  );
  await openCpuEngine();
  for (const [path, tensor] of leavesOf(system.init(openInitializer(train.seed)))) {
    if (isFrozen.has(path)) {
      const bytes = new Uint8Array((tensor.dataSync() as Float32Array).slice().buffer);
      const parts = partsOf(path, tensor.shape);
      const size = bytes.length / parts.length;
      for (const [k, { name, shape }] of parts.entries()) {
        if (weights.has(name)) continue;
        weights.set(name, { dtype: 'F32', shape, data: bytes.subarray(k * size, (k + 1) * size) });
      }
    }
    tensor.dispose();
  }
  const file = join(folder, INITIAL_FILE);
  await writeFile(`${file}.tmp`, safetensorsStream(weights));
  await rename(`${file}.tmp`, file);
  return said;
}

/** The system as a run of `folder` trains it: beginning from the weights there, with the frozen ones frozen. */
export async function withInitialWeights(
  system: VideoLanguageSystem,
  folder: string,
  frozen: readonly string[],
): Promise<VideoLanguageSystem> {
  const weights = await initialWeights(folder);
  if (weights.size === 0 && frozen.length === 0) return system;
  const form = formOf(system);
  const beginning: VideoLanguageSystem = {
    ...system,
    init: (initializer) => filled(system.init(initializer), weights),
  };
  return frozen.length === 0 ? beginning : freezeParameters(beginning, frozen, form, weights);
}

/** All weights of a run as they are after its newest checkpoint, by name. */
export async function weightsOfRun(folder: string): Promise<Weights> {
  const isRun = await access(join(folder, RUN_PLAN_FILE)).then(
    () => true,
    () => false,
  );
  if (!isRun) throw invalid(`${folder} is no run folder`);
  const step = await newestCheckpointStep(folder);
  if (step === undefined) throw invalid(`the run in ${folder} has no checkpoint: train it first`);
  const trained = await loadCheckpoint(
    join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(step)),
  );
  const own = [...trained].filter(([name]) => !isOptimizerTensor(name));
  return new Map([...(await initialWeights(folder)), ...own]);
}

async function initialWeights(folder: string): Promise<Weights> {
  const file = join(folder, INITIAL_FILE);
  const isThere = await access(file).then(
    () => true,
    () => false,
  );
  return isThere
    ? readSafetensorsStream(createReadStream(file, { highWaterMark: 4 << 20 }))
    : new Map();
}

/** The parameters' paths and shapes; their values do not exist. */
export function formOf(system: VideoLanguageSystem): TensorTree {
  return system.init(shapesOnly());
}

function filled(params: TensorTree, weights: Weights): TensorTree {
  const leaves = leavesOf(params).map(([path, tensor]) => {
    const parts = partsOf(path, tensor.shape);
    if (!parts.some(({ name }) => weights.has(name))) return tensor;
    const values = (tensor.dataSync() as Float32Array).slice();
    const size = values.length / parts.length;
    for (const [k, { name }] of parts.entries()) {
      const data = weights.get(name)?.data;
      if (data === undefined) continue;
      new Uint8Array(values.buffer, 4 * k * size, 4 * size).set(data);
    }
    const { shape } = tensor;
    tensor.dispose();
    return tf.tensor(values, shape);
  });
  return withLeaves(params, leaves);
}

/** Those below a path, by what their names have after it. */
function below(weights: Weights, path: string): Weights {
  if (path === '') return new Map(weights);
  const prefix = `${path}/`;
  return new Map(
    [...weights].flatMap(([name, tensor]) =>
      name.startsWith(prefix) ? [[name.slice(prefix.length), tensor]] : [],
    ),
  );
}

function invalid(message: string): UsageError {
  return new UsageError('INIT_INVALID', message);
}
