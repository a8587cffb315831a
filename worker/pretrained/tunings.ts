/** What a language model was adapted by, as peft names and configures it; LoRA is in lora.ts. */
import type { DoraParams } from '../tuning/dora.ts';
import type { LoraConfig, LoraParams } from '../tuning/lora.ts';
import type { PrefixParams } from '../tuning/prefix.ts';
import type { PromptConfig } from '../tuning/prompt.ts';
import { sharedMatrices, type VeraConfig, type VeraParams } from '../tuning/vera.ts';
import { partsOf, type TensorTree } from '../tree.ts';
import { adapterJson, loraWeights, moduleOf, modulesOf, WRAPPED } from './lora.ts';
import type { PublishedPart } from './published-parts.ts';
import type { HostTensor } from './tensor-source.ts';
import { same, transpose, type Weight, type WeightTable } from './weight-table.ts';

/** What is adapted, and where it all lies in a system. */
export interface Adapted {
  /** Of what is trained, among the system's parameters. */
  readonly path: string;
  /** Of the language model there. */
  readonly languagePath: string;
  /** Its names in transformers. */
  readonly table: WeightTable;
  readonly form: TensorTree;
}

const CAUSAL = { task_type: 'CAUSAL_LM', inference_mode: true };

export function publishedLora(
  { path, table }: Adapted,
  form: LoraParams,
  config: LoraConfig,
): PublishedPart {
  const json = adapterJson(form, config, table);
  return adapter({ path, table: loraWeights(form, table), json });
}

export function publishedDora(
  { path, languagePath, table }: Adapted,
  form: DoraParams,
  config: LoraConfig,
): PublishedPart {
  return adapter({
    ...{ path, table: loraWeights(form, table) },
    json: { ...adapterJson(form, config, table), use_dora: true },
    further: (valuesOf) =>
      new Map(
        Object.entries(form).flatMap(([layer, { a, magnitude }]) => {
          const kernel = below(languagePath, `${layer}/kernel`);
          const kernels = partsOf(kernel, [...a.shape.slice(0, -1), magnitude.shape.at(-1)!]);
          return partsOf(`${path}/${layer}/magnitude`, magnitude.shape).map(
            ({ name, shape }, at): [string, HostTensor] => {
              const [norms, added] = [
                columnNorms(valuesOf(kernels[at]!.name), shape),
                valuesOf(name),
              ];
              const module = moduleOf(table, layer).replace('*', String(at));
              const data = norms.map((norm, column) => norm + added[column]!);
              return [`${WRAPPED}${module}.lora_magnitude_vector`, { shape, data }];
            },
          );
        }),
      ),
  });
}

/** Lengths of the columns of a kernel [in, out]. */
function columnNorms(kernel: Float32Array, [numOut]: readonly number[]): Float32Array {
  const squares = new Float64Array(numOut!);
  for (const [at, value] of kernel.entries()) squares[at % numOut!]! += value * value;
  return Float32Array.from(squares, Math.sqrt);
}

export function publishedVera(
  { path, table, form: model }: Adapted,
  form: VeraParams,
  config: VeraConfig,
): PublishedPart {
  const weights = Object.keys(form).flatMap((layer): [string, Weight][] =>
    (['d', 'b'] as const).map((vector) => [
      `${layer}/${vector}`,
      same(`${WRAPPED}${moduleOf(table, layer)}.vera_lambda_${vector}`),
    ]),
  );
  return adapter({
    ...{ path, table: { weights: Object.fromEntries(weights) } },
    json: {
      ...{ peft_type: 'VERA', ...CAUSAL, r: config.rank, target_modules: modulesOf(form, table) },
      ...{ projection_prng_key: config.key, save_projection: true, vera_dropout: 0, bias: 'none' },
    },
    further() {
      const { a, b } = sharedMatrices(model, config);
      return new Map([
        ['base_model.vera_A', transpose(a)],
        ['base_model.vera_B', transpose(b)],
      ]);
    },
  });
}

/** Sizes of a language model that peft wants told. */
export interface ModelSizes {
  readonly layers: number;
  readonly heads: number;
  readonly width: number;
}

export function publishedPrompt(
  { path }: Adapted,
  { tokens }: PromptConfig,
  sizes: ModelSizes,
): PublishedPart {
  return adapter({
    ...{ path, table: { weights: { prompt: same('prompt_embeddings') } } },
    json: {
      ...{ peft_type: 'PROMPT_TUNING', prompt_tuning_init: 'RANDOM' },
      ...promptJson(tokens, sizes),
    },
  });
}

/** @param sizes heads and width of keys and values */
export function publishedPrefix(
  { path }: Adapted,
  { blocks }: PrefixParams,
  sizes: ModelSizes,
): PublishedPart {
  const { key } = blocks['*'];
  const [layers, heads, tokens, width] = key.shape as [number, number, number, number];
  return adapter({
    ...{ path, table: { weights: {} } },
    json: {
      ...{ peft_type: 'PREFIX_TUNING', prefix_projection: false },
      ...{ encoder_hidden_size: sizes.width, ...promptJson(tokens, sizes) },
    },
    further(valuesOf) {
      // [P, layers, 2, K, W] from [K, P, W] of each.
      const data = new Float32Array(2 * key.size);
      for (let layer = 0; layer < layers; layer++) {
        for (const [side, name] of ['key', 'value'].entries()) {
          const values = valuesOf(`${path}/blocks/${layer}/${name}`);
          for (let head = 0; head < heads; head++) {
            for (let token = 0; token < tokens; token++) {
              const from = (head * tokens + token) * width;
              const to = (((token * layers + layer) * 2 + side) * heads + head) * width;
              data.set(values.subarray(from, from + width), to);
            }
          }
        }
      }
      const shape = [tokens, layers * 2 * heads * width];
      return new Map([['prompt_embeddings', { shape, data }]]);
    },
  });
}

export function unpublishedAdapters({ path }: Adapted): PublishedPart {
  return {
    ...adapter({ path, table: { weights: {} }, json: {} }),
    unfit: 'peft has no adapters of this form; the run itself answers with them',
  };
}

function promptJson(tokens: number, { layers, heads, width }: ModelSizes): Record<string, unknown> {
  return {
    ...{ ...CAUSAL, num_virtual_tokens: tokens, token_dim: width, num_layers: layers },
    ...{ num_attention_heads: heads, num_transformer_submodules: 1 },
  };
}

function adapter(part: Omit<PublishedPart, 'hasWords' | 'isAdapter'>): PublishedPart {
  return { ...part, hasWords: false, isAdapter: true };
}

function below(path: string, name: string): string {
  return path === '' ? name : `${path}/${name}`;
}
