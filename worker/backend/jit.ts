import assert from 'node:assert/strict';

import * as tf from '@tensorflow/tfjs-core';

import type { PjrtExecutable } from '../pjrt/executable.ts';
import { HloBuilder, isSplat } from '../stablehlo/ops.ts';
import type { BuilderOptions } from '../stablehlo/ops.ts';
import type { Product } from '../stablehlo/products.ts';
import { REPLICATED, sameSharding } from '../stablehlo/sharding.ts';
import type { ProgramShardings } from '../stablehlo/sharding.ts';
import type { Donation, Value } from '../stablehlo/types.ts';
import { sameType } from '../stablehlo/types.ts';
import type { TensorTree } from '../tree.ts';
import { SharedBuffer } from './data.ts';
import type { TensorData } from './data.ts';
import { dtypeOf, numericDtype, tensorTypeOf } from './dtypes.ts';
import type { HostValues, TensorSpec } from './dtypes.ts';
import { EngineError } from './errors.ts';
import { executeSharded } from './sharded-program.ts';

/** Host data with more elements becomes a hidden argument of the program instead of text in it. */
const MAX_INLINE_ELEMENTS = 64;

/**
 * Of products of matrices and convolutions: the type of their operands and results, and so of what a backward pass
 * keeps of them. Their inner sums, everything else, parameters and optimiser state are float32.
 */
export type Precision = 'float32' | 'bfloat16';

/** A program before it is compiled. */
export interface TracedProgram {
  readonly mlir: string;
  /** Of its products of matrices and convolutions. */
  readonly flops: number;
  /** See {@link HloBuilder.products}; found out when it is asked for, as the next. */
  readonly products: () => readonly Product[];
  /** See {@link HloBuilder.bytes}. */
  readonly bytes: () => number;
  readonly results: readonly TensorSpec[];
  /** Buffers that the function used without being given them; arguments after the declared ones. */
  readonly captures: readonly SharedBuffer[];
  /** Variables that it used without being given them, with what they held. */
  readonly variables: ReadonlyMap<tf.Variable, tf.DataId>;
  /** The same with other donated arguments, and with holds of its own on what it captured. */
  readonly donating: (donated: readonly number[]) => TracedProgram;
  /** Of a program for several devices. */
  readonly shardings?: ProgramShardings | undefined;
}

/** The program that kernels emit into while a function is traced. */
export class Trace {
  readonly name: string;
  readonly hlo: HloBuilder;
  readonly #retain: (data: TensorData) => SharedBuffer;
  readonly #captures: SharedBuffer[] = [];
  readonly #captured = new Map<TensorData, Value>();

  /** Of a fork: tensors of neither trace that it uses, with the parameters that stand for them. */
  readonly outer: { readonly value: Value; readonly data: TensorData }[] = [];
  readonly variables: Map<tf.Variable, tf.DataId>;
  readonly #parent: Trace | undefined;
  /** Of a fork: its backward pass keeps nothing and computes all of it again. */
  readonly isRecomputed: boolean;

  constructor(
    name: string,
    retain: (data: TensorData) => SharedBuffer,
    {
      builder,
      parent,
      isRecomputed = false,
    }: { builder?: BuilderOptions; parent?: Trace; isRecomputed?: boolean } = {},
  ) {
    this.name = name;
    this.#retain = retain;
    this.#parent = parent;
    this.isRecomputed = isRecomputed;
    this.variables = parent?.variables ?? new Map<tf.Variable, tf.DataId>();
    this.hlo = parent?.hlo.fork() ?? new HloBuilder(builder);
  }

