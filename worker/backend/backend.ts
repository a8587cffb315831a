import assert from 'node:assert/strict';

import * as tf from '@tensorflow/tfjs-core';

import type { PjrtClient } from '../pjrt/client.ts';
import type { HostArray } from '../pjrt/element-type.ts';
import type { BuilderOptions, HloBuilder } from '../stablehlo/ops.ts';
import { sameShape } from '../stablehlo/types.ts';
import { numDevicesOf } from '../stablehlo/sharding.ts';
import type { Mesh, Sharding } from '../stablehlo/sharding.ts';
import type { Value } from '../stablehlo/types.ts';
import { releaseContent, retainAll, SharedBuffer } from './data.ts';
import type { Content, TensorData } from './data.ts';
import { heldDtypeOf, hostValues, numericDtype, pjrtTypeOf } from './dtypes.ts';
import type { HostValues, TensorSpec } from './dtypes.ts';
import type { EagerPrograms } from './eager-programs.ts';
import { EngineError } from './errors.ts';
import type { LayerScan, LayerStack } from '../layer-loop.ts';
import type { TracedPasses } from '../traced-passes.ts';
import { canFuseAttention, type AttentionOperands } from './fused-attention.ts';
import { scanLayers, traceLayers } from './layer-loop.ts';
import { mapNested, runOnHost } from './host.ts';
import type { HostTensor } from './host.ts';
import { Trace } from './jit.ts';
import type { Precision } from './jit.ts';
import { spreadFromHost } from './spread.ts';
import { traceAttention } from './traced-attention.ts';

/** The name under which tfjs knows this backend and its kernels. */
export const BACKEND_NAME = 'xla';

/** tfjs's own for 32-bit floats. Source: `EPSILON_FLOAT32` in tfjs-core's backends/backend.ts. */
const EPSILON_FLOAT32 = 1e-7;

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
 * The tfjs backend over a PJRT client. During a trace its kernels emit into the program; otherwise each runs at once as
 * a small program of its own, and the calling thread waits for it, so that a model can be debugged line by line.
 */
export class XlaBackend extends tf.KernelBackend {
  readonly client: PjrtClient;
  /** Of the devices that compiled functions run on; single ops run on the first. */
  readonly mesh: Mesh;
  readonly #programs: EagerPrograms;
  #data: tf.DataStorage<TensorData>;
  #trace: Trace | undefined;

  constructor(client: PjrtClient, programs: EagerPrograms, mesh: Mesh = {}) {
    super();
    this.client = client;
    this.mesh = mesh;
    this.#programs = programs;
    this.#data = new tf.DataStorage(this, tf.engine());
  }

  get trace(): Trace | undefined {
    return this.#trace;
  }

  /** Runs `body` with kernels emitting into `trace`. */
  during<T>(trace: Trace, body: () => T): T {
    const before = this.#trace;
    this.#trace = trace;
    try {
      return body();
    } finally {
      this.#trace = before;
    }
  }

  /** Layers as one loop of the program being traced; undefined while none is. */
  traceLayers(stack: LayerStack): TracedPasses | undefined {
    return this.#trace && traceLayers(this, this.#trace, stack);
  }

