import assert from 'node:assert/strict';

import * as tf from '@tensorflow/tfjs-core';

import type { PjrtClient } from '../pjrt/client.ts';
import type { PjrtExecutable } from '../pjrt/executable.ts';
import type { HloBuilder } from '../stablehlo/ops.ts';
import type { Value } from '../stablehlo/types.ts';
import { releaseContent, SharedBuffer } from './data.ts';
import type { Content, TensorData } from './data.ts';
import { dtypeOf, hostValues, numericDtype, pjrtTypeOf, tensorTypeOf } from './dtypes.ts';
import type { HostValues, TensorSpec } from './dtypes.ts';
import { EngineError } from './errors.ts';
import { CompiledProgram, Trace } from './jit.ts';

/** The name under which tfjs knows this backend and its kernels. */
export const BACKEND_NAME = 'xla';

/** tfjs's own for 32-bit floats. Source: `EPSILON_FLOAT32` in tfjs-core's backends/backend.ts. */
const EPSILON_FLOAT32 = 1e-7;

/** Programs of single ops that are kept for eager use. */
const MAX_EAGER_PROGRAMS = 512;

/** The tensors of a kernel, named or listed as tfjs passes them, as values of the program. */
export type KernelInputs<T> = T extends readonly unknown[]
  ? readonly Value[]
  : { readonly [K in keyof T]: Value };

/** Emits a kernel's operations and gives its result or results. */
export type Emit = (
  hlo: HloBuilder,
  inputs: Record<string, Value> & readonly Value[],
  attrs: object,
) => Value | readonly Value[];

type TensorInfos = tf.NamedTensorInfoMap | readonly tf.TensorInfo[];

/**
 * The tfjs backend over a PJRT client. During a trace its kernels emit into the program; otherwise each runs as a
 * program of its own, which is meant for debugging and tests: results come asynchronously, by `await tensor.data()`.
 */
export class XlaBackend extends tf.KernelBackend {
  readonly client: PjrtClient;
  readonly #compile: (mlir: string) => Promise<PjrtExecutable>;
  readonly #data: tf.DataStorage<TensorData>;
  readonly #eager = new Map<string, CompiledProgram>();
  #trace: Trace | undefined;

  constructor(client: PjrtClient, compile: (mlir: string) => Promise<PjrtExecutable>) {
    super();
    this.client = client;
    this.#compile = compile;
    this.#data = new tf.DataStorage(this, tf.engine());
  }

  get trace(): Trace | undefined {
    return this.#trace;
  }

  /** Runs `body` with kernels emitting into `trace`. */
  during<T>(trace: Trace, body: () => T): T {
    this.#trace = trace;
    try {
      return body();
    } finally {
      this.#trace = undefined;
    }
  }

  /** Registers a tensor's elements; the tensor is its first holder. */
  hold(spec: TensorSpec, content: Content): tf.TensorInfo {
    const dataId = {};
    this.#data.set(dataId, { ...spec, refCount: 1, content });
    return { dataId, shape: [...spec.shape], dtype: spec.dtype };
  }

  /** What is kept of a tensor; one of another tfjs backend moves here. */
  dataOf(dataId: tf.DataId): TensorData {
    return this.#data.get(dataId);
  }

  upload(values: HostValues, { shape, dtype }: TensorSpec): SharedBuffer {
    return new SharedBuffer(this.client.bufferFromHost(values, shape, pjrtTypeOf(dtype)));
  }

  /** A hold on the tensor's device buffer; host data is uploaded first, and stays there. */
  retain(dataId: tf.DataId): SharedBuffer | Promise<SharedBuffer> {
    const data = this.dataOf(dataId);
    if (data.content.kind === 'host') {
      data.content = { kind: 'device', shared: this.upload(data.content.values, data) };
    }
    if (data.content.kind === 'device') return data.content.shared.retain();
    if (data.content.kind === 'pending') return data.content.shared.then((s) => s.retain());
    throw new EngineError(
      'XLA_TENSOR_LEAKED',
      `A result of ${data.content.op} [${data.shape.join()}] was kept from the trace of ` +
        `${data.content.trace.name}, where it never had a value. Return it from that function instead.`,
    );
  }