  /** A trace whose operations can be built into this one. */
  fork(name: string, { isRecomputed = false }: { isRecomputed?: boolean } = {}): Trace {
    return new Trace(name, this.#retain, { parent: this, isRecomputed });
  }

  /** Declares the next argument of the program. */
  parameter(spec: TensorSpec): Value {
    return this.hlo.parameter(tensorTypeOf(spec));
  }

  /**
   * The value that stands for a tensor in this program: what a kernel computed, a constant, or a captured buffer.
   *
   * @throws EngineError `XLA_TENSOR_LEAKED` for a result of another trace.
   */
  valueOf(data: TensorData): Value {
    const { content } = data;
    if (content.kind === 'traced') {
      if (content.trace === this) return content.value;
      if (content.trace === this.#parent) {
        throw new EngineError(
          'XLA_LAYER_CAPTURE',
          `${this.name} reads a result of ${content.op} [${data.shape.join()}] that it was not given, and so could ` +
            'give it no gradient. Pass it in `shared` (repeatLayers) or among the inputs (rematerialized).',
        );
      }
      throw new EngineError(
        'XLA_TENSOR_LEAKED',
        `${this.name} uses a result of ${content.op} [${data.shape.join()}] that was kept from the trace of ` +
          `${content.trace.name}, where it never had a value. Return it from that function instead.`,
      );
    }
    let value = this.#captured.get(data);
    if (value === undefined) {
      value =
        content.kind === 'host' && isInline(content.values)
          ? this.hlo.constantArray(content.values, tensorTypeOf(specOf(data)))
          : this.#capture(data);
      this.#captured.set(data, value);
    }
    return value;
  }

  /** Ends the trace. Arguments at `donated` may be overwritten by results of their shape and type, in order. */
  finish(
    results: readonly Value[],
    donated: readonly number[] = [],
    declared?: ProgramShardings,
  ): TracedProgram {
    const { parameters } = this.hlo;
    // Those that were captured have copies on all devices.
    const shardings = declared && {
      ...declared,
      parameters: parameters.map((_, index) => declared.parameters[index] ?? REPLICATED),
    };
    const plan = donations(parameters, results, donated, shardings);
    return {
      mlir: this.hlo.print(this.name, results, plan, shardings),
      shardings,
      flops: this.hlo.flops(results),
      products: () => this.hlo.products(results),
      bytes: () => this.hlo.bytes(results),
      results: results.map(({ shape, elementType }) => ({ shape, dtype: dtypeOf(elementType) })),
      captures: this.#captures,
      variables: this.variables,
      donating: (others) => {
        for (const capture of this.#captures) capture.retain();
        return this.finish(results, others, declared);
      },
    };
  }

  /** Lets go of the captured buffers, where no program came of the trace. */
  abandon(): void {
    for (const capture of this.#captures) capture.release();
  }

  #capture(data: TensorData): Value {
    const spec = specOf(data);
    if (this.#parent !== undefined) {
      const value = this.hlo.parameter(tensorTypeOf(spec));
      this.outer.push({ value, data });
      return value;
    }
    this.#captures.push(this.#retain(data));
    return this.hlo.parameter(tensorTypeOf(spec));
  }
}

function specOf({ shape, dtype }: TensorData): TensorSpec {
  return { shape, dtype: numericDtype(dtype) };
}

/** Splats and short arrays are printed; splats of any size, since they print as one number. */
function isInline(values: HostValues): boolean {
  return values.length <= MAX_INLINE_ELEMENTS || isSplat(values);
}

/** Pairs each donated parameter with the first result of its type that is still free; the rest become donors. */
function donations(
  parameters: readonly Value[],
  results: readonly Value[],
  donated: readonly number[],
  shardings: ProgramShardings | undefined,
): (Donation | undefined)[] {
  const free = new Set(results.keys());
  const plan: (Donation | undefined)[] = parameters.map(() => undefined);
  for (const index of donated) {
    const parameter = parameters[index]!;
    const match = [...free].find(
      (result) =>
        sameType(results[result]!, parameter) &&
        (shardings === undefined ||
          sameSharding(shardings.results[result]!, shardings.parameters[index]!)),
    );
    if (match === undefined) plan[index] = 'donor';
    else {
      free.delete(match);
      plan[index] = { aliasOf: match };
    }
  }
  return plan;
}

/** A traced program with its executable, which may still be compiling. */
export class CompiledProgram {
  readonly traced: TracedProgram;
  readonly #executable: Promise<PjrtExecutable>;
  #numUsers = 0;
  #isClosed = false;

  /** `onFailed` is called, once it is closed, when there comes no executable. */
  constructor(traced: TracedProgram, executable: Promise<PjrtExecutable>, onFailed: () => void) {
    this.traced = traced;
    this.#executable = executable;
    // The failure itself is reported by each use.
    executable.catch(() => {
      this.close();
      onFailed();
    });
  }

  /**
   * Runs the program on `inputs`, one hold each of which the call takes over; gives the results with a hold each.
   * Inputs at `donate` are consumed.
   */
  async run(
    inputs: readonly SharedBuffer[],
    donate: readonly number[] = [],
  ): Promise<SharedBuffer[]> {
    try {
      return await this.use(async (executable) => {
        const { captures, shardings, results } = this.traced;
        const given = [...inputs, ...captures];
        if (shardings !== undefined)
          return executeSharded(executable, shardings, results, given, donate);
        const outputs = await executable.execute(
          given.map((shared) => shared.buffer),
          { donate },
        );
        return outputs.map((buffer) => new SharedBuffer(buffer));
      });
    } finally {
      for (const shared of inputs) shared.release();
    }
  }

  /** Waits for the executable, which stays open until `body` has ended. */
  async use<T>(body: (executable: PjrtExecutable) => T | Promise<T>): Promise<T> {
    assert(!this.#isClosed, 'a closed program is used');
    this.#numUsers++;
    try {
      return await body(await this.#executable);
    } finally {
      this.#numUsers--;
      this.#freeIfUnused();
    }
  }

  /** Frees the executable and what it captured, once nobody uses them. Idempotent. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#freeIfUnused();
  }

  #freeIfUnused(): void {
    if (!this.#isClosed || this.#numUsers > 0) return;
    for (const capture of this.traced.captures) capture.release();
    void this.#executable.then(
      (executable) => {
        executable.close();
      },
      () => undefined, // there is nothing to free
    );
  }
}

/**
 * What distinguishes one program of a function from another: the form of its arguments, dtypes and shapes of their
 * leaves.
 */
export function signatureOf(tree: TensorTree): string {
  if (tree instanceof tf.Tensor) return `${tree.dtype}[${tree.shape.join()}]`;
  if (Array.isArray(tree)) return `[${(tree as readonly TensorTree[]).map(signatureOf).join()}]`;
  const entries = Object.entries(tree as Record<string, TensorTree>);
  return `{${entries.map(([key, child]) => `${JSON.stringify(key)}:${signatureOf(child)}`).join()}}`;
}
