/** Weights that a run begins with: drawn, or taken from runs before it or from somebody else's model. */
import { createHash } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import { UsageError } from '../proto/errors.ts';
import { openCpuEngine } from './backend/cpu-engine.ts';
import { encodeHeader } from './checkpoint/format.ts';
import type { RunConfig } from './config-fields.ts';
import { freezeParameters, frozenPaths } from './frozen-parameters.ts';
import { withReference } from './reference-parameters.ts';
import {
  nameBelow,
  openInitialSource,
  type InitialEntry,
  type InitialSource,
  type SourceTensor,
} from './initial-source.ts';
import { openInitializer, shapesOnly } from './initializer.ts';
import { nearest } from './nearest.ts';
import { pathMatcher } from './parameter-paths.ts';
import { kindAt, kindDifferences, tiedHeads } from './part-kind.ts';
import { transpose } from './pretrained/weight-table.ts';
import {
  INITIAL_FILE,
  needsInitialWeights,
  readInitialWeights,
  type Beginning,
  type Weights,
} from './run-weights.ts';
import type { VideoLanguageSystem } from './systems/system.ts';
import { leavesOf, partsOf, withLeaves, type TensorTree } from './tree.ts';

/**
 * Writes into a run's folder what its parameters are not drawn for: those taken from elsewhere, and all frozen ones,
 * which no checkpoint has; of a system that compares with the model as it began, all. Where there are none, a file that is there is of a preparation that broke off: it goes.
 * Tensors are read and written one by one. Gives what was taken, for people, and the file's SHA-256, undefined where none
 * was written.
 *
 * @param runs the folders of `config.init`, in its order
 * @throws UsageError `INIT_INVALID` where there are no such weights, or they do not fit the model; PretrainedError
 */
export async function writeInitialWeights(
  system: VideoLanguageSystem,
  { init, train }: Pick<RunConfig, 'init' | 'train'>,
  { folder, runs }: { readonly folder: string; readonly runs: readonly string[] },
): Promise<{ readonly taken: readonly string[]; readonly sha256: string | undefined }> {
  if (!needsInitialWeights({ init, train })) {
    await rm(join(folder, INITIAL_FILE), { force: true });
    return { taken: [], sha256: undefined };
  }
  await openCpuEngine();
  const form = formOf(system);
  const weights = new Map<string, SourceTensor>();
  const said: string[] = [];
  for (const [k, entry] of init.entries()) {
    const where = `init[${k}] (${runs[k]!})`;
    const source = await openInitialSource(runs[k]!);
    const taken = takenOf(system, entry, { source, where });
    for (const [name, tensor] of taken) weights.set(name, tensor);
    const progress = source.progress === undefined ? '' : ` (${source.progress})`;
    said.push(`${taken.size} tensors of ${basename(runs[k]!)}${progress}`);
  }
  const isFrozen = keptPaths(system, train.frozen, form);
  const isMissing = leavesOf(form).some(
    ([path, { shape }]) =>
      isFrozen.has(path) && partsOf(path, shape).some(({ name }) => !weights.has(name)),
  );
  if (isMissing) {
    for (const [path, tensor] of leavesOf(system.init(openInitializer(train.seed)))) {
      if (isFrozen.has(path)) {
        const bytes = new Uint8Array((tensor.dataSync() as Float32Array).slice().buffer);
        const parts = partsOf(path, tensor.shape);
        const size = bytes.length / parts.length;
        for (const [k, { name, shape }] of parts.entries()) {
          if (weights.has(name)) continue;
          const own = bytes.subarray(k * size, (k + 1) * size);
          weights.set(name, { shape, read: () => Promise.resolve(own) });
        }
      }
      tensor.dispose();
    }
  }
  return { taken: said, sha256: await writeWeights(join(folder, INITIAL_FILE), weights) };
}

/**
 * What an entry takes, by the names of the system that it is for; nothing is read. A head of its own begins as the table
 * of words that is the head of a tied source: that is what the source computes.
 * @param where of the entry, for messages
 * @throws UsageError `INIT_INVALID` where it does not fit
 */
