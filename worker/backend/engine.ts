import { join } from 'node:path';

import * as tf from '@tensorflow/tfjs-core';

import type { XlaFlags } from '../pjrt/compile-options.ts';
import type { ExecutableMemory, PjrtExecutable } from '../pjrt/executable.ts';
import { ensurePlugin } from '../pjrt/plugin.ts';
import { numDevicesOf, REPLICATED } from '../stablehlo/sharding.ts';
import type { Product } from '../stablehlo/products.ts';
import type { Mesh } from '../stablehlo/sharding.ts';
import { leavesOf, withLeaves } from '../tree.ts';
import type { TensorTree } from '../tree.ts';
import { BACKEND_NAME, XlaBackend } from './backend.ts';
import { openCpuEngine } from './cpu-engine.ts';
import { withBackend } from './current-backend.ts';
import { retainAll } from './data.ts';
import type { TensorData } from './data.ts';
import { openDevices } from './devices.ts';
import type { MeshAxes } from './devices.ts';
import { dtypeOfArray, hostValues, numericDtype } from './dtypes.ts';
import type { HostValues, NumericDtype } from './dtypes.ts';
import { EagerPrograms } from './eager-programs.ts';
import { EngineError } from './errors.ts';
import { registerGradients } from './gradients.ts';
import { CompiledProgram, signatureOf, Trace } from './jit.ts';
import type { Precision, TracedProgram } from './jit.ts';
import { openProgramCache } from './program-cache.ts';
import { ProgramLayout } from './sharded-program.ts';
import type { CompileShardings } from './sharded-program.ts';
import { openTensorflowEngine } from './tensorflow-engine.ts';
import './kernels/register.ts';

export type { TensorTree };

/** xla compiles through PJRT; cpu and tensorflow run op by op, in JavaScript and in TensorFlow's library. */
export type EngineName = 'xla' | 'cpu' | 'tensorflow';

/** What computes a training step. Its tensors are ordinary tfjs tensors: `await t.data()` reads, `dispose` frees. */
export interface Engine {
  readonly name: EngineName;
  /** Where it computes, e.g. `cpu` or `cuda`. */
  readonly platform: string;
  /** How its devices are arranged; without axes, or all of size 1, where it has one. */
  readonly mesh: Mesh;
  /** Host data, copied, to a device tensor. The dtype is that of the array unless given: Uint8Array means bool. */
  upload(data: HostValues, shape: readonly number[], dtype?: NumericDtype): tf.Tensor;
  /**
   * `fn` as one program per signature (tree structure, shapes and dtypes of its arguments). `fn` must be pure: tensors
   * in, tensors out, no reading of values. What it draws with tfjs's random ops is drawn once, while it is traced; a
   * variable that it reads without being given it is a constant, and the function is traced again when another value
   * was assigned. Arguments listed in `donate` are disposed by the call, and their memory
   * holds results where shapes fit; where a clone of one of them is still there, all results get memory of their own.
   */
  compile<A extends readonly TensorTree[], R extends TensorTree>(
    fn: (...args: A) => R,
    options: CompileOptions,
  ): CompiledFunction<A, R>;
  /**
   * Where a tensor's elements lie in this process's memory, row-major, for who reads them without a copy; undefined
   * where they lie elsewhere. They stay there, and stay what they are, until the tensor is disposed.
   */
  addressOf(tensor: tf.Tensor): Promise<bigint | undefined>;
  /** Frees the devices. Tensors that are left can no longer be read. Idempotent. */
  close(): void;
}

export interface CompileOptions {
  /** For messages and profiles. */
  readonly name: string;
  readonly donate?: readonly number[];
  /** How arguments and results are spread over the mesh; a copy on every device unless given. */
  readonly shardings?: CompileShardings;
}

