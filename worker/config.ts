import { readFileSync } from 'node:fs';
import { isNode, LineCounter, parse, parseDocument, type Document } from 'yaml';
import * as z from 'zod';
import { UsageError } from '../proto/errors.ts';
import { parseNatsServers } from '../proto/nats-servers.ts';
import { timeConflict } from '../proto/time-limits.ts';
import { runFields, type RunConfig } from './config-fields.ts';
import { nearest } from './nearest.ts';
import { preferenceFault } from './systems/preference-part.ts';
import { systemNamed, systems } from './systems/registry.ts';
import type { ModelConfig } from './systems/system.ts';

const config = runFields.extend({
  model: z.discriminatedUnion(
    'name',
    systems.map(({ schema }) => schema) as [z.ZodObject<{ name: z.ZodLiteral<string> }>],
  ),
});

/** A run's whole configuration; see the field descriptions in `recipes/config.schema.json`. */
export type Config = RunConfig & {
  readonly model: ModelConfig & Readonly<Record<string, unknown>>;
};

/** The schema that editors use, as JSON Schema (draft 2020-12). */
export function configJsonSchema(): object {
  const { properties, ...rest } = optionalFields(z.toJSONSchema(config, { io: 'input' })) as {
    properties: Record<string, object>;
  };
  return {
    ...rest,
    properties: {
      ...properties,
      presets: {
        type: 'object',
        description: 'Named changes, chosen with --preset',
        additionalProperties: { type: 'object' },
      },
      evidence: z.toJSONSchema(evidence),
      stages: {
        type: 'object',
        description:
          'Changes by stage; stages are trained one after the other, each a run of its own',
        additionalProperties: { type: 'object' },
      },
    },
  };
}

/** What shows that a recipe's system works, beside the same recipe without the part that names it; see `npm run systems`. */
const evidence = z.strictObject({
  figure: z.string().describe('The held-out figure'),
  ablation: z.string().describe('The preset that leaves out what names the system'),
  without: z.string().describe('What that is, in words'),
  margin: z.number().describe('How far the figure is above that of the ablation, for every seed'),
  parity: z
    .array(z.string())
    .describe('Models of `npm run parity` that it is made of; empty where transformers has none'),
});

export type Evidence = z.infer<typeof evidence>;

/** @throws UsageError `CONFIG_INVALID` where a recipe's evidence is not as it has to be; undefined where it has none */
export function evidenceOf({
  text,
  file,
}: Pick<ConfigSource, 'text' | 'file'>): Evidence | undefined {
  const whole: unknown = parse(text);
  const given = isTree(whole) ? whole['evidence'] : undefined;
  if (given === undefined) return undefined;
  const result = evidence.safeParse(given);
  if (!result.success) throw invalid(`${file}: evidence: ${z.prettifyError(result.error)}`);
  return result.data;
}

/** A recipe need not have all fields: `recipes/defaults.yaml` has those that no system needs otherwise. */
function optionalFields(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(optionalFields);
  if (!isTree(schema)) return schema;
  return Object.fromEntries(
    Object.entries(schema)
      .filter(([key]) => key !== 'required')
      .map(([key, value]) => [key, optionalFields(value)]),
  );
}

export interface ConfigSource {
  /** YAML text of a recipe and the name to report it by. */
  readonly text: string;
  readonly file: string;
  readonly preset?: string | undefined;
  /** A stage of a recipe that has several; undefined: its first. */
  readonly stage?: string | undefined;
  /** Dotted overrides, `train.steps=100`; the value is YAML. Later ones win. */
  readonly overrides: readonly string[];
}

type Tree = { readonly [key: string]: unknown };

/** What a recipe does not say. */
const DEFAULTS = parse(
  readFileSync(new URL('recipes/defaults.yaml', import.meta.url), 'utf8'),
) as Tree;

/**
 * The checked config of a recipe with its preset and overrides applied.
 *
 * @throws UsageError `CONFIG_INVALID`: names file and line or the override, the field, what was expected and, for an
 *   unknown key, the nearest valid one. As {@link parseNatsServers} for `cluster.events`.
 */
