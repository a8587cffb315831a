import { createHash } from 'node:crypto';
import { copyFile, open, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parse } from 'yaml';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  checkpointStepOf,
  verifyCheckpoint,
} from '../../proto/checkpoint-manifest.ts';
import { writeFileDurably } from '../../proto/durable-file.ts';
import { UsageError, VideoloomError } from '../../proto/errors.ts';
import { makeOutputFolder, outputError } from '../../proto/output-path.ts';
import { readRunPlan, type RunPlan } from '../../proto/run-plan.ts';
import { encodeHeader } from '../checkpoint/format.ts';
import { digestLine } from '../checkpoint/hash.ts';
import { storedParameters, type StoredParameter } from '../checkpoint/stored-parameters.ts';
import { INDEX_FILE, removeOtherWeights, weightFileName } from '../pretrained/weight-files.ts';
import { exportPublished } from './export-published.ts';
import { modelCard } from './model-card.ts';

export interface ExportOptions {
  /** Run folder. */
  readonly folder: string;
  /** Made where it does not exist; files of the same names in it are replaced, and weights of an older export go. */
  readonly out: string;
  /** Undefined: the newest whole checkpoint. */
  readonly step: number | undefined;
}

/** What was written. */
export interface Exported {
  readonly step: number;
  readonly files: readonly string[];
  /** As the run's result has it. */
  readonly weightsSha256: string;
}

/** Files of a run folder that a model needs beside its weights, where there are any. */
const ASSETS = /^(tokenizer.*\.json|.*vocabulary.*\.(json|safetensors)|frozen.*\.safetensors)$/;
/** Larger weights go into several files with an index. Source: transformers, save_pretrained's max_shard_size. */
const MAX_SHARD_BYTES = 5e9;

/**
 * Writes the parameters of a run as Hugging Face's tools lay a model out: `model.safetensors` (or shards and an index),
 * `config.json`, `tokenizer.json` and what else the model was fitted with, and a `README.md` that says what is what. In
 * folders of its own there is what transformers has too, under its names. The checkpoint is read whole before, and compared with its manifest.
 * @throws UsageError RUN_PLAN_MISSING, CHECKPOINT_NOT_FOUND, OUT_NOT_WRITABLE; VideoloomError CHECKPOINT_INVALID; the system's errors
 */
export async function exportRun(options: ExportOptions): Promise<Exported> {
  try {
    return await writeExport(options);
  } catch (error) {
    throw outputError(error, options.out);
  }
}

async function writeExport({ folder, out, step: wanted }: ExportOptions): Promise<Exported> {
  const plan = await readRunPlan(folder);
  const step = await wholeStep(folder, plan, wanted);
  await makeOutputFolder(out);
  const config = parse(await readFile(join(folder, 'config.resolved.yaml'), 'utf8')) as {
    readonly model: Readonly<Record<string, unknown>> & { readonly name: string };
    readonly data: Readonly<Record<string, unknown>>;
  };
  const parameters = await storedParameters(
    join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(step)),
  );
  const { files, weightsSha256 } = await writeWeights(parameters, out);
  for (const name of (await readdir(folder)).filter((file) => ASSETS.test(file)).sort()) {
    await copyFile(join(folder, name), join(out, name));
    files.push(name);
  }
  const { published, leftOut, frozen } = await exportPublished(folder, { out, step });
  files.push(...frozen);
  const { name, ...model } = config.model;
  const { frameSize, windows, framesPerWindow, fit, audio = null } = config.data;
  const numParameters = parameters.reduce((sum, { sizeBytes }) => sum + sizeBytes / 4, 0);
  const about = {
    model_type: `videoloom-${name}`,
    architectures: [name],
    torch_dtype: 'float32',
    model,
    input: { frameSize, windows, framesPerWindow, fit, audio },
    videoloom: {
      ...{ runId: plan.runId, step, seed: plan.seed, weightsSha256, numParameters },
      ...{ configDigest: plan.configDigest, datasetDigest: plan.datasetDigest },
    },
  };
  await writeFileDurably(join(out, 'config.json'), `${JSON.stringify(about, undefined, 2)}\n`);
  const card = modelCard({ name, plan, step, files, published, leftOut });
  await writeFileDurably(join(out, 'README.md'), card);
  const folders = published.map((part) => `${part.folder}/`);
  return { step, files: [...files, 'config.json', 'README.md', ...folders], weightsSha256 };
}