export interface CompiledFunction<A extends readonly TensorTree[], R extends TensorTree> {
  /**
   * Resolves when the results are computed. They are new tensors of the caller's, also where `fn` hands an argument
   * through.
   *
   * @throws EngineError `XLA_READ_IN_TRACE`, `XLA_TENSOR_DISPOSED`, `XLA_DONATED_TWICE`, `XLA_TENSOR_LEAKED`,
   * `XLA_CALL_IN_TRACE`; PjrtError of the compiler and the device.
   */
  (...args: A): Promise<R>;
  /** Compiles for these arguments without running. Nothing is donated. Engines that run op by op have nothing to report. */
  lower(...args: A): Promise<LoweredProgram | undefined>;
  /**
   * What the program is, without compiling it; arguments may be without values. Undefined on engines that run op by op.
   */
  trace(...args: A): ProgramForm | undefined;
  /** Frees the compiled programs, once the calls under way have ended; later ones reject with `XLA_CLOSED`. Idempotent. */
  close(): void;
}

export interface LoweredProgram {
  readonly mlir: string;
  /** Floating-point operations of the products of matrices and convolutions in one run, of all devices together. */
  readonly flops: number;
  /** The products of matrices alone, found out when they are asked for. */
  readonly products: () => readonly Product[];
  /** Of each device. */
  readonly memory: ExecutableMemory;
}

/** A program that is not compiled, of all devices together. */
export interface ProgramForm {
  /** As of {@link LoweredProgram}. */
  readonly flops: number;
  /** Results and what is kept on the way, at most at a time: an estimate. */
  readonly bytes: number;
  /** What comes out, by path. */
  readonly results: readonly {
    readonly path: string;
    readonly shape: readonly number[];
    readonly dtype: tf.DataType;
  }[];
}

export interface EngineOptions {
  readonly engine: EngineName;
  /** A PJRT plugin to load instead of the installed CPU one. */
  readonly pluginPath?: string;
  /** Folder for plugins and compiled programs. */
  readonly cacheDir: string;
  /** Flags of XLA for every program. */
  readonly flags?: XlaFlags;
  /**
   * Size of the CPU plugin's thread pool, at least 4; the cores unless given. Large products are cut by it: results
   * have the same bits only for the same number.
   */
  readonly threads?: number;
  /**
   * How many devices run the programs that `compile` makes, together: 1 unless given. A CPU can be any number of them;
   * `all` counts what the plugin has. Sums have the same bits only for the same mesh.
   */
  readonly devices?: number | 'all';
  /** How the devices are arranged: the axes that shardings name. Along one axis, `data`, unless given. */
  readonly mesh?: MeshAxes;
  /** Of the programs that `compile` makes; float32 unless given, and on the engines that run op by op. */
  readonly precision?: Precision;
  /** Share of each GPU's memory that the engine takes at the start, between 0 and 1; 0.75 unless given. */
  readonly memoryFraction?: number;
}

/**
 * Opens the engine that runs tfjs functions. It becomes tfjs's current backend.
 *
 * @throws EngineError `XLA_ALREADY_OPEN`, `XLA_MESH_INVALID`, `XLA_TOO_FEW_DEVICES`, `XLA_TOO_FEW_THREADS`; PluginError and PjrtError of the plugin; TensorflowError
 * `TENSORFLOW_NOT_INSTALLED`.
 */
export async function openEngine(options: EngineOptions): Promise<Engine> {
  registerGradients();
  switch (options.engine) {
    case 'cpu':
      return openCpuEngine();
    case 'tensorflow':
      return openTensorflowEngine(options);
    case 'xla':
      return openXlaEngine(options);
  }
}

/** The file of the plugin that the xla engine loads; fetched where it is not there. */
export function enginePlugin({
  cacheDir,
  pluginPath,
}: {
  readonly cacheDir: string;
  readonly pluginPath?: string | undefined;
}): Promise<string> {
  return ensurePlugin({ name: 'cpu', cacheDir: join(cacheDir, 'pjrt'), pluginPath });
}