  /** Runs or traces one kernel. */
  runKernel(name: string, inputs: TensorInfos, attrs: object, emit: Emit): tf.TensorInfo[] {
    if (this.#trace === undefined) return this.#runEagerly(name, inputs, attrs, emit);
    const trace = this.#trace;
    const values = mapInputs(inputs, ({ dataId }) => trace.valueOf(this.dataOf(dataId)));
    return asArray(emit(trace.hlo, values, attrs)).map((value) =>
      this.hold(specOf(value), { kind: 'traced', trace, value, op: name }),
    );
  }

  #runEagerly(name: string, inputs: TensorInfos, attrs: object, emit: Emit): tf.TensorInfo[] {
    const tensors = Object.values(inputs).filter((input) => input !== undefined);
    const types = Object.entries(inputs).map(([key, input]) =>
      input === undefined ? '' : `${key}:${input.dtype}[${input.shape.join()}]`,
    );
    const key = `${name}(${types.join()})${JSON.stringify(attrs)}`;
    let program = this.#eager.get(key);
    if (program === undefined) {
      const trace = new Trace(name, () => {
        throw new Error('a kernel captures nothing');
      });
      const values = mapInputs(inputs, ({ shape, dtype }) =>
        trace.hlo.parameter(tensorTypeOf({ shape, dtype: numericDtype(dtype) })),
      );
      const traced = trace.finish(asArray(emit(trace.hlo, values, attrs)));
      program = new CompiledProgram(traced, this.#compile(traced.mlir));
      this.#eager.set(key, program);
      const [oldest] = this.#eager.keys();
      if (this.#eager.size > MAX_EAGER_PROGRAMS && oldest !== undefined) {
        this.#eager.get(oldest)?.close();
        this.#eager.delete(oldest);
      }
    }
    const outputs = program.run(tensors.map(({ dataId }) => this.retain(dataId)));
    return program.traced.results.map((spec, index) => {
      const shared = outputs.then((buffers) => buffers[index]!);
      // Whoever reads the tensor sees the failure.
      shared.catch(() => undefined);
      const info = this.hold(spec, { kind: 'pending', shared });
      const data = this.dataOf(info.dataId);
      void shared.then(
        (buffer) => {
          // Unless it was disposed meanwhile, the tensor's buffer is at hand from now on.
          if (data.content.kind === 'pending' && data.refCount > 0) {
            data.content = { kind: 'device', shared: buffer };
          }
        },
        () => undefined,
      );
      return info;
    });
  }

  override write(values: tf.BackendValues, shape: number[], dtype: tf.DataType): tf.DataId {
    const kind = numericDtype(dtype);
    return this.hold(
      { shape, dtype: kind },
      { kind: 'host', values: hostValues(values as HostValues, kind) },
    ).dataId;
  }

  override move(
    dataId: tf.DataId,
    values: tf.BackendValues,
    shape: number[],
    dtype: tf.DataType,
    refCount: number,
  ): void {
    const kind = numericDtype(dtype);
    const content: Content = { kind: 'host', values: hostValues(values as HostValues, kind) };
    this.#data.set(dataId, { shape, dtype: kind, refCount, content });
  }

  override async read(dataId: tf.DataId): Promise<tf.BackendValues> {
    const data = this.dataOf(dataId);
    if (data.content.kind === 'host') return data.content.values;
    if (data.content.kind === 'traced')
      throw readInTrace(data, data.content.op, data.content.trace);
    const held = await this.retain(dataId);
    try {
      return (await held.buffer.toHost()) as HostValues;
    } finally {
      held.release();
    }
  }

  override readSync(dataId: tf.DataId): tf.BackendValues {
    const data = this.dataOf(dataId);
    if (data.content.kind === 'host') return data.content.values;
    if (data.content.kind === 'traced')
      throw readInTrace(data, data.content.op, data.content.trace);
    throw new EngineError(
      'XLA_SYNC_READ',
      `A tensor [${data.shape.join()}] on ${this.client.platformName} was read with dataSync(), which would block ` +
        'the process until it is computed. Use `await tensor.data()`.',
    );
  }

  override disposeData(dataId: tf.DataId, force = false): boolean {
    if (!this.#data.has(dataId)) return true;
    const data = this.dataOf(dataId);
    data.refCount--;
    if (!force && data.refCount > 0) return false;
    data.refCount = 0;
    releaseContent(data.content);
    this.#data.delete(dataId);
    return true;
  }

  override refCount(dataId: tf.DataId): number {
    return this.#data.has(dataId) ? this.dataOf(dataId).refCount : 0;
  }

  override incRef(dataId: tf.DataId): void {
    this.dataOf(dataId).refCount++;
  }

  override numDataIds(): number {
    return this.#data.numDataIds();
  }

  override memory(): { unreliable: boolean } {
    return { unreliable: false };
  }

  override async time(run: () => void): Promise<tf.BackendTimingInfo> {
    const start = performance.now();
    run();
    await Promise.resolve();
    return { kernelMs: performance.now() - start };
  }

  override floatPrecision(): 16 | 32 {
    return 32;
  }

  override epsilon(): number {
    return EPSILON_FLOAT32;
  }

  override dispose(): void {
    for (const program of this.#eager.values()) program.close();
    this.#eager.clear();
  }
}

/** Registers a tfjs kernel that emits its operations with `emit`. */
// eslint-disable-next-line @typescript-eslint/no-unnecessary-type-parameters -- callers name tfjs's types
export function kernel<Inputs, Attrs extends object = object>(
  kernelName: string,
  emit: (hlo: HloBuilder, inputs: KernelInputs<Inputs>, attrs: Attrs) => Value | readonly Value[],
): tf.KernelConfig {
  const config: tf.KernelConfig = {
    kernelName,
    backendName: BACKEND_NAME,
    kernelFunc: ({ inputs, attrs, backend }) => {
      assert(backend instanceof XlaBackend);
      const results = backend.runKernel(kernelName, inputs, attrs ?? {}, emit as unknown as Emit);
      return results.length === 1 && !MULTIPLE_RESULTS.has(kernelName) ? results[0]! : results;
    },
  };
  tf.registerKernel(config);
  return config;
}

/** Kernels whose callers expect an array even of one result. */
const MULTIPLE_RESULTS = new Set<string>([tf.Unpack, tf.SplitV]);

function mapInputs(
  inputs: TensorInfos,
  change: (info: tf.TensorInfo) => Value,
): Record<string, Value> & readonly Value[] {
  const changed = Array.isArray(inputs)
    ? (inputs as tf.TensorInfo[]).map(change)
    : Object.fromEntries(
        Object.entries(inputs as tf.NamedTensorInfoMap).map(([key, info]) => [
          key,
          info && change(info),
        ]),
      );
  return changed as Record<string, Value> & readonly Value[];
}

function asArray(values: Value | readonly Value[]): readonly Value[] {
  return Array.isArray(values) ? (values as readonly Value[]) : [values as Value];
}

function specOf({ shape, elementType }: Value): TensorSpec {
  return { shape, dtype: dtypeOf(elementType) };
}

function readInTrace(data: TensorData, op: string, trace: Trace): EngineError {
  return new EngineError(
    'XLA_READ_IN_TRACE',
    `The result of ${op} [${data.shape.join()}] was read while ${trace.name} was being compiled, when no tensor has ` +
      'a value yet. Compute with tensor ops instead (tf.where for a choice), or return the tensor and read it after ' +
      'the call.',
  );
}
