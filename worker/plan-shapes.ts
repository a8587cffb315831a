/** What a run will take, by the shapes of its parameters and batches alone: nothing is decoded, trained or filled. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import type { Sample } from '../video/index/sample.ts';
import type { SampleIndex } from '../video/index/sample-index.ts';
import type { Engine } from './backend/engine.ts';
import type { Config } from './config.ts';
import { freezeParameters, frozenLeaves } from './frozen-parameters.ts';
import { formOf } from './initial-weights.ts';
import { referenceLeaves, withReference } from './reference-parameters.ts';
import { shapesOnly } from './initializer.ts';
import { parameterShardings, rowParts, rowSharding } from './parallel/sharding.ts';
import { compilePrograms } from './programs.ts';
import { partsOf, REPLICATED } from './stablehlo/sharding.ts';
import { systemNamed } from './systems/registry.ts';
import type { HostArray, Row, VideoLanguageSystem } from './systems/system.ts';
import { writeStandInTokenizer } from './systems/text-assets.ts';
import { leavesOf, type TensorTree } from './tree.ts';

/** Number of parameters by the first part of their path. */
export type ParameterCounts = ReadonlyMap<string, number>;

export interface ShapePlan {
  readonly trained: ParameterCounts;
  readonly frozen: ParameterCounts;
  /** Of a step, in products of matrices and convolutions; undefined off the xla engine. */
  readonly flops: number | undefined;
  /** On each device, estimated; undefined off the xla engine. */
  readonly peakBytes: number | undefined;
}

/** A system with parameters that have no values. */
export interface ShapeSystem {
  readonly system: VideoLanguageSystem;
  readonly trained: ParameterCounts;
  readonly frozen: ParameterCounts;
  /** A microbatch's worth of rows without content. */
  readonly rows: readonly Row[];
}

/**
 * Opens a config's system on samples that do not exist, with a tokenizer of the most words it may have.
 * @throws UsageError `FROZEN_INVALID`
 */