  /**
   * Attention as one kernel of the device's library; undefined where there is none for these shapes, this device or
   * this precision, or while nothing is being traced. A mesh of several devices has none either: the compiler cannot
   * cut a call of a library.
   */
  traceAttention(operands: AttentionOperands<tf.Tensor>): TracedPasses | undefined {
    const trace = this.#trace;
    const isCuda = this.client.platformName === 'cuda';
    const isNarrow = trace?.hlo.productType === 'bf16';
    if (!isCuda || !this.#isOneDevice || !isNarrow || !canFuseAttention(operands)) return undefined;
    return traceAttention(this, trace, operands);
  }

  /**
   * The same tensors as new values of the program: what is computed of them is computed again though it was before, and
   * not before all of them are there. Without a gradient. Undefined while nothing is being traced, and in a layer whose
   * backward pass computes all of it again anyway.
   */
  optimizationBarrier(tensors: readonly tf.Tensor[]): tf.Tensor[] | undefined {
    const trace = this.#trace;
    if (trace === undefined || trace.isRecomputed) return undefined;
    const values = trace.hlo.optimizationBarrier(tensors.map((x) => this.valueIn(trace, x)));
    return values.map((value) => {
      const content = { kind: 'traced', trace, value, op: 'an optimization barrier' } as const;
      return tf.engine().makeTensorFromTensorInfo(this.hold(specOf(value), content), this);
    });
  }

  /**
   * How programs are built for this device. The CPU plugin's quick library takes products whose operands are read in
   * their order alone; several devices need a program that the partitioner can cut.
   */
  builderFor(precision: Precision): BuilderOptions {
    return {
      productType: precision === 'bfloat16' ? 'bf16' : 'f32',
      transposesAhead: this.client.platformName === 'cpu' && this.#isOneDevice,
      isPartitioned: !this.#isOneDevice,
    };
  }

  get #isOneDevice(): boolean {
    return numDevicesOf(this.mesh) === 1;
  }

  /** Layers of which each makes something, as one loop of the program being traced; undefined while none is. */
  scanLayers(scan: LayerScan): tf.Tensor[] | undefined {
    return this.#trace && scanLayers(this, this.#trace, scan);
  }

  /** Registers a tensor's elements; the tensor is its first holder. */
  hold({ shape, dtype }: Pick<TensorData, 'shape' | 'dtype'>, content: Content): tf.TensorInfo {
    const dataId = {};
    this.#data.set(dataId, { shape, dtype, refCount: 1, content });
    return { dataId, shape: [...shape], dtype };
  }

  /** Another tensor of the same elements in the same order, as a holder of its own. */
  share({ dataId, dtype }: tf.TensorInfo, shape: readonly number[]): tf.TensorInfo {
    this.incRef(dataId);
    return { dataId, shape: [...shape], dtype };
  }

  /** What is kept of a tensor; one of another tfjs backend moves here. */
  dataOf(dataId: tf.DataId): TensorData {
    return this.#data.get(dataId);
  }

  /** To the first device, or spread over all. */
  upload(values: HostValues, { shape, dtype }: TensorSpec, sharding?: Sharding): SharedBuffer {
    // The client takes complex numbers as their bits.
    const bits =
      dtype === 'complex64' ? new BigUint64Array(new Float32Array(values).buffer) : values;
    const type = pjrtTypeOf(dtype);
    return new SharedBuffer(
      sharding === undefined
        ? this.client.bufferFromHost(bits, shape, type)
        : spreadFromHost(this.client, this.mesh, sharding, { data: bits, shape, type }),
    );
  }

  /**
   * A hold on the tensor's device memory, all of it on the first device or spread as asked. Host data is uploaded
   * first, and stays there; what lies otherwise is copied by way of the host.
   */
  retain(tensor: tf.TensorInfo, sharding?: Sharding): SharedBuffer {
    const data = this.dataOf(tensor.dataId);
    if (sameShape(tensor.shape, data.shape)) return this.retainData(data, sharding);
    const reshaped = this.#retainReshaped(tensor, data.shape);
    if (sharding === undefined) return reshaped;
    const { shape, dtype } = tensor;
    return this.#moved(reshaped, { shape, dtype: numericDtype(dtype) }, sharding);
  }

