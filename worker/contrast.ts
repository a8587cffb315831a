/** Comparing every row of the global batch with every other, the same bits for every number of workers. */
import * as tf from '@tensorflow/tfjs-core';
import type { Engine } from './backend/engine.ts';
import { uploadBatch, type StepBatches } from './batches.ts';
import type { Collectives } from './parallel/collectives.ts';
import type { MicrobatchRange } from './parallel/tree-sum.ts';
import type { ContrastPrograms } from './programs.ts';
import { disposeTree, leavesOf, type TensorTree } from './tree.ts';

/** What the comparison gives to the backward passes. */
export interface ComparedRows {
  /** Gradients by the embeddings of a microbatch, on the device. */
  cotangentsOf(microbatch: number): Record<string, tf.Tensor>;
  /**
   * Adds to a gradient what the comparison's own parameters get, and its loss sums to a microbatch's sums; for one
   * microbatch of the global batch alone.
   */
  addTo(gradient: Float32Array, sums: Float32Array | Int32Array | Uint8Array): void;
}

/**
 * Embeds the own microbatches, exchanges the embeddings and compares those of the whole batch. Every worker computes
 * the same comparison of the same rows, so nothing depends on who holds which.
 * Source: Gao et al. 2021, arXiv:2101.06983, sec. 3.2, steps 1 and 2.
 */
export async function compareGlobalBatch<P extends TensorTree>(
  programs: ContrastPrograms<P>,
  {
    params,
    frozen,
    microbatches,
  }: {
    readonly params: P;
    readonly frozen: TensorTree;
    readonly microbatches: StepBatches['microbatches'];
  },
  {
    engine,
    collectives,
    members,
    step,
    objectives,
    scales,
  }: {
    readonly engine: Engine;
    readonly collectives: Pick<Collectives, 'allGather' | 'allGatherInto'>;
    readonly members: readonly MicrobatchRange[];
    readonly step: number;
    /** Places of the contrast's objectives among all. */
    readonly objectives: readonly number[];
    readonly scales: Float32Array;
  },
): Promise<ComparedRows> {
  // --- Forward, without keeping anything but the embeddings.
  const own: Record<string, { values: Float32Array; shape: number[] }>[] = [];
  for (const { batch } of microbatches) {
    const inputs = uploadBatch(engine, batch);
    const embedded = await programs.embed(params, frozen, inputs);
    const read = Object.entries(embedded).map(async ([name, tensor]) => {
      const values = (await tensor.data()) as Float32Array;
      return [name, { values: values.slice(), shape: tensor.shape }] as const;
    });
    own.push(Object.fromEntries(await Promise.all(read)));
    disposeTree([inputs, embedded]);
  }

  // --- Those of all microbatches, in their order. A worker without any learns their form from the others.
  const form = await formOf(own[0], { collectives, step });
  const names = Object.keys(form);
  const numMicrobatches = members.reduce((sum, member) => sum + member.numMicrobatches, 0);
  const all: Record<string, Float32Array> = {};
  for (const name of names) {
    const size = sizeOf(form[name]!);
    const rows = (all[name] = new Float32Array(numMicrobatches * size));
    for (const [slot, { index }] of microbatches.entries()) {
      rows.set(own[slot]![name]!.values, index * size);
    }
    const parts = members.map(({ firstMicrobatch: first, numMicrobatches: count }) => ({
      ...{ start: first * size, end: (first + count) * size },
    }));
    await collectives.allGatherInto(step, `embeddings/${name}`, rows, parts);
  }

  // --- The comparison.
  const embeddings = Object.fromEntries(
    names.map((name) => {
      const [rows, ...rest] = form[name]!;
      return [name, engine.upload(all[name]!, [numMicrobatches * rows!, ...rest])];
    }),
  );
  const scaling = engine.upload(scales, [scales.length]);
  const result = await programs.compare(params, frozen, embeddings, scaling);
  const cotangents = Object.fromEntries(
    await Promise.all(
      Object.entries(result.cotangents).map(
        async ([name, tensor]) => [name, ((await tensor.data()) as Float32Array).slice()] as const,
      ),
    ),
  );
  const direct = await Promise.all(
    Object.entries(result.direct).map(
      async ([path, tensor]) => [path, ((await tensor.data()) as Float32Array).slice()] as const,
    ),
  );
  const sums = (await result.sums.data()).slice();
  disposeTree([embeddings, scaling, result]);

  const offsets = offsetsOf(params);
  return {
    cotangentsOf: (microbatch) =>
      Object.fromEntries(
        Object.keys(cotangents).map((name) => {
          const size = sizeOf(form[name]!);
          const values = cotangents[name]!.subarray(microbatch * size, (microbatch + 1) * size);
          return [name, engine.upload(values, form[name]!)];
        }),
      ),
    addTo(gradient, microbatchSums) {
      for (const [path, values] of direct) {
        const offset = offsets.get(path)!;
        for (const [i, value] of values.entries()) gradient[offset + i]! += value;
      }
      for (const [k, objective] of objectives.entries()) {
        microbatchSums[2 * objective] = sums[2 * k]!;
        microbatchSums[2 * objective + 1] = sums[2 * k + 1]!;
      }
    },
  };
}

/** Shapes of a microbatch's embeddings by name, which all workers know alike. */
async function formOf(
  first: Record<string, { shape: number[] }> | undefined,
  { collectives, step }: { collectives: Pick<Collectives, 'allGather'>; step: number },
): Promise<Record<string, number[]>> {
  const text = JSON.stringify(
    Object.fromEntries(Object.entries(first ?? {}).map(([name, { shape }]) => [name, shape])),
  );
  const said = await collectives.allGather(
    step,
    'embeddings',
    Float64Array.from(text, (letter) => letter.codePointAt(0)!),
  );
  const longest = said.reduce((a, b) => (b.length > a.length ? b : a));
  return JSON.parse(String.fromCodePoint(...longest)) as Record<string, number[]>;
}

function sizeOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** Where each parameter begins in the flat gradient. */
function offsetsOf(params: TensorTree): Map<string, number> {
  let offset = 0;
  return new Map(
    leavesOf(params).map(([path, { size }]) => {
      offset += size;
      return [path, offset - size];
    }),
  );
}
