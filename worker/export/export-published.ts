/** What of a run transformers has too, in folders that its classes load. */
import { join } from 'node:path';
import { writeFileDurably } from '../../proto/durable-file.ts';
import { safetensorsStream } from '../checkpoint/stream.ts';
import { frozenPaths } from '../frozen-parameters.ts';
import { formOf } from '../initial-weights.ts';
import { writeAdapterFolder } from '../pretrained/lora.ts';
import { writeModelFolder } from '../pretrained/model-folder.ts';
import type { PublishedPart } from '../pretrained/published-parts.ts';
import type { HostTensor } from '../pretrained/tensor-source.ts';
import { exportValues } from '../pretrained/weights.ts';
import { weightsOfRun, type Weights } from '../run-weights.ts';
import { openRunSystem } from '../run-system.ts';
import { leavesOf, partsOf, type TensorTree } from '../tree.ts';
import {
  publishedTokens,
  tokenFields,
  writeGenerationConfig,
  writeImageProcessor,
  writePublishedTokenizer,
} from './published-inputs.ts';

/** Below the folder of an export. */
const FOLDER = 'transformers';
const FROZEN_FILE = 'frozen.safetensors';

export interface ExportedPart {
  /** Within the export. */
  readonly folder: string;
  readonly className: string;
}

/** A part that transformers cannot have, and why. */
export interface LeftOutPart {
  /** Where it would be. */
  readonly folder: string;
  readonly why: string;
}

export interface ExportedParts {
  readonly published: readonly ExportedPart[];
  readonly leftOut: readonly LeftOutPart[];
  /** Files. */
  readonly frozen: readonly string[];
}

/**
 * Writes a folder for each part that transformers has, and the parameters that the run did not train, which its
 * checkpoints have not.
 * @throws what opening the run's system throws; the system's errors
 */
export async function exportPublished(
  folder: string,
  { out, step }: { readonly out: string; readonly step: number },
): Promise<ExportedParts> {
  const { system, config } = await openRunSystem(folder);
  const parts = system.published ?? [];
  const patterns = config.train.frozen;
  if (parts.length === 0 && patterns.length === 0)
    return { published: [], leftOut: [], frozen: [] };
  const form = formOf(system);
  const weights = await weightsOfRun(folder, config, step);
  const published: ExportedPart[] = [];
  const leftOut: LeftOutPart[] = [];
  for (const part of parts) {
    const own = [FOLDER, part.path].filter((name) => name !== '').join('/');
    if (part.unfit !== undefined) {
      leftOut.push({ folder: own, why: part.unfit });
      continue;
    }
    const tokens = part.hasWords ? await publishedTokens(folder) : undefined;
    const generates = tokens !== undefined && part.texts === undefined;
    const json = generates ? { ...part.json, ...tokenFields(tokens) } : part.json;
    await writePart(join(out, own), { part: { ...part, json }, form, weights });
    if (tokens !== undefined)
      await writePublishedTokenizer(folder, join(out, own), { part, tokens });
    if (generates) await writeGenerationConfig(join(out, own), tokens);
    if (part.pictures !== undefined)
      await writeImageProcessor(join(out, own), part.pictures, config.data.fit);
    const [className = 'AutoModel'] = (part.json['architectures'] ?? []) as string[];
    published.push({ folder: own, className: part.isAdapter === true ? 'PeftModel' : className });
  }
  if (patterns.length === 0) return { published, leftOut, frozen: [] };
  const leaves = leavesOf(form);
  const isFrozen = frozenPaths(
    patterns,
    leaves.map(([path]) => path),
  );
  const fixed = leaves
    .filter(([path]) => isFrozen.has(path))
    .flatMap(([path, { shape }]) => partsOf(path, shape).map(({ name }) => name));
  const own = new Map(fixed.map((name) => [name, weights.get(name)!]));
  await writeFileDurably(join(out, FROZEN_FILE), safetensorsStream(own, { format: 'pt' }));
  return { published, leftOut, frozen: [FROZEN_FILE] };
}

async function writePart(
  folder: string,
  {
    part,
    form,
    weights,
  }: { readonly part: PublishedPart; readonly form: TensorTree; readonly weights: Weights },
): Promise<void> {
  const { json, isAdapter = false } = part;
  const tensors = publishedTensors(
    part,
    form,
    (name) => new Float32Array(weights.get(name)!.data.slice().buffer),
  );
  if (isAdapter) await writeAdapterFolder(folder, { config: json, tensors });
  else await writeModelFolder(folder, { config: { ...json, torch_dtype: 'float32' }, tensors });
}

/**
 * A part's tensors as they are called and laid out there.
 * @param form of the system's parameters
 * @param valuesOf of them by name, one a layer
 */
export function publishedTensors(
  { path, table, further }: PublishedPart,
  form: TensorTree,
  valuesOf: (name: string) => Float32Array,
): Map<string, HostTensor> {
  const prefix = path === '' ? '' : `${path}/`;
  const leaves = leavesOf(form).flatMap(([name, tensor]) => {
    const own = name.slice(prefix.length);
    return name.startsWith(prefix) && Object.hasOwn(table.weights, own) ? [[own, tensor]] : [];
  });
  const flat = Object.fromEntries(leaves) as TensorTree;
  const own = exportValues(flat, table, (name) => valuesOf(`${prefix}${name}`));
  return further === undefined ? own : new Map([...own, ...further(valuesOf)]);
}
