/** The weights of a folder of somebody else's model by our names, to begin with. */
import { join } from 'node:path';
import { exists } from '../../proto/exists.ts';
import type { PartKinds } from '../part-kind.ts';
import { leavesOf } from '../tree.ts';
import { knownModelOf } from './known-models.ts';
import { openModelFolder } from './model-folder.ts';
import { PretrainedError } from './pretrained-error.ts';
import type { HostTensor, TensorSource } from './tensor-source.ts';
import { sameShape } from './weight-table.ts';
import { partsIn } from './weights.ts';

export interface PretrainedTensor {
  readonly shape: readonly number[];
  /** What it is made of there. */
  readonly names: readonly string[];
  /** Whether the files have all of them. */
  readonly isThere: boolean;
  /** @throws PretrainedError `PRETRAINED_SHAPE`, `PRETRAINED_UNREADABLE` */
  readonly read: () => Promise<HostTensor>;
}

export interface PretrainedWeights {
  /** By our names, one a layer, read one by one. */
  readonly tensors: ReadonlyMap<string, PretrainedTensor>;
  readonly kinds: PartKinds;
  /** Our name of the table of words, and its rows; undefined where there is none. */
  readonly words: { readonly name: string; readonly rows: number } | undefined;
}

/** Whether a folder is one of `save_pretrained`, as far as its names tell. */
export function isModelFolder(folder: string): Promise<boolean> {
  return exists(join(folder, 'config.json'));
}

/**
 * @throws PretrainedError `PRETRAINED_CONFIG` for an architecture that is not known here, `PRETRAINED_UNREADABLE`;
 *   SafetensorsInvalid
 */
export async function openPretrainedWeights(folder: string): Promise<PretrainedWeights> {
  const { config, weights } = await openModelFolder(folder);
  const model = knownModelOf(config, { place: folder, shapes: weights.shapes });
  const { form, table, prefix } = model;
  const named = renamed(weights, presentName);
  const source = prefix === undefined ? named : withPrefix(named, prefix, table.weights);
  const tensors = new Map<string, PretrainedTensor>();
  for (const [path, { shape: whole }] of leavesOf(form)) {
    for (const { name, names, shape, weight } of partsIn(table, path, whole)) {
      const isThere = names.every((theirs) => source.shapes.has(theirs));
      const read = async (): Promise<HostTensor> => {
        const theirs: HostTensor[] = [];
        for (const own of names) theirs.push(await source.read(own));
        const ours = weight.toOurs(theirs, shape);
        if (ours !== undefined && sameShape(ours.shape, shape)) return ours;
        const found = theirs.map((given, i) => `${names[i]!} [${given.shape.join()}]`).join(', ');
        throw new PretrainedError(
          'PRETRAINED_SHAPE',
          `${folder} has ${found}, and its config.json says that ${name} is [${shape.join()}]. Take both from one model`,
        );
      };
      tensors.set(name, { shape, names, isThere, read });
    }
  }
  const rows = model.words === undefined ? undefined : tensors.get(model.words)?.shape[0];
  const words = rows === undefined ? undefined : { name: model.words!, rows };
  return { tensors, kinds: model.kinds, words };
}

/**
 * The same tensors under the names of the table: files of a model with its heads have a prefix that those of the model
 * alone have not. Source: transformers, `base_model_prefix`.
 */
function withPrefix(
  source: TensorSource,
  prefix: string,
  weights: Readonly<Record<string, { readonly names: readonly string[] }>>,
): TensorSource {
  const names = [...source.shapes.keys()];
  const isIn = (all: readonly string[]): boolean => all.some((name) => name.startsWith(prefix));
  const isWanted = isIn(Object.values(weights).flatMap((weight) => weight.names));
  if (isIn(names) === isWanted) return source;
  return renamed(source, (name) =>
    isWanted ? `${prefix}${name}` : name.startsWith(prefix) ? name.slice(prefix.length) : name,
  );
}

/** Files of the first releases have names of TensorFlow for norms. Source: transformers, as it loads them. */
function presentName(name: string): string {
  return name
    .replace(/LayerNorm\.gamma$/, 'LayerNorm.weight')
    .replace(/LayerNorm\.beta$/, 'LayerNorm.bias');
}

function renamed(source: TensorSource, nameOf: (name: string) => string): TensorSource {
  const theirs = new Map([...source.shapes.keys()].map((name) => [nameOf(name), name]));
  return {
    place: source.place,
    shapes: new Map([...theirs].map(([name, own]) => [name, source.shapes.get(own)!])),
    read: (name) => source.read(theirs.get(name)!),
  };
}