export function resolveConfig({ text, file, preset, stage, overrides }: ConfigSource): Config {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines });
  const [syntax] = document.errors;
  if (syntax !== undefined) throw invalid(`${file}: ${syntax.message}`);
  const whole: unknown = document.toJS();
  if (!isTree(whole))
    throw invalid(`${file}: expected a mapping of fields, as in recipes/videobert.yaml`);
  const { presets = {} } = whole as Partial<Record<'presets', Tree>>;
  const base = without(whole, ['presets', 'stages', 'evidence']);

  let merged: Tree = merge(DEFAULTS, base);
  if (preset !== undefined) {
    const chosen = presets[preset];
    if (!isTree(chosen)) {
      throw invalid(
        `${file} has no preset ${preset}; it has: ${Object.keys(presets).join(', ') || 'none'}`,
      );
    }
    merged = merge(merged, without(chosen, ['stages']));
    const known = stagesIn(whole, undefined);
    const changed = isTree(chosen['stages']) ? Object.keys(chosen['stages']) : [];
    const strange = changed.find((name) => !known.includes(name));
    if (strange !== undefined) {
      throw invalid(
        `${file}: preset ${preset} changes stage ${strange}, which it has not; it has: ${known.join(', ') || 'none'}`,
      );
    }
  }
  const stages = stagesIn(whole, preset);
  const chosenStage = stage ?? stages[0];
  if (chosenStage !== undefined) {
    if (!stages.includes(chosenStage)) {
      const those = preset === undefined ? file : `preset ${preset} of ${file}`;
      throw invalid(`${those} has no stage ${chosenStage}; it has: ${stages.join(', ') || 'none'}`);
    }
    merged = merge(merged, valueAt(whole, ['stages', chosenStage]) as Tree);
    const ofBoth =
      preset === undefined ? undefined : valueAt(presets, [preset, 'stages', chosenStage]);
    if (isTree(ofBoth)) merged = merge(merged, ofBoth);
  }
  for (const override of overrides) merged = merge(merged, parseOverride(override));

  const result = config.safeParse(merged);
  if (result.success) {
    checkAcross(result.data, file);
    return result.data;
  }
  const { issues } = result.error;
  // A misspelt field is both missing and unknown: the unknown one says more.
  const issue = issues.find(({ code }) => code === 'unrecognized_keys') ?? issues[0]!;
  const path = issue.path.map(String);
  const unknown = issue.code === 'unrecognized_keys' ? issue.keys.slice(0, 1) : [];
  const where = whereIs(document, lines, {
    file,
    preset,
    stage: chosenStage,
    path: [...path, ...unknown],
    overrides,
  });
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys[0]!;
    const valid = Object.keys(shapeAt(path, merged) ?? {});
    const near = nearest(key, valid);
    throw invalid(
      `${where}: unknown field ${[...path, key].join('.')}` +
        (near === undefined
          ? `; known here: ${valid.join(', ')}`
          : `; did you mean ${[...path, near].join('.')}?`),
    );
  }
  const got = valueAt(merged, path);
  throw invalid(
    `${where}: ${path.join('.')} is ${got === undefined ? 'missing' : JSON.stringify(got)}: ${issue.message}`,
  );
}

function checkAcross(config: Config, file: string): void {
  const { model, data, train, cluster } = config;
  checkDevices(config);
  checkAllReduce(config);
  const late = timeConflict({
    detectWithinMs: 1000 * cluster.detectWithin,
    decodeTimeoutMs: 1000 * data.decodeTimeoutSeconds,
  });
  if (late !== undefined) throw invalid(`${file}: cluster and data do not go together: ${late}`);
  if (cluster.events !== null) parseNatsServers(cluster.events, 'cluster.events');
  const wrong = systemNamed(model.name).check?.(config) ?? preferenceFault(config);
  if (wrong !== undefined) throw invalid(`${file}: ${wrong}`);
  if (cluster.workers > train.microbatches) {
    throw invalid(
      `cluster.workers is ${cluster.workers}, but a step has only ${train.microbatches} microbatches to share: ` +
        `raise train.microbatches (it changes the result) or start fewer workers`,
    );
  }
}

function checkAllReduce({ engine, cluster }: Config): void {
  const plugin = engine.name === 'xla' ? (engine.pluginPath ?? 'cpu') : engine.name;
  if (cluster.allReduce !== 'nccl' || (engine.name === 'xla' && plugin !== 'cpu')) return;
  throw invalid(
    `cluster.allReduce is nccl, which sums on GPUs, and the engine is ${plugin}: ` +
      'set engine.pluginPath to cuda13, cuda12 or rocm7, or cluster.allReduce to tree',
  );
}

function checkDevices({ engine, parallel: { mesh }, train }: Config): void {
  const { devices } = engine;
  if (engine.name !== 'xla' && devices !== 1) {
    throw invalid(
      `engine.devices is ${devices}, but only the xla engine drives several: set it to 1`,
    );
  }
  if (engine.name !== 'xla' && engine.precision !== 'float32') {
    throw invalid(
      `engine.precision is ${engine.precision}, which only the xla engine computes in: set it to float32`,
    );
  }
  // Else the engine checks it, once it has counted them.
  if (devices === 'all') return;
  const fixed = mesh.fsdp * mesh.tensor;
  const data = mesh.data ?? devices / fixed;
  if (data * fixed !== devices || !Number.isInteger(data)) {
    throw invalid(
      `parallel.mesh (data ${mesh.data ?? 'null'}, fsdp ${mesh.fsdp}, tensor ${mesh.tensor}) does not come to ` +
        `engine.devices (${devices}): make their product equal, or data null`,
    );
  }
  if (train.microbatchSize % (data * mesh.fsdp) !== 0) {
    throw invalid(
      `train.microbatchSize (${train.microbatchSize}) is not a multiple of the ${data * mesh.fsdp} parts that ` +
        `parallel.mesh cuts it into (data ${data} x fsdp ${mesh.fsdp})`,
    );
  }
  // Of the CPU plugin: others compute elsewhere.
  const isCpu = engine.pluginPath === null || engine.pluginPath === 'cpu';
  if (isCpu && devices > 1 && engine.threads < 2 * devices) {
    throw invalid(
      `engine.threads (${engine.threads}) is too few for engine.devices (${devices}): devices that wait for one ` +
        `another hold threads; set it to ${2 * devices} or more`,
    );
  }
}