async function openXlaEngine({
  pluginPath,
  cacheDir,
  flags = {},
  threads: wantedThreads,
  devices = 1,
  mesh: axes = { data: 'rest' },
  precision = 'float32',
  memoryFraction,
}: EngineOptions): Promise<Engine> {
  // The type leaves out that there may be none.
  const registered: unknown = tf.findBackendFactory(BACKEND_NAME);
  if (registered !== null) {
    throw new EngineError(
      'XLA_ALREADY_OPEN',
      'This process has an xla engine open already, and tfjs knows one backend by that name. Close it first.',
    );
  }
  const plugin = await enginePlugin({ cacheDir, pluginPath });
  const deviceOptions = {
    pluginPath: plugin,
    devices,
    axes,
    threads: wantedThreads,
    memoryFraction,
  };
  const { client, mesh, threads } = await openDevices(deviceOptions);
  const numDevices = numDevicesOf(mesh);
  const deviceIndices = Array.from({ length: numDevices }, (_, index) => index);
  const cache = await openProgramCache(client, {
    cacheDir,
    devices: deviceOptions,
    flags,
    threads,
    deviceIndices,
  });
  const backend = new XlaBackend(client, new EagerPrograms((mlir) => cache.compileOp(mlir)), mesh);
  const functions = new Set<{ close(): void }>();
  tf.registerBackend(BACKEND_NAME, () => backend);
  await tf.setBackend(BACKEND_NAME);

  let isClosed = false;
  const checkOpen = (what: string): void => {
    if (!isClosed) return;
    throw new EngineError('XLA_CLOSED', `${what} was called after the engine was closed.`);
  };
  return {
    name: 'xla',
    platform: client.platformName,
    mesh,
    upload(data, shape, dtype = dtypeOfArray(data)) {
      checkOpen('upload');
      const spec = { shape, dtype };
      const values = hostValues(data, dtype);
      // Of several devices, those that get it are known when a program takes it.
      if (numDevices > 1)
        return tensorOf(backend.hold(spec, { kind: 'host', values: values.slice() }), backend);
      const shared = backend.upload(values, spec);
      return tensorOf(backend.hold(spec, { kind: 'device', shared }), backend);
    },
    compile<A extends readonly TensorTree[], R extends TensorTree>(
      fn: (...args: A) => R,
      compileOptions: CompileOptions,
    ) {
      const compile = ({ mlir, bytes }: TracedProgram) =>
        cache.compile(mlir, () => bytes() >= LARGE_PROGRAM_BYTES);
      const jitted = new JittedFunction(fn, { ...compileOptions, precision }, backend, compile);
      functions.add(jitted);
      const call = (...args: A) => {
        checkOpen(compileOptions.name);
        return jitted.call(args);
      };
      return Object.assign(call, {
        lower: (...args: A) => jitted.lower(args),
        trace: (...args: A) => jitted.trace(args),
        close() {
          functions.delete(jitted);
          jitted.close();
        },
      });
    },
    addressOf(tensor) {
      checkOpen('addressOf');
      return backend.addressOf(tensor);
    },
    close() {
      if (isClosed) return;
      isClosed = true;
      for (const jitted of functions) jitted.close();
      tf.removeBackend(BACKEND_NAME);
      client.close();
    },
  };
}

/** Programs that a function keeps, one a signature; the least recently used goes first. */
const MAX_PROGRAMS = 64;
/** Of results and what is kept on the way: programs that take so much are compiled in a process of their own. */
const LARGE_PROGRAM_BYTES = 32 * 2 ** 20;

/** Begins the signature of a program whose results take the memory of donated arguments. */
const IN_PLACE = 'in place ';

type Compile = (traced: TracedProgram) => Promise<PjrtExecutable>;

/** A function with the programs it was compiled to. */
class JittedFunction<A extends readonly TensorTree[], R extends TensorTree> {
  readonly #fn: (...args: A) => R;
  readonly #name: string;
  readonly #donate: readonly number[];
  readonly #precision: Precision;
  readonly #layout: ProgramLayout | undefined;
  readonly #backend: XlaBackend;
  readonly #compile: Compile;
  readonly #programs = new Map<string, { program: CompiledProgram; results: R }>();
  #isClosed = false;

