import assert from 'node:assert/strict';
import * as tf from '@tensorflow/tfjs-core';
import { leavesOf, partsOf, withLeaves, type TensorTree } from '../tree.ts';
import { PretrainedError } from './pretrained-error.ts';
import type { HostTensor, TensorSource } from './tensor-source.ts';
import { sameShape, type Weight, type WeightTable } from './weight-table.ts';

export interface LoadOptions {
  /** How values become tensors: an engine's `upload`, or tfjs's own on its current backend. */
  readonly upload?: (data: Float32Array, shape: readonly number[]) => tf.Tensor;
  /** Names there that are for parts that the form does not have; `*` is a number, `**` anything. */
  readonly ignored?: readonly string[];
  /** Our paths that stay as the form has them where the source lacks them: parts that are new to it. `**` as above. */
  readonly mayLack?: readonly string[];
}

const onBackend: NonNullable<LoadOptions['upload']> = (data, shape) => tf.tensor(data, [...shape]);

/** How many names a message lists. */
const MAX_LISTED = 12;

/**
 * A tree of the form's shape with the source's values. Every tensor of the form must be there and every one there must
 * have a place in the form, but for those that are listed.
 *
 * @throws PretrainedError `PRETRAINED_NAMES` with the names that are missing or unexpected, `PRETRAINED_SHAPE`
 */
export async function loadTree<T extends TensorTree>(
  form: T,
  source: TensorSource,
  table: WeightTable,
  { upload = onBackend, ignored = [], mayLack = [] }: LoadOptions = {},
): Promise<T> {
  const isNew = matcher(mayLack);
  const leaves = leavesOf(form).map(([path, tensor]) => {
    const parts = partsIn(table, path, tensor.shape);
    const isKept =
      isNew(path) && parts.every(({ names }) => !names.some((name) => source.shapes.has(name)));
    return { path, tensor, parts: isKept ? [] : parts };
  });
  const wanted = new Set(leaves.flatMap(({ parts }) => parts.flatMap(({ names }) => names)));
  refuseOtherNames(source, wanted, table, ignored);
  await checkTied(source, table);
  const loaded: tf.Tensor[] = [];
  for (const { path, tensor, parts } of leaves) {
    if (parts.length === 0) {
      loaded.push(tensor);
      continue;
    }
    const values = new Float32Array(tensor.size);
    for (const [index, { names, shape, weight }] of parts.entries()) {
      const theirs: HostTensor[] = [];
      for (const name of names) theirs.push(await source.read(name));
      const ours = weight.toOurs(theirs, shape);
      if (ours === undefined || !sameShape(ours.shape, shape)) {
        const found = theirs.map((given, i) => `${names[i]} [${given.shape.join()}]`).join(', ');
        throw new PretrainedError(
          'PRETRAINED_SHAPE',
          `${source.place} has ${found}, which does not give ${path} [${shape.join()}]. Take the sizes from the config.json beside it`,
        );
      }
      values.set(ours.data, index * ours.data.length);
    }
    loaded.push(upload(values, tensor.shape));
  }
  return withLeaves(form, loaded);
}

/** The tree's tensors by the names and in the layout of the table: what {@link loadTree} reads again. */
export async function exportTree(
  tree: TensorTree,
  table: WeightTable,
): Promise<Map<string, HostTensor>> {
  const values = new Map<string, Float32Array>();
  for (const [path, tensor] of leavesOf(tree)) {
    const whole = (await tensor.data()) as Float32Array;
    const parts = partsOf(path, tensor.shape);
    const size = whole.length / parts.length;
    for (const [k, { name }] of parts.entries())
      values.set(name, whole.slice(k * size, (k + 1) * size));
  }
  return exportValues(tree, table, (name) => values.get(name)!);
}

/** As {@link exportTree}, of a tree that has no values itself: `valuesOf` gives them by our names, one a layer. */
export function exportValues(
  form: TensorTree,
  table: WeightTable,
  valuesOf: (name: string) => Float32Array,
): Map<string, HostTensor> {
  const tensors = new Map<string, HostTensor>();
  for (const [path, { shape: whole }] of leavesOf(form)) {
    for (const { name: ours, names, shape, weight } of partsIn(table, path, whole)) {
      const theirs = weight.toTheirs({ shape, data: valuesOf(ours) });
      for (const [i, name] of names.entries()) tensors.set(name, theirs[i]!);
    }
  }
  return tensors;
}

interface Part {
  /** Ours. */
  readonly name: string;
  readonly names: readonly string[];
  /** Of ours. */
  readonly shape: readonly number[];
  readonly weight: Weight;
}

/** A leaf's parts, one a layer where it is stacked. */
export function partsIn({ weights }: WeightTable, path: string, shape: readonly number[]): Part[] {
  const weight = weights[path];
  assert(weight !== undefined, `the table of weights has no entry for ${path}`);
  const layerOf = weight.layer ?? ((layer: number) => layer);
  return partsOf(path, shape).map(({ name: ours, shape: own }, layer) => ({
    name: ours,
    names: weight.names.map((name) => name.replace('*', String(layerOf(layer)))),
    shape: own,
    weight,
  }));
}

function refuseOtherNames(
  source: TensorSource,
  wanted: ReadonlySet<string>,
  table: WeightTable,
  alsoIgnored: readonly string[],
): void {
  const { ignored = [], tied = {} } = table;
  const isIgnored = matcher([...ignored, ...alsoIgnored]);
  const missing = [...wanted].filter((name) => !source.shapes.has(name));
  const unexpected = [...source.shapes.keys()].filter(
    (name) => !wanted.has(name) && !Object.hasOwn(tied, name) && !isIgnored(name),
  );
  if (missing.length === 0 && unexpected.length === 0) return;
  const parts = [
    ...(missing.length === 0 ? [] : [`lacks ${listed(missing)}`]),
    ...(unexpected.length === 0
      ? []
      : [`has ${listed(unexpected)}, which the model does not have`]),
  ];
  throw new PretrainedError(
    'PRETRAINED_NAMES',
    `${source.place} ${parts.join(' and ')}. It belongs to another architecture or config; nothing was loaded`,
  );
}

/** A name that stands for another must have its values: else the file is of a model whose parts are not tied. */
async function checkTied(source: TensorSource, { tied = {} }: WeightTable): Promise<void> {
  for (const [name, other] of Object.entries(tied)) {
    if (!source.shapes.has(name) || !source.shapes.has(other)) continue;
    const [a, b] = [await source.read(name), await source.read(other)];
    if (!sameShape(a.shape, b.shape) || !a.data.every((value, i) => value === b.data[i])) {
      throw new PretrainedError(
        'PRETRAINED_NAMES',
        `${source.place} has a ${name} other than its ${other}, where the model uses one for both. Load a model with tied weights`,
      );
    }
  }
}

function matcher(patterns: readonly string[]): (name: string) => boolean {
  const expressions = patterns.map((pattern) => {
    const escaped = pattern.replace(/[.+?^${}()|[\]\\]/g, '\\$&');
    return new RegExp(
      `^${escaped.replace(/\*\*?/g, (stars) => (stars === '**' ? '.+' : '\\d+'))}$`,
    );
  });
  return (name) => expressions.some((expression) => expression.test(name));
}

function listed(names: readonly string[]): string {
  const shown = names.slice(0, MAX_LISTED).join(', ');
  return names.length <= MAX_LISTED ? shown : `${shown} and ${names.length - MAX_LISTED} more`;
}