  #moved(from: SharedBuffer, spec: TensorSpec, sharding: Sharding | undefined): SharedBuffer {
    try {
      return this.upload(valuesOfBuffer(from.toHostSync()), spec, sharding);
    } finally {
      from.release();
    }
  }

  /** `retain` of all the elements that are kept, in the shape in which they are. */
  retainData(data: TensorData, sharding?: Sharding): SharedBuffer {
    const { content } = data;
    switch (content.kind) {
      case 'device': {
        const held = content.shared.retain();
        return held.liesAs(sharding) ? held : this.#moved(held, numericSpec(data), sharding);
      }
      case 'host': {
        const shared = this.upload(content.values, numericSpec(data), sharding);
        data.content = { kind: 'device', shared };
        return shared.retain();
      }
      case 'strings':
        throw new Error('strings are dispatched to the host');
      case 'traced':
        throw new EngineError(
          'XLA_TENSOR_LEAKED',
          `A result of ${content.op} [${data.shape.join()}] was kept from the trace of ` +
            `${content.trace.name}, where it never had a value. Return it from that function instead.`,
        );
    }
  }

  #retainReshaped(tensor: tf.TensorInfo, shape: readonly number[]): SharedBuffer {
    const [result] = this.#execute(
      'a reshape',
      [{ ...tensor, shape: [...shape] }],
      {},
      (hlo, [x]) => hlo.reshape(x!, tensor.shape),
    );
    return result!.shared;
  }

  /** Runs or traces one kernel. */
  runKernel(name: string, inputs: TensorInfos, attrs: object, emit: Emit): tf.TensorInfo[] {
    const holdsStrings = Object.values(inputs).some(
      (input: tf.TensorInfo | undefined) => input?.dtype === 'string',
    );
    if (holdsStrings || ('dtype' in attrs && attrs.dtype === 'string')) {
      return this.runHostKernel(name, inputs, attrs, 'it computes with strings');
    }
    const trace = this.#trace;
    if (trace === undefined) {
      // What is made of numbers alone needs no program: it is uploaded when it is first used.
      if (Object.keys(inputs).length === 0) {
        return this.runHostKernel(name, inputs, attrs, 'it takes no tensors');
      }
      return this.#execute(name, inputs, attrs, emit).map(({ spec, shared }) =>
        this.hold(spec, { kind: 'device', shared }),
      );
    }
    const values = mapInputs(inputs, (input) => this.valueIn(trace, input));
    return asArray(emit(trace.hlo, values, attrs)).map((value) =>
      this.hold(specOf(value), { kind: 'traced', trace, value, op: name }),
    );
  }

  /** The value that stands for a tensor in a program. @throws EngineError as `Trace.valueOf` */
  valueIn(trace: Trace, tensor: tf.TensorInfo): Value {
    const { dataId, shape } = tensor;
    if (tensor instanceof tf.Variable) trace.variables.set(tensor as tf.Variable, dataId);
    return trace.hlo.reshape(trace.valueOf(this.dataOf(dataId)), shape);
  }

  /**
   * Runs a kernel in JavaScript on the host.
   *
   * @throws EngineError `XLA_HOST_OP_IN_TRACE` where an input has no value yet.
   */
  runHostKernel(name: string, inputs: TensorInfos, attrs: object, why: string): tf.TensorInfo[] {
    const values = mapNested(inputs, 'dtype', (input: tf.TensorInfo): HostTensor => {
      const { dataId, shape, dtype } = input;
      const data = this.dataOf(dataId);
      if (data.content.kind === 'traced') throw hostOpInTrace(name, why, data.content, shape);
      return { shape, dtype, values: this.#valuesOf(data) };
    });
    return runOnHost(name, values, attrs).map(({ shape, dtype, values }) => {
      return this.hold({ shape, dtype }, contentOf(values, dtype));
    });
  }

  /** Runs one kernel as a program of its own. */
  #execute(
    name: string,
    inputs: TensorInfos,
    attrs: object,
    emit: Emit,
  ): { readonly spec: TensorSpec; readonly shared: SharedBuffer }[] {
    const types = Object.entries(inputs).map(
      ([key, input]: [string, tf.TensorInfo | undefined]) => {
        if (input === undefined) return '';
        const kept = this.dataOf(input.dataId).shape;
        return `${key}:${input.dtype}[${input.shape.join()}][${kept.join()}]`;
      },
    );
    const key = `${name}(${types.join()})${JSON.stringify(attrs, numbersInFull)}`;
    const { executable, results } = this.#programs.get(key, () => {
      const trace = new Trace(name, () => {
        throw new Error('a kernel captures nothing');
      });
      const values = mapInputs(inputs, ({ dataId, shape, dtype }) => {
        const kept = { shape: this.dataOf(dataId).shape, dtype: numericDtype(dtype) };
        return trace.hlo.reshape(trace.parameter(kept), shape);
      });
      return trace.finish(asArray(emit(trace.hlo, values, attrs)));
    });
    const given = Object.values(inputs).filter((input?: tf.TensorInfo) => input !== undefined);
    const held = retainAll(given, ({ dataId }) => this.retainData(this.dataOf(dataId)));
    try {
      const outputs = executable.executeSync(held.map(({ buffer }) => buffer));
      return outputs.map((buffer, index) => ({
        spec: results[index]!,
        shared: new SharedBuffer(buffer),
      }));
    } finally {
      for (const shared of held) shared.release();
    }
  }

  override write(values: tf.BackendValues, shape: number[], dtype: tf.DataType): tf.DataId {
    return this.hold({ shape, dtype }, contentOf(values, dtype)).dataId;
  }

  override move(
    dataId: tf.DataId,
    values: tf.BackendValues,
    shape: number[],
    dtype: tf.DataType,
    refCount: number,
  ): void {
    this.#data.set(dataId, { shape, dtype, refCount, content: contentOf(values, dtype) });
  }

  override async read(dataId: tf.DataId): Promise<tf.BackendValues> {
    const data = this.dataOf(dataId);
    if (data.content.kind !== 'device') return this.#valuesOf(data);
    const held = data.content.shared.retain();
    try {
      return valuesOfBuffer(await held.toHost());
    } finally {
      held.release();
    }
  }

  override readSync(dataId: tf.DataId): tf.BackendValues {
    return this.#valuesOf(this.dataOf(dataId));
  }

  /** Where the elements lie in this process's memory, row-major; undefined where they do not. */
  async addressOf({ dataId }: tf.TensorInfo): Promise<bigint | undefined> {
    const { content } = this.dataOf(dataId);
    return content.kind === 'device' ? content.shared.address() : undefined;
  }

  #valuesOf(data: TensorData): tf.BackendValues {
    const { content } = data;
    switch (content.kind) {
      case 'host':
        return content.values;
      case 'strings':
        return content.values;
      case 'device':
        return valuesOfBuffer(content.shared.toHostSync());
      case 'traced':
        throw readInTrace(data, content.op, content.trace);
    }
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

  /** Forgets its tensors: tfjs calls it when it resets, after which the same backend may be used again. */
  override dispose(): void {
    this.#data = new tf.DataStorage(this, tf.engine());
  }
}