  constructor(
    fn: (...args: A) => R,
    {
      name,
      donate = [],
      shardings = {},
      precision,
    }: CompileOptions & { readonly precision: Precision },
    backend: XlaBackend,
    compile: Compile,
  ) {
    this.#fn = fn;
    this.#name = name;
    this.#donate = donate;
    this.#precision = precision;
    const { mesh } = backend;
    this.#layout = numDevicesOf(mesh) > 1 ? new ProgramLayout(mesh, name, shardings) : undefined;
    this.#backend = backend;
    this.#compile = compile;
  }

  async call(args: A): Promise<R> {
    const backend = this.#backend;
    const leaves = this.#leaves(args);
    const donated = this.#donatedLeaves(leaves);
    const { program, results } = this.#program(args, leaves, this.#aliased(leaves, donated));
    const tensors = leaves.map(([, tensor]) => tensor);
    const spread = program.traced.shardings?.parameters;
    const inputs = retainAll(tensors, (tensor, index) => backend.retain(tensor, spread?.[index]));
    // From here on the call holds the buffers, whatever the caller does to the tensors.
    for (const index of donated) tensors[index]!.dispose();
    const outputs = await program.run(
      inputs,
      donated.filter((index) => !inputs[index]!.isShared),
    );
    const made = outputs.map((shared, index) =>
      tensorOf(backend.hold(program.traced.results[index]!, { kind: 'device', shared }), backend),
    );
    return withLeaves(results, made);
  }