async function wholeStep(
  folder: string,
  { runId }: RunPlan,
  wanted: number | undefined,
): Promise<number> {
  const checkpoints = join(folder, CHECKPOINTS_FOLDER);
  const verify = (step: number) =>
    verifyCheckpoint(join(checkpoints, checkpointFolderName(step)), runId);
  const names = await readdir(checkpoints).catch((): string[] => []);
  const steps = names.map(checkpointStepOf).filter((step) => step !== undefined);
  steps.sort((a, b) => b - a);
  if (wanted !== undefined) {
    if (!steps.includes(wanted)) {
      throw new UsageError(
        'CHECKPOINT_NOT_FOUND',
        `${folder} has no checkpoint of step ${wanted}, but of ${steps.length === 0 ? 'none' : steps.join(', ')}`,
      );
    }
    return (await verify(wanted)).step;
  }
  for (const step of steps) {
    try {
      return (await verify(step)).step;
    } catch (error) {
      if (!(error instanceof VideoloomError)) throw error;
      process.stderr.write(`${error.message}\n`);
    }
  }
  throw new UsageError('CHECKPOINT_NOT_FOUND', `${folder} has no whole checkpoint yet`);
}

async function writeWeights(
  parameters: readonly StoredParameter[],
  out: string,
): Promise<{ files: string[]; weightsSha256: string }> {
  const shards = inShards(parameters);
  const nameOf = (shard: number): string => weightFileName(shard, shards.length);
  const hash = createHash('sha256');
  const files: string[] = [];
  for (const [index, shard] of shards.entries()) {
    await writeShard(shard, join(out, nameOf(index)), (parameter, chunk) => {
      hash.update(chunk ?? digestLine(parameter.entry.name, parameter.entry));
    });
    files.push(nameOf(index));
  }
  await removeOtherWeights(out, files);
  if (shards.length > 1) {
    const total = parameters.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    const places = shards.flatMap((shard, index) =>
      shard.map(({ entry }): [string, string] => [entry.name, nameOf(index)]),
    );
    const index = { metadata: { total_size: total }, weight_map: Object.fromEntries(places) };
    await writeFileDurably(join(out, INDEX_FILE), `${JSON.stringify(index, undefined, 2)}\n`);
    files.push(INDEX_FILE);
  }
  return { files, weightsSha256: hash.digest('hex') };
}

/** @param onBytes told of each parameter before its bytes, and of them */
async function writeShard(
  shard: readonly StoredParameter[],
  path: string,
  onBytes: (parameter: StoredParameter, chunk: Uint8Array | undefined) => void,
): Promise<void> {
  const forms = shard.map(({ entry: { name, dtype, shape }, sizeBytes }) => {
    return [name, { dtype, shape, data: { byteLength: sizeBytes } }] as const;
  });
  const { header } = encodeHeader(new Map(forms), { format: 'pt' });
  const handle = await open(path, 'w', 0o644);
  try {
    await handle.writeFile(header);
    for (const parameter of shard) {
      onBytes(parameter, undefined);
      for await (const chunk of parameter.read()) {
        onBytes(parameter, chunk);
        await handle.writeFile(chunk);
      }
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** In the order of the names, as they are. */
function inShards(parameters: readonly StoredParameter[]): StoredParameter[][] {
  const shards: StoredParameter[][] = [[]];
  let shardBytes = 0;
  for (const parameter of parameters) {
    if (shardBytes > 0 && shardBytes + parameter.sizeBytes > MAX_SHARD_BYTES) {
      shards.push([]);
      shardBytes = 0;
    }
    shards.at(-1)!.push(parameter);
    shardBytes += parameter.sizeBytes;
  }
  return shards;
}