export function takenOf(
  system: VideoLanguageSystem,
  entry: InitialEntry,
  { source, where }: { readonly source: InitialSource; readonly where: string },
): Map<string, SourceTensor> {
  const { tensors, lacking, kinds } = source;
  const { take, as, skip, firstRows } = entry;
  const shapes = new Map(
    leavesOf(formOf(system)).flatMap(([path, { shape }]) =>
      partsOf(path, shape).map((part): [string, readonly number[]] => [part.name, part.shape]),
    ),
  );
  const heads = tiedHeads(kinds);
  const all = [...tensors.keys(), ...lacking, ...heads.keys()];
  const below = all.flatMap((name) => nameBelow({ take, skip: [] }, name) ?? []);
  for (const pattern of [...skip, ...firstRows]) {
    if (!below.some(pathMatcher(pattern))) {
      const field = skip.includes(pattern) ? 'skip' : 'firstRows';
      throw invalid(`${where}: ${field} names ${pattern}, which it does not have`);
    }
  }
  const missing = [...lacking].find((name) => nameBelow(entry, name) !== undefined);
  if (missing !== undefined)
    throw invalid(`${where}: its files lack ${missing}; leave it out with skip`);
  const taken = new Map<string, SourceTensor>();
  const targetOf = (rest: string): string => [as, rest].filter((part) => part !== '').join('/');
  for (const [name, tensor] of tensors) {
    const rest = nameBelow(entry, name);
    if (rest === undefined) continue;
    const target = targetOf(rest);
    const there = tensor.place === undefined ? name : `${name} (${tensor.place})`;
    const shape = shapes.get(target);
    if (shape === undefined) {
      const near = nearest(target, [...shapes.keys()]);
      throw invalid(
        `${where}: ${there} would be ${target}, which the model does not have` +
          `${near === undefined ? '' : ` (it has ${near})`}; leave it out with skip`,
      );
    }
    const isCut = firstRows.some((pattern) => pathMatcher(pattern)(rest));
    taken.set(target, isCut ? firstRowsOf(tensor, shape) : tensor);
    if (taken.get(target)!.shape.join() !== shape.join()) {
      throw invalid(
        `${where}: ${there} is [${tensor.shape.join(', ')}], and ${target} of this model is [${shape.join(', ')}]`,
      );
    }
    const [own, others] = [kindAt(system.kinds ?? {}, target), kindAt(kinds, name)];
    const [different] =
      own === undefined || others === undefined ? [] : kindDifferences(others, own);
    if (different !== undefined) {
      throw invalid(`${where}: of what ${there} and ${target} are in, ${different}`);
    }
  }
  for (const [head, words] of heads) {
    const [rest, from] = [nameBelow(entry, head), nameBelow(entry, words)];
    const table = from === undefined ? undefined : taken.get(targetOf(from));
    if (rest === undefined || table === undefined || !shapes.has(targetOf(rest))) continue;
    taken.set(targetOf(rest), transposedOf(table));
  }
  if (taken.size === 0)
    throw invalid(`${where}: it has no weights below ${take === '' ? 'its root' : take}`);
  return taken;
}

/** The tensor itself where it has no more rows than are wanted. */
function firstRowsOf(tensor: SourceTensor, [rows = 0, ...others]: readonly number[]): SourceTensor {
  const { shape, read } = tensor;
  if (shape[0]! <= rows || shape.slice(1).join() !== others.join()) return tensor;
  const sizeBytes = 4 * others.reduce((a, b) => a * b, rows);
  return {
    ...tensor,
    shape: [rows, ...others],
    read: async () => (await read()).subarray(0, sizeBytes),
  };
}

/** The head [D, V] that a table of words [V, D] is. */
function transposedOf(table: SourceTensor): SourceTensor {
  const { shape } = table;
  return {
    ...table,
    shape: shape.toReversed(),
    read: async () => {
      const { data } = transpose({
        shape,
        data: new Float32Array((await table.read()).slice().buffer),
      });
      return new Uint8Array(data.buffer);
    },
  };
}