export async function openShapeSystem(config: Config): Promise<ShapeSystem> {
  const { model, data, train } = config;
  const folder = await mkdtemp(join(tmpdir(), 'videoloom-shapes-'));
  try {
    const samples = Array.from({ length: train.microbatchSize }, (_, i) =>
      sampleOf(i, data.windows),
    );
    const index = { train: samples, heldOut: samples, files: [] } as unknown as SampleIndex;
    const definition = systemNamed(model.name);
    const texts = samples.flatMap(({ text, cues }) => [text, ...cues.map((cue) => cue.text)]);
    await writeStandInTokenizer(folder, texts, wordsOf(config));
    await definition.standIn?.({ config, index, folder });
    const opened = await definition.open({ config, index, folder });
    const form = formOf(opened);
    const compared =
      opened.needsReference === true
        ? withReference(opened, train.frozen, form, 'shapes alone')
        : opened;
    const system =
      train.frozen.length === 0
        ? compared
        : freezeParameters(compared, train.frozen, form, 'shapes alone');
    return {
      system,
      trained: countsOf(leavesOf(formOf(system))),
      frozen: countsOf([...frozenLeaves(system), ...referenceLeaves(system)]),
      rows: samples.map((sample, number) => rowOf(sample, number, config)),
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Traces a run's gradient, and what its contrast computes, for shapes; nothing is compiled. */
export function planShapes(
  config: Config,
  { system, trained, frozen, rows }: ShapeSystem,
  engine: Engine,
): ShapePlan {
  const params = system.init(shapesOnly());
  const shardings = parameterShardings(engine.mesh, config.parallel, leavesOf(params));
  const programs = compilePrograms(engine, system, config.optimizer, {
    parameters: shardings,
    rows: rowSharding(engine.mesh),
  });
  const fixed = formsOf(system.frozen);
  const inputs = formsOf(system.assemble(rows).arrays);
  const scales = formOfShape([Object.keys(system.objectives).length], 'float32');
  // The gradients of what is compared are as large as that is; names in Ids have none.
  const embedded = programs.contrast?.embed.trace(params, fixed, inputs);
  const cotangents = Object.fromEntries(
    (embedded?.results ?? [])
      .filter(({ path }) => !path.endsWith('Ids'))
      .map(({ path, shape, dtype }) => [path, formOfShape(shape, dtype)]),
  );
  const { microbatches } = config.train;
  // Of a whole batch all are compared, as floats, whatever they were.
  const compared = Object.fromEntries(
    (embedded?.results ?? []).map(({ path, shape: [rows, ...rest] }) => [
      path,
      formOfShape([microbatches * rows!, ...rest], 'float32'),
    ]),
  );
  const comparison = programs.contrast?.compare.trace(params, fixed, compared, scales);
  const gradient = programs.gradient.trace(params, fixed, inputs, scales, cotangents);
  if (gradient === undefined) return { trained, frozen, flops: undefined, peakBytes: undefined };
  const sizes = leavesOf(params).map(([path, { shape, size }]) => {
    const parts = partsOf(engine.mesh, shardings.get(path) ?? REPLICATED, shape.length);
    return { whole: 4 * size, own: (4 * size) / parts.reduce((a, b) => a * b, 1) };
  });
  const whole = sizes.reduce((sum, { whole: bytes }) => sum + bytes, 0);
  const own = sizes.reduce((sum, { own: bytes }) => sum + bytes, 0);
  // Parameters, two moments and the gradient; what a microbatch needs beside them is cut as its rows are.
  const activations = Math.max(0, gradient.bytes - whole) + bytesIn(inputs);
  // Of a comparison of the whole batch nothing is cut.
  const compares = Math.max(0, (comparison?.bytes ?? 0) - whole);
  const peakBytes =
    4 * own + bytesIn(fixed) + Math.max(activations / rowParts(engine.mesh), compares);
  const flops = microbatches * (gradient.flops + (embedded?.flops ?? 0)) + (comparison?.flops ?? 0);
  return { trained, frozen, flops, peakBytes };
}

function bytesIn(tree: TensorTree): number {
  return leavesOf(tree).reduce((sum, [, { size }]) => sum + 4 * size, 0);
}

/** Most word pieces that the config's model has. */
function wordsOf({ model }: Config): number {
  const { textVocabulary, vocabulary, text } = model as {
    readonly textVocabulary?: number;
    readonly vocabulary?: number;
    readonly text?: { readonly vocabulary: number };
  };
  return textVocabulary ?? vocabulary ?? text?.vocabulary ?? 0;
}

const COLOURS = ['red', 'blue', 'green', 'white'];

/** A clip with a caption, a conversation and something said at each time. */
function sampleOf(number: number, windows: number): Sample {
  const answer = `a ${COLOURS[number % COLOURS.length]!} circle moves ${number}`;
  return {
    id: String(number),
    media: [{ file: number, startSeconds: 0, endSeconds: windows }],
    text: answer,
    cues: Array.from({ length: windows }, (_, i) => ({
      ...{ startSeconds: i, endSeconds: i + 0.9, text: `then ${i}` },
    })),
    parts: [
      { role: 'user', media: 0 },
      { role: 'user', text: 'what happens ?' },
      { role: 'assistant', text: answer, rejected: 'a circle' },
    ],
    decodeMegapixels: 1,
  };
}

function rowOf(sample: Sample, number: number, { data }: Config): Row {
  const numFrames = data.windows * data.framesPerWindow;
  return {
    ...{ sample, number, epoch: 0 },
    frames: new Uint8Array(numFrames * data.frameSize ** 2 * 3),
    timesSeconds: Array.from({ length: numFrames }, (_, i) => i / data.framesPerWindow + 0.5),
    ...(data.audio !== null && {
      audio: new Float32Array(data.audio.numMels * data.audio.numFrames),
    }),
  };
}

function formsOf(arrays: Readonly<Record<string, HostArray>>): TensorTree {
  return Object.fromEntries(
    Object.entries(arrays).map(([name, { data, shape }]) => [
      name,
      formOfShape(shape, data instanceof Int32Array ? 'int32' : 'float32'),
    ]),
  );
}

function formOfShape(shape: readonly number[], dtype: tf.DataType): tf.Tensor {
  return new tf.Tensor([...shape], dtype, {}, -1);
}

export function countsOf(
  leaves: readonly (readonly [path: string, leaf: { readonly size: number }])[],
): ParameterCounts {
  const counts = new Map<string, number>();
  for (const [path, { size }] of leaves) {
    const [module] = path.split('/') as [string];
    counts.set(module, (counts.get(module) ?? 0) + size);
  }
  return counts;
}