/**
 * The stages of a recipe in their order, without those that the preset leaves out (`stages: { NAME: null }`); none where
 * it has one config alone.
 */
export function stagesOf(text: string, preset?: string): string[] {
  const whole: unknown = parseDocument(text).toJS();
  return isTree(whole) ? stagesIn(whole, preset) : [];
}

function stagesIn({ stages, presets }: Tree, preset: string | undefined): string[] {
  const names = isTree(stages) ? Object.keys(stages).filter((name) => isTree(stages[name])) : [];
  return preset === undefined
    ? names
    : names.filter((name) => valueAt(presets, [preset, 'stages', name]) !== null);
}

/** `a.b=1` to `{ a: { b: 1 } }`. */
function parseOverride(override: string): Tree {
  const at = override.indexOf('=');
  if (at <= 0) {
    throw invalid(`${override}: expected an override such as train.steps=100`);
  }
  const document = parseDocument(override.slice(at + 1));
  const [syntax] = document.errors;
  if (syntax !== undefined) throw invalid(`${override}: ${syntax.message}`);
  return override
    .slice(0, at)
    .split('.')
    .reduceRight<unknown>(
      (value, key) => Object.fromEntries([[key, value]]),
      document.toJS(),
    ) as Tree;
}

function without(tree: Tree, keys: readonly string[]): Tree {
  return Object.fromEntries(Object.entries(tree).filter(([key]) => !keys.includes(key)));
}

function isTree(value: unknown): value is Tree {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** `Object.fromEntries` makes own fields of all keys, `__proto__` too: nothing reaches a prototype. */
function merge(base: Tree, change: Tree): Tree {
  const merged = new Map(Object.entries(base));
  for (const [key, value] of Object.entries(change)) {
    const old = merged.get(key);
    merged.set(key, isTree(old) && isTree(value) ? merge(old, value) : value);
  }
  return Object.fromEntries(merged);
}

function valueAt(tree: unknown, path: readonly string[]): unknown {
  return path.reduce<unknown>((at, key) => {
    if (Array.isArray(at)) return at[Number(key)] as unknown;
    return isTree(at) ? at[key] : undefined;
  }, tree);
}

/** The known fields at a path. */
function shapeAt(path: readonly string[], given: Tree): Tree | undefined {
  let [schema, value]: [unknown, unknown] = [config, given];
  for (const key of path) {
    schema = schema instanceof z.ZodObject ? schema.shape[key] : undefined;
    while (schema instanceof z.ZodOptional || schema instanceof z.ZodNullable)
      schema = schema.unwrap();
    value = isTree(value) ? value[key] : undefined;
    if (schema instanceof z.ZodDiscriminatedUnion) schema = chosenOption(schema, value);
  }
  return schema instanceof z.ZodObject ? schema.shape : undefined;
}

/** The form that the value's own discriminator chooses. */
function chosenOption({ options, def }: z.ZodDiscriminatedUnion, value: unknown): unknown {
  const { discriminator } = def;
  const choice = isTree(value) ? value[discriminator] : undefined;
  return options.find((option) => {
    const literal =
      option instanceof z.ZodObject ? (option.shape[discriminator] as unknown) : undefined;
    return literal instanceof z.ZodLiteral && literal.values.has(choice as string);
  });
}

/** The override or the line that gave a field its value. */
function whereIs(
  document: Document,
  lines: LineCounter,
  {
    file,
    preset,
    stage,
    path,
    overrides,
  }: {
    file: string;
    preset?: string | undefined;
    stage?: string | undefined;
    path: readonly string[];
    overrides: readonly string[];
  },
): string {
  const dotted = path.join('.');
  const override = overrides.findLast(
    (text) => text.startsWith(dotted) || dotted.startsWith(`${text.slice(0, text.indexOf('='))}.`),
  );
  if (override !== undefined) return override;
  const ofStage = stage === undefined ? [] : ['stages', stage];
  const ofPreset = preset === undefined ? [] : ['presets', preset];
  for (const prefix of [[...ofPreset, ...ofStage], ofPreset, ofStage, []]) {
    for (let length = path.length; length > 0; length--) {
      const node = document.getIn([...prefix, ...path.slice(0, length)], true);
      if (isNode(node) && node.range) {
        const { line, col } = lines.linePos(node.range[0]);
        return `${file}:${line}:${col}`;
      }
    }
  }
  return file;
}

function invalid(message: string): UsageError {
  return new UsageError('CONFIG_INVALID', message);
}