/** Gives the SHA-256 of the file. */
async function writeWeights(
  file: string,
  weights: ReadonlyMap<string, SourceTensor>,
): Promise<string> {
  const forms = [...weights].map(([name, { shape }]) => {
    const byteLength = 4 * shape.reduce((a, b) => a * b, 1);
    return [name, { dtype: 'F32' as const, shape, data: { byteLength } }] as const;
  });
  const { header, order } = encodeHeader(new Map(forms));
  const hash = createHash('sha256');
  const handle = await open(`${file}.tmp`, 'w');
  const append = async (bytes: Uint8Array): Promise<void> => {
    hash.update(bytes);
    await handle.writeFile(bytes);
  };
  try {
    await append(header);
    for (const name of order) await append(await weights.get(name)!.read());
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rename(`${file}.tmp`, file);
  return hash.digest('hex');
}

/**
 * The system as a run of `folder` trains it: beginning from the weights there, with the frozen ones frozen.
 * @param sha256 of their file, as the run's plan has it
 * @throws UsageError INITIAL_WEIGHTS_MISSING, INITIAL_WEIGHTS_DAMAGED, INITIAL_WEIGHTS_UNFIT, FROZEN_INVALID
 */
export async function withInitialWeights(
  system: VideoLanguageSystem,
  config: Beginning,
  { folder, sha256 }: { readonly folder: string; readonly sha256: string | undefined },
): Promise<VideoLanguageSystem> {
  if (!needsInitialWeights(config)) return system;
  const { frozen } = config.train;
  const weights = await readInitialWeights(folder, config, sha256);
  const form = formOf(system);
  const isKept = keptPaths(system, frozen, form);
  checkFit(form, weights, { file: join(folder, INITIAL_FILE), isKept });
  const compared =
    system.needsReference === true ? withReference(system, frozen, form, weights) : system;
  const beginning: VideoLanguageSystem = {
    ...compared,
    init: (initializer) => filled(system.init(initializer), weights),
  };
  return frozen.length === 0 ? beginning : freezeParameters(beginning, frozen, form, weights);
}

/** The parameters' paths and shapes; their values do not exist. */
export function formOf(system: VideoLanguageSystem): TensorTree {
  return system.init(shapesOnly());
}

/** Paths of what stays as it began: what is frozen; all where the system compares with it. */
function keptPaths(
  { needsReference }: Pick<VideoLanguageSystem, 'needsReference'>,
  frozen: readonly string[],
  form: TensorTree,
): Set<string> {
  const paths = leavesOf(form).map(([path]) => path);
  return needsReference === true ? new Set(paths) : frozenPaths(frozen, paths);
}

/** @throws UsageError INITIAL_WEIGHTS_UNFIT where it has not what is kept, or what the model has not */
function checkFit(
  form: TensorTree,
  weights: Weights,
  { file, isKept }: { readonly file: string; readonly isKept: ReadonlySet<string> },
): void {
  const unfit = (what: string): UsageError =>
    new UsageError(
      'INITIAL_WEIGHTS_UNFIT',
      `${file} is not of this run: ${what}. Copy it from the folder that the run was prepared in, or prepare the run ` +
        'anew',
    );
  const leaves = leavesOf(form);
  const shapes = new Map(
    leaves.flatMap(([path, { shape }]) =>
      partsOf(path, shape).map((part): [string, readonly number[]] => [part.name, part.shape]),
    ),
  );
  for (const [name, { dtype, shape }] of weights) {
    const own = shapes.get(name);
    if (own === undefined) throw unfit(`it has ${name}, and the model has not`);
    if (dtype !== 'F32' || shape.join() !== own.join()) {
      const [there, here] = [shape.join(', '), own.join(', ')];
      throw unfit(`${name} is ${dtype} [${there}] there, and F32 [${here}] in the model`);
    }
  }
  for (const [path, { shape }] of leaves) {
    if (!isKept.has(path)) continue;
    const missing = partsOf(path, shape).find(({ name }) => !weights.has(name));
    if (missing !== undefined)
      throw unfit(`it lacks ${missing.name}, which is frozen or compared with`);
  }
}

/** `weights` fit: see {@link checkFit}. */
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

function invalid(message: string): UsageError {
  return new UsageError('INIT_INVALID', message);
}