/**
 * Looks, outside of a trace, at values that the program could not refuse.
 *
 * @throws EngineError where they make no sense.
 */
export type Check<Inputs, Attrs> = (
  inputs: { readonly [K in keyof Inputs]: tf.TensorInfo },
  attrs: Attrs,
  read: (input: tf.TensorInfo) => ArrayLike<number>,
) => void;

/** Registers a tfjs kernel that emits its operations with `emit`. */

export function kernel<Inputs, Attrs extends object = object>(
  kernelName: string,
  emit: (hlo: HloBuilder, inputs: KernelInputs<Inputs>, attrs: Attrs) => Value | readonly Value[],
  check?: Check<Inputs, Attrs>,
): tf.KernelConfig {
  return customKernel(kernelName, (backend, inputs, attrs) => {
    if (backend.trace === undefined) {
      const read = ({ dataId }: tf.TensorInfo) => backend.readSync(dataId) as HostValues;
      check?.(inputs as { [K in keyof Inputs]: tf.TensorInfo }, attrs as Attrs, read);
    }
    return backend.runKernel(kernelName, inputs, attrs, emit as unknown as Emit);
  });
}

/**
 * Registers a kernel whose result may be its input with another shape: outside of a trace, where `shapeOf` gives one,
 * both tensors hold the same elements. In a trace, and else, it emits as usual.
 */

export function viewKernel<Attrs extends object>(
  kernelName: string,
  shapeOf: (input: tf.TensorInfo, attrs: Attrs) => readonly number[] | undefined,
  emit: (hlo: HloBuilder, input: Value, attrs: Attrs) => Value,
): tf.KernelConfig {
  return customKernel(kernelName, (backend, inputs, attrs) => {
    const [input] = Object.values(inputs) as [tf.TensorInfo];
    const shape =
      backend.trace === undefined || input.dtype === 'string'
        ? shapeOf(input, attrs as Attrs)
        : undefined;
    if (shape !== undefined) return [backend.share(input, shape)];
    return backend.runKernel(kernelName, [input], attrs, (hlo, [x]) =>
      emit(hlo, x!, attrs as Attrs),
    );
  });
}