  async lower(args: A): Promise<LoweredProgram> {
    const leaves = this.#leaves(args);
    const { program } = this.#program(
      args,
      leaves,
      this.#aliased(leaves, this.#donatedLeaves(leaves)),
    );
    const memory = await program.use((executable) => executable.memory());
    const { mlir, flops, products } = program.traced;
    return { mlir, flops, products, memory };
  }

  trace(args: A): ProgramForm {
    const { traced, results, release } = this.#traced(args, this.#leaves(args), []);
    release();
    const { flops, bytes } = traced;
    const forms = leavesOf(results).map(([path, { shape, dtype }]) => ({ path, shape, dtype }));
    return { flops, bytes: bytes(), results: forms };
  }

  close(): void {
    this.#isClosed = true;
    for (const { program } of this.#programs.values()) program.close();
    this.#programs.clear();
  }

  #leaves(args: A): [path: string, tensor: tf.Tensor][] {
    const { trace } = this.#backend;
    if (this.#isClosed) {
      throw new EngineError('XLA_CLOSED', `${this.#name} was called after it was closed.`);
    }
    if (trace !== undefined) {
      throw new EngineError(
        'XLA_CALL_IN_TRACE',
        `${this.#name} was called while ${trace.name} was being compiled. Call the plain function there.`,
      );
    }
    const leaves = leavesOf(args);
    for (const [path, tensor] of leaves) {
      if (!tensor.isDisposed) continue;
      throw new EngineError(
        'XLA_TENSOR_DISPOSED',
        `Argument ${path} of ${this.#name} was disposed before the call, or donated to an earlier one. Pass the ` +
          "earlier call's result instead.",
      );
    }
    return leaves;
  }

  /** Indices of the leaves below the donated arguments. */
  #donatedLeaves(leaves: readonly (readonly [string, tf.Tensor])[]): number[] {
    const donated = [...leaves.keys()].filter((index) =>
      this.#donate.includes(Number(leaves[index]![0].split('/', 1)[0])),
    );
    const uses = new Map<tf.DataId, number>();
    for (const [, { dataId }] of leaves) uses.set(dataId, (uses.get(dataId) ?? 0) + 1);
    for (const index of donated) {
      const [path, { dataId }] = leaves[index]!;
      if (uses.get(dataId) === 1) continue;
      throw new EngineError(
        'XLA_DONATED_TWICE',
        `Argument ${path} of ${this.#name} is donated and passed in another place too. Pass a copy, or do not donate it.`,
      );
    }
    return donated;
  }

  /**
   * Which of the donated leaves give their memory to results: all or, where somebody else holds one, none. The runtime
   * would copy what it may not take, which costs more than a program that writes elsewhere.
   */
  #aliased(
    leaves: readonly (readonly [string, tf.Tensor])[],
    donated: readonly number[],
  ): readonly number[] {
    const isHeld = (index: number): boolean => this.#backend.refCount(leaves[index]![1].dataId) > 1;
    return donated.some(isHeld) ? [] : donated;
  }

  #program(args: A, leaves: readonly (readonly [string, tf.Tensor])[], aliased: readonly number[]) {
    const own = signatureOf(args);
    const isInPlace = aliased.length > 0;
    const signature = isInPlace ? IN_PLACE + own : own;
    const entry =
      this.#current(signature) ??
      this.#makeProgram(signature, () => {
        // The operations are the same, whoever gives their memory.
        const known = this.#current(isInPlace ? own : IN_PLACE + own);
        if (known === undefined) return this.#traced(args, leaves, aliased);
        return { traced: known.program.traced.donating(aliased), results: known.results };
      });
    this.#programs.delete(signature);
    this.#programs.set(signature, entry);
    const [oldest] = this.#programs;
    if (this.#programs.size > MAX_PROGRAMS && oldest !== undefined) {
      this.#programs.delete(oldest[0]);
      oldest[1].program.close();
    }
    return entry;
  }

  /** The program of a signature, unless a variable that it captured has been assigned to since. */
  #current(signature: string): { program: CompiledProgram; results: R } | undefined {
    const entry = this.#programs.get(signature);
    if (entry === undefined) return undefined;
    const { variables } = entry.program.traced;
    if ([...variables].every(([variable, dataId]) => variable.dataId === dataId)) return entry;
    this.#programs.delete(signature);
    entry.program.close();
    return undefined;
  }

  #makeProgram(
    signature: string,
    trace: () => { traced: TracedProgram; results: R },
  ): { program: CompiledProgram; results: R } {
    const { traced, results } = trace();
    // One that failed to compile may be tried again.
    const program = new CompiledProgram(traced, this.#compile(traced), () => {
      if (this.#programs.get(signature)?.program === program) this.#programs.delete(signature);
    });
    return { program, results };
  }

  /** @param release lets go of what the program captured, where it is not compiled */
  #traced(
    args: A,
    leaves: readonly (readonly [string, tf.Tensor])[],
    aliased: readonly number[],
  ): { traced: TracedProgram; results: R; release: () => void } {
    const backend = this.#backend;
    const layout = this.#layout;
    const retain = (data: TensorData) => backend.retainData(data, layout && REPLICATED);
    const trace = new Trace(this.#name, retain, {
      builder: backend.builderFor(this.#precision),
    });
    const placeholders = leaves.map(([, { shape, dtype }]) => {
      const spec = { shape, dtype: numericDtype(dtype) };
      const value = trace.parameter(spec);
      return tensorOf(
        backend.hold(spec, { kind: 'traced', trace, value, op: 'an argument' }),
        backend,
      );
    });
    try {
      return withBackend(BACKEND_NAME, () =>
        backend.during(trace, () => {
          const results = tf.tidy(
            () =>
              this.#fn(
                ...(withLeaves(args as TensorTree, placeholders) as unknown as A),
              ) as tf.TensorContainer,
          ) as R;
          const tensors = leavesOf(results).map(([, tensor]) => tensor);
          const values = tensors.map((tensor) => backend.valueIn(trace, tensor));
          const shardings = layout?.of(leaves, leavesOf(results));
          const traced = trace.finish(values, aliased, shardings);
          for (const tensor of new Set(tensors)) {
            if (!placeholders.includes(tensor)) tensor.dispose();
          }
          const release = (): void => {
            trace.abandon();
          };
          return { traced, results, release };
        }),
      );
    } catch (error) {
      trace.abandon();
      throw error;
    } finally {
      for (const placeholder of placeholders) placeholder.dispose();
    }
  }
}

function tensorOf(info: tf.TensorInfo, backend: XlaBackend): tf.Tensor {
  return tf.engine().makeTensorFromTensorInfo(info, backend);
}
