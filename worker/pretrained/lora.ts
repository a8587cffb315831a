/** Adapters as peft names and configures them. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import { messageOf } from '../../proto/errors.ts';
import { encodeSafetensors } from '../checkpoint/format.ts';
import { shapesOnly } from '../initializer.ts';
import { initLora, type LoraConfig, type LoraParams } from '../tuning/lora.ts';
import type { TensorTree } from '../tree.ts';
import { openWeights } from './model-folder.ts';
import { PretrainedError } from './pretrained-error.ts';
import type { HostTensor } from './tensor-source.ts';
import { transposed, type Weight, type WeightTable } from './weight-table.ts';
import { exportTree, loadTree, type LoadOptions } from './weights.ts';

const WEIGHTS_FILE = 'adapter_model.safetensors';
const CONFIG_FILE = 'adapter_config.json';
/** What peft puts before the names of the model that it wraps. */
export const WRAPPED = 'base_model.model.';

/** What peft has for modules one by one; ours have all the same. */
const noPattern = z
  .record(z.string(), z.unknown())
  .refine((pattern) => Object.keys(pattern).length === 0, {
    error: ({ input }) =>
      `it sets ${Object.keys(input as object).join(', ')} apart; give all modules one r and lora_alpha, or merge the adapter into its model (merge_and_unload) and begin from that`,
  })
  .nullish();

const configSchema = z.object({
  peft_type: z.literal('LORA'),
  r: z.int().positive(),
  lora_alpha: z.number().positive(),
  target_modules: z.array(z.string()).min(1),
  bias: z.literal('none').default('none'),
  use_dora: z.literal(false).default(false),
  use_rslora: z.literal(false).default(false),
  fan_in_fan_out: z.literal(false).default(false),
  rank_pattern: noPattern,
  alpha_pattern: noPattern,
});

/** An adapter with what tells how strong it is. */
export interface Adapter {
  readonly lora: LoraParams;
  readonly config: LoraConfig;
}

/**
 * Reads a folder of peft's `save_pretrained`.
 *
 * @param params the model that is adapted, or its form
 * @param table its names, without peft's prefix
 * @throws PretrainedError `PRETRAINED_UNREADABLE`, `PRETRAINED_CONFIG`, `PRETRAINED_NAMES`, `PRETRAINED_SHAPE`
 */
export async function readAdapter(
  folder: string,
  params: TensorTree,
  table: WeightTable,
  options: LoadOptions = {},
): Promise<Adapter> {
  const { r, lora_alpha: alpha, target_modules: modules } = await readConfig(folder);
  const targets = modules.flatMap((module) => pathsOf(table, module));
  const config = { rank: r, alpha, targets };
  const form = initLora(shapesOnly(), params, config);
  const source = await openWeights(folder, WEIGHTS_FILE);
  return { lora: await loadTree(form, source, loraWeights(form, table), options), config };
}

/** Writes a folder that peft's `PeftModel.from_pretrained` reads. */
export async function writeAdapter(
  folder: string,
  { lora, config }: Adapter,
  table: WeightTable,
): Promise<void> {
  const tensors = await exportTree(lora, loraWeights(lora, table));
  await writeAdapterFolder(folder, { config: adapterJson(lora, config, table), tensors });
}

/** An `adapter_config.json`. @param lora the factors, or their form */
export function adapterJson(
  lora: LoraParams,
  { rank, alpha }: LoraConfig,
  table: WeightTable,
): Record<string, unknown> {
  return {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    r: rank,
    lora_alpha: alpha,
    lora_dropout: 0,
    target_modules: modulesOf(lora, table),
    bias: 'none',
    inference_mode: true,
  };
}

export async function writeAdapterFolder(
  folder: string,
  {
    config: json,
    tensors,
  }: {
    readonly config: Readonly<Record<string, unknown>>;
    readonly tensors: ReadonlyMap<string, HostTensor>;
  },
): Promise<void> {
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, CONFIG_FILE), `${JSON.stringify(json, undefined, 2)}\n`);
  const data = new Map(
    [...tensors].map(([name, { shape, data: values }]) => [
      name,
      {
        dtype: 'F32' as const,
        shape,
        data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
      },
    ]),
  );
  await writeFile(join(folder, WEIGHTS_FILE), encodeSafetensors(data, { format: 'pt' }));
}

/** peft's names of an adapter's factors. */
export function loraWeights(lora: LoraParams, table: WeightTable): WeightTable {
  const entries = Object.keys(lora).flatMap((path): [string, Weight][] => {
    const module = moduleOf(table, path);
    return [
      [`${path}/a`, transposed(`${WRAPPED}${module}.lora_A.weight`)],
      [`${path}/b`, transposed(`${WRAPPED}${module}.lora_B.weight`)],
    ];
  });
  return { weights: Object.fromEntries(entries) };
}

/** `target_modules` of what adapts these layers. */
export function modulesOf(layers: Readonly<Record<string, unknown>>, table: WeightTable): string[] {
  const modules = Object.keys(layers).map((path) => moduleOf(table, path).split('.').at(-1)!);
  return [...new Set(modules)].sort();
}

/** What a dense layer of ours is called there. */
export function moduleOf({ weights }: WeightTable, path: string): string {
  const names = weights[`${path}/kernel`]?.names ?? [];
  if (names.length !== 1) {
    throw new PretrainedError(
      'PRETRAINED_CONFIG',
      `${path} is ${names.length === 0 ? 'not a layer' : `made of ${names.join(', ')}`} in the other model, so an ` +
        'adapter for it has no name there. Adapt layers that stand alone in both',
    );
  }
  return names[0]!.replace(/\.weight$/, '');
}

/** The paths of our dense layers that a module name of peft's stands for. */
function pathsOf({ weights }: WeightTable, module: string): string[] {
  const ending = `.${module}.weight`;
  const paths = Object.entries(weights)
    .filter(([path, { names }]) => path.endsWith('/kernel') && `.${names[0]!}`.endsWith(ending))
    .map(([path]) => path.slice(0, -'/kernel'.length));
  if (paths.length > 0) return paths;
  throw new PretrainedError(
    'PRETRAINED_CONFIG',
    `${CONFIG_FILE} adapts ${module}, which the model does not have. Load the adapter beside the model it was trained with`,
  );
}

async function readConfig(folder: string): Promise<z.infer<typeof configSchema>> {
  const file = join(folder, CONFIG_FILE);
  let json: unknown;
  try {
    json = JSON.parse(await readFile(file, 'utf8'));
  } catch (error) {
    throw new PretrainedError(
      'PRETRAINED_UNREADABLE',
      `${file} cannot be read: ${messageOf(error)}. Give a folder as peft's save_pretrained writes it`,
      error,
    );
  }
  const parsed = configSchema.safeParse(json);
  if (parsed.success) return parsed.data;
  throw new PretrainedError(
    'PRETRAINED_CONFIG',
    `${file} is not of an adapter that can be loaded here: ${z.prettifyError(parsed.error)}`,
  );
}
