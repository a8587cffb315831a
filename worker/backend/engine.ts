import { availableParallelism } from 'node:os';
import { join } from 'node:path';

import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';

import { openPjrtClient } from '../pjrt/client.ts';
import type { XlaFlags } from '../pjrt/compile-options.ts';
import type { ExecutableMemory } from '../pjrt/executable.ts';
import { ensurePlugin } from '../pjrt/plugin.ts';
import { leavesOf, withLeaves } from '../tree.ts';
import type { TensorTree } from '../tree.ts';
import { BACKEND_NAME, XlaBackend } from './backend.ts';
import { hostValues, numericDtype } from './dtypes.ts';
import type { HostValues, NumericDtype } from './dtypes.ts';
import { EngineError } from './errors.ts';
import { registerGradients } from './gradients.ts';
import { CompiledProgram, signatureOf, Trace } from './jit.ts';
import { openProgramCache } from './program-cache.ts';
import type { ProgramCache } from './program-cache.ts';
import './kernels/register.ts';

export type { TensorTree };

/** What computes a training step. Its tensors are ordinary tfjs tensors: `await t.data()` reads, `dispose` frees. */
export interface Engine {
  readonly name: 'xla' | 'cpu';
  /** Where it computes, e.g. `cpu` or `cuda`. */
  readonly platform: string;
  /** Host data, copied, to a device tensor. The dtype is that of the array unless given: Uint8Array means bool. */
  upload(data: HostValues, shape: readonly number[], dtype?: NumericDtype): tf.Tensor;
  /**
   * `fn` as one program per signature (tree structure, shapes and dtypes of its arguments). `fn` must be pure: tensors
   * in, tensors out, no reading of values. Arguments listed in `donate` are disposed by the call, and their memory
   * holds results where shapes fit.
   */
  compile<A extends readonly TensorTree[], R extends TensorTree>(
    fn: (...args: A) => R,
    options: CompileOptions,
  ): CompiledFunction<A, R>;
  /** Frees the devices. Tensors that are left can no longer be read. Idempotent. */
  close(): void;
}

export interface CompileOptions {
  /** For messages and profiles. */
  readonly name: string;
  readonly donate?: readonly number[];
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
  /** Compiles for these arguments without running. Nothing is donated. The cpu engine has nothing to report. */
  lower(...args: A): Promise<LoweredProgram | undefined>;
}

export interface LoweredProgram {
  readonly mlir: string;
  /** Floating-point operations of the products of matrices and convolutions in one run. */
  readonly flops: number;
  readonly memory: ExecutableMemory;
}

export interface EngineOptions {
  readonly engine: 'xla' | 'cpu';
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
}

/**
 * Opens the engine that runs tfjs functions. It becomes tfjs's current backend.
 *
 * @throws EngineError `XLA_ALREADY_OPEN`; PluginError and PjrtError of the plugin.
 */
export async function openEngine(options: EngineOptions): Promise<Engine> {
  registerGradients();
  return options.engine === 'cpu' ? openCpuEngine() : openXlaEngine(options);
}

async function openXlaEngine({
  pluginPath,
  cacheDir,
  flags = {},
  threads,
}: EngineOptions): Promise<Engine> {
  // The type leaves out that there may be none.
  const registered: unknown = tf.findBackendFactory(BACKEND_NAME);
  if (registered !== null) {
    throw new EngineError(
      'XLA_ALREADY_OPEN',
      'This process has an xla engine open already, and tfjs knows one backend by that name. Close it first.',
    );
  }
  // The plugin reads this variable when the client is made, and takes no option for it.
  if (threads !== undefined) process.env['NPROC'] = String(threads);
  const plugin = await ensurePlugin({ name: 'cpu', cacheDir: join(cacheDir, 'pjrt'), pluginPath });
  const client = await openPjrtClient({ pluginPath: plugin });
  const cache = await openProgramCache(client, {
    cacheDir,
    pluginPath: plugin,
    flags,
    threads: threads ?? availableParallelism(),
  });
  const backend = new XlaBackend(client, (mlir) => client.compile(mlir, { flags }));
  const closers: (() => void)[] = [];
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
    upload(data, shape, dtype = dtypeOfArray(data)) {
      checkOpen('upload');
      const spec = { shape, dtype };
      const shared = backend.upload(hostValues(data, dtype), spec);
      return tensorOf(backend.hold(spec, { kind: 'device', shared }), backend);
    },
    compile<A extends readonly TensorTree[], R extends TensorTree>(
      fn: (...args: A) => R,
      compileOptions: CompileOptions,
    ) {
      const jitted = new JittedFunction(fn, compileOptions, backend, (mlir) => cache.compile(mlir));
      closers.push(() => {
        jitted.close();
      });
      const call = (...args: A) => {
        checkOpen(compileOptions.name);
        return jitted.call(args);
      };
      return Object.assign(call, { lower: (...args: A) => jitted.lower(args) });
    },
    close() {
      if (isClosed) return;
      isClosed = true;
      for (const close of closers) close();
      tf.removeBackend(BACKEND_NAME);
      client.close();
    },
  };
}