/** Registers a kernel that runs in JavaScript on the host, and not in a trace; `why` completes "since ...". */
export function hostKernel(kernelName: string, why: string): tf.KernelConfig {
  return customKernel(kernelName, (backend, inputs, attrs) =>
    backend.runHostKernel(kernelName, inputs, attrs, why),
  );
}

/** Registers a kernel that sees the backend itself. */
export function customKernel(
  kernelName: string,
  run: (backend: XlaBackend, inputs: tf.NamedTensorInfoMap, attrs: object) => tf.TensorInfo[],
): tf.KernelConfig {
  const config: tf.KernelConfig = {
    kernelName,
    backendName: BACKEND_NAME,
    kernelFunc: ({ inputs, attrs, backend }) => {
      assert(backend instanceof XlaBackend);
      const results = run(backend, inputs, attrs ?? {});
      return results.length === 1 && !MULTIPLE_RESULTS.has(kernelName) ? results[0]! : results;
    },
  };
  tf.registerKernel(config);
  return config;
}

/** Kernels whose callers expect an array even of one result. */
const MULTIPLE_RESULTS = new Set<string>([tf.Unpack, tf.SplitV, tf.RaggedGather]);

function mapInputs(
  inputs: TensorInfos,
  change: (info: tf.TensorInfo) => Value,
): Record<string, Value> & readonly Value[] {
  return mapNested(inputs, 'dtype', change) as Record<string, Value> & readonly Value[];
}

function asArray(values: Value | readonly Value[]): readonly Value[] {
  return Array.isArray(values) ? (values as readonly Value[]) : [values as Value];
}

function specOf({ shape, elementType }: Value): TensorSpec {
  return { shape, dtype: heldDtypeOf(elementType) };
}

function numericSpec({ shape, dtype }: Pick<TensorData, 'shape' | 'dtype'>): TensorSpec {
  return { shape, dtype: numericDtype(dtype) };
}

function contentOf(values: tf.BackendValues, dtype: tf.DataType): Content {
  if (dtype === 'string') return { kind: 'strings', values: values as Uint8Array[] };
  const array = tf.util.convertBackendValuesAndArrayBuffer(values, dtype) as HostValues;
  return { kind: 'host', values: hostValues(array, dtype) };
}

/** Complex numbers come as their bits. */
function valuesOfBuffer(array: HostArray): HostValues {
  return array instanceof BigUint64Array ? new Float32Array(array.buffer) : (array as HostValues);
}

/** JSON writes null for what is not finite, and 0 for -0: programs that differ in it must not be mixed up. */
function numbersInFull(_key: string, value: unknown): unknown {
  if (typeof value !== 'number' || (Number.isFinite(value) && !Object.is(value, -0))) return value;
  return Object.is(value, -0) ? '-0' : String(value);
}

function readInTrace(data: TensorData, op: string, trace: Trace): EngineError {
  return new EngineError(
    'XLA_READ_IN_TRACE',
    `The result of ${op} [${data.shape.join()}] was read while ${trace.name} was being compiled, when no tensor has ` +
      'a value yet. Compute with tensor ops instead (tf.where for a choice), or return the tensor and read it after ' +
      'the call.',
  );
}

function hostOpInTrace(
  name: string,
  why: string,
  { op, trace }: Extract<Content, { kind: 'traced' }>,
  shape: readonly number[],
): EngineError {
  return new EngineError(
    'XLA_HOST_OP_IN_TRACE',
    `${name} was called with the result of ${op} [${shape.join()}] while ${trace.name} was being compiled, but it ` +
      `runs on the host, since ${why}. Call it outside of the compiled function and pass its result as an argument, ` +
      'or compute with shapes that are known beforehand (tf.where, tf.mul with a mask, tf.topk).',
  );
}