/** A function with the programs it was compiled to. */
class JittedFunction<A extends readonly TensorTree[], R extends TensorTree> {
  readonly #fn: (...args: A) => R;
  readonly #name: string;
  readonly #donate: readonly number[];
  readonly #backend: XlaBackend;
  readonly #compile: ProgramCache['compile'];
  readonly #programs = new Map<string, { program: CompiledProgram; results: R }>();

  constructor(
    fn: (...args: A) => R,
    { name, donate = [] }: CompileOptions,
    backend: XlaBackend,
    compile: ProgramCache['compile'],
  ) {
    this.#fn = fn;
    this.#name = name;
    this.#donate = donate;
    this.#backend = backend;
    this.#compile = compile;
  }

  async call(args: A): Promise<R> {
    const backend = this.#backend;
    const leaves = this.#leaves(args);
    const donated = this.#donatedLeaves(leaves);
    const { program, results } = this.#program(args, leaves);
    const tensors = leaves.map(([, tensor]) => tensor);
    const inputs = tensors.map(({ dataId }) => backend.retain(dataId));
    // From here on the call holds the buffers, whatever the caller does to the tensors.
    for (const index of donated) tensors[index]!.dispose();
    const consumable = await Promise.all(
      donated.map(async (index) => !(await inputs[index]!).isShared),
    );
    const outputs = await program.run(
      inputs,
      donated.filter((_, i) => consumable[i]),
    );
    const made = outputs.map((shared, index) =>
      tensorOf(backend.hold(program.traced.results[index]!, { kind: 'device', shared }), backend),
    );
    return withLeaves(results, made);
  }

  async lower(args: A): Promise<LoweredProgram> {
    const { program } = this.#program(args, this.#leaves(args));
    const executable = await program.executable;
    return {
      mlir: program.traced.mlir,
      flops: program.traced.flops,
      memory: executable.memory(),
    };
  }

  close(): void {
    for (const { program } of this.#programs.values()) program.close();
    this.#programs.clear();
  }

  #leaves(args: A): [path: string, tensor: tf.Tensor][] {
    const { trace } = this.#backend;
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

  #program(args: A, leaves: readonly (readonly [string, tf.Tensor])[]) {
    const signature = signatureOf(leaves);
    let entry = this.#programs.get(signature);
    if (entry === undefined) {
      entry = this.#traceProgram(args, leaves);
      this.#programs.set(signature, entry);
      // One that failed to compile may be tried again.
      entry.program.executable.catch(() => this.#programs.delete(signature));
    }
    return entry;
  }

  #traceProgram(args: A, leaves: readonly (readonly [string, tf.Tensor])[]) {
    const backend = this.#backend;
    const trace = new Trace(this.#name, (values, spec) => backend.upload(values, spec));
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
          const values = tensors.map(({ dataId }) => trace.valueOf(backend.dataOf(dataId)));
          const traced = trace.finish(values, this.#donatedLeaves(leaves));
          for (const tensor of new Set(tensors)) {
            if (!placeholders.includes(tensor)) tensor.dispose();
          }
          return { program: new CompiledProgram(traced, this.#compile(traced.mlir)), results };
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

async function openCpuEngine(): Promise<Engine> {
  await tf.setBackend('cpu');
  // Else its first use prints an advertisement.
  (tf.backend() as unknown as { firstUse: boolean }).firstUse = false;
  return {
    name: 'cpu',
    platform: 'javascript',
    upload(data, shape, dtype = dtypeOfArray(data)) {
      const values = hostValues(data, dtype).slice();
      return withBackend('cpu', () => tf.tensor(values, [...shape], dtype));
    },
    compile<A extends readonly TensorTree[], R extends TensorTree>(
      fn: (...args: A) => R,
      { donate = [] }: CompileOptions,
    ) {
      const call = (...args: A) => {
        const given = leavesOf(args as TensorTree).map(([, tensor]) => tensor);
        const results = withBackend('cpu', () =>
          tf.tidy(() => {
            const made = fn(...args);
            const leaves = leavesOf(made).map(([, tensor]) =>
              given.includes(tensor) ? tf.clone(tensor) : tensor,
            );
            return withLeaves(made, leaves) as tf.TensorContainer;
          }),
        ) as R;
        for (const index of donate) {
          for (const [, tensor] of leavesOf(args[index] as TensorTree)) tensor.dispose();
        }
        return Promise.resolve(results);
      };
      return Object.assign(call, { lower: () => Promise.resolve(undefined) });
    },
    close() {
      // The cpu backend holds nothing beyond its tensors.
    },
  };
}

/** Runs `body` with tfjs's current backend switched; backends that are initialised switch at once. */
function withBackend<T>(name: string, body: () => T): T {
  const before = tf.getBackend();
  if (before === name) return body();
  void tf.setBackend(name);
  try {
    return body();
  } finally {
    void tf.setBackend(before);
  }
}

function tensorOf(info: tf.TensorInfo, backend: XlaBackend): tf.Tensor {
  return tf.engine().makeTensorFromTensorInfo(info, backend);
}

function dtypeOfArray(data: HostValues): NumericDtype {
  if (data instanceof Float32Array) return 'float32';
  return data instanceof Int32Array ? 'int32' : 'bool';
}
