import { PjrtBuffer } from './buffer.ts';
import { type Failure, PjrtError } from './c-api.ts';
import { type ElementType, elementTypeOf } from './element-type.ts';
import type { ClientHandles } from './handles.ts';
import { readNamedValues } from './named-values.ts';
import {
  addressOf,
  bytesAt,
  callDeleter,
  PJRT_Executable_GetCompiledMemoryStats_Args,
  PJRT_Executable_GetCostAnalysis_Args,
  PJRT_Executable_NumOutputs_Args,
  PJRT_Executable_OutputDimensions_Args,
  PJRT_Executable_OutputElementTypes_Args,
  PJRT_Executable_Serialize_Args,
  PJRT_ExecuteOptions,
  PJRT_LoadedExecutable_Execute_Args,
  PJRT_LoadedExecutable_GetExecutable_Args,
  wordsAt,
} from './structs.ts';

/** What the compiler estimates one execution to cost; a figure it does not give is undefined. */
export interface ExecutableCost {
  readonly flops: number | undefined;
  readonly transcendentals: number | undefined;
  readonly bytesAccessed: number | undefined;
}

/** Device memory of one execution in bytes; `alias` is output memory that donated arguments provide. */
export interface ExecutableMemory {
  readonly generatedCodeBytes: number;
  readonly argumentBytes: number;
  readonly outputBytes: number;
  readonly aliasBytes: number;
  readonly tempBytes: number;
  readonly peakBytes: number;
}

/** The shape and type of one output. */
export interface OutputSpec {
  readonly dims: readonly number[];
  readonly type: ElementType;
}

export interface ExecuteOptions {
  /**
   * Positions of arguments that the caller gives up: they are consumed, even when the execution fails, and where the module aliases them to outputs
   * (`tf.aliasing_output`, `jax.buffer_donor`) their memory becomes the outputs'. All others are left as they are.
   */
  readonly donate?: readonly number[];
}

// A start that takes longer stalls the event loop.
const MAX_HELD_MS = 4;
const EXECUTE: Failure = { code: 'PJRT_EXECUTE_FAILED', what: 'the program could not be executed' };
const INSPECT: Failure = { code: 'PJRT_EXECUTE_FAILED', what: 'the executable could not be read' };

/** A compiled program, loaded on one device. */
export class PjrtExecutable {
  readonly outputs: readonly OutputSpec[];
  readonly #handles: ClientHandles;
  readonly #executable: bigint;
  readonly #call: ExecuteCall;
  #handle: bigint | undefined;
  // Some runtimes run a program, or one that they guess to be short, inside the call that starts it. Such calls are
  // made on a thread of the pool, the rest on this one, which is quicker. Nothing is known before the first.
  #holdsThread = true;

  /** @internal Takes over `handle`, a PJRT_LoadedExecutable. */
  constructor(handles: ClientHandles, handle: bigint) {
    this.#handles = handles;
    this.#handle = handle;
    handles.own(this, handle, 'PJRT_LoadedExecutable_Destroy');
    const args = PJRT_LoadedExecutable_GetExecutable_Args({ loaded_executable: handle });
    handles.api.call('PJRT_LoadedExecutable_GetExecutable', args, INSPECT);
    this.#executable = args.get('executable');
    handles.own(this, this.#executable, 'PJRT_Executable_Destroy');
    this.outputs = readOutputs(handles, this.#executable);
    this.#call = new ExecuteCall(handle, this.outputs.length);
  }

  get numOutputs(): number {
    return this.outputs.length;
  }

  /**
   * Runs the program on `args` and gives its outputs once they are computed; the event loop stays free meanwhile.
   * Several executions may be under way: each starts when its arguments are ready.
   * @throws PjrtError PJRT_EXECUTE_FAILED with the runtime's message; PJRT_CLOSED when an argument was closed or donated
   */
  execute(args: readonly PjrtBuffer[], options: ExecuteOptions = {}): Promise<PjrtBuffer[]> {
    return this.#handles.during(async () => {
      const start = performance.now();
      const { outputs, done } = await this.#dispatch(args, options.donate ?? []);
      try {
        const wasDone = await this.#handles.api.awaitEvent(done, EXECUTE);
        this.#holdsThread = wasDone && performance.now() - start > MAX_HELD_MS;
      } catch (error) {
        for (const output of outputs) output.close();
        throw error;
      }
      return outputs;
    });
  }

  async #dispatch(
    args: readonly PjrtBuffer[],
    donate: readonly number[],
  ): Promise<{ outputs: PjrtBuffer[]; done: bigint }> {
    if (this.#handle === undefined) throw new PjrtError('PJRT_CLOSED', 'the executable is closed');
    const { api } = this.#handles;
    const donated = donate.map((at) => args[at]!);
    if (!this.#holdsThread) {
      this.#call.setArguments(args, donate);
      try {
        api.call('PJRT_LoadedExecutable_Execute', this.#call.args, EXECUTE);
      } finally {
        for (const buffer of donated) buffer.consume();
      }
      return this.#call.takeOutputs(this.#handles, this.outputs);
    }
    const call = new ExecuteCall(this.#handle, this.outputs.length);
    call.setArguments(args, donate);
    await this.#handles.holdingReleased(() => {
      for (const buffer of donated) buffer.consume();
      return api.callAsync('PJRT_LoadedExecutable_Execute', call.args, EXECUTE);
    });
    return call.takeOutputs(this.#handles, this.outputs);
  }

  /** The executable in the plugin's own format, for `PjrtClient.deserialize` of the same plugin on the same hardware. */
  serialize(): Uint8Array {
    const args = PJRT_Executable_Serialize_Args({ executable: this.#open() });
    this.#handles.api.call('PJRT_Executable_Serialize', args, {
      code: 'PJRT_COMPILE_FAILED',
      what: 'the executable could not be serialized',
    });
    try {
      return bytesAt(args.get('bytes'), args.get('bytes_size'));
    } finally {
      callDeleter(args.get('deleter'), args.get('serialized_executable'));
    }
  }

  /** The compiler's estimate of what one execution costs; no figures from a plugin that makes none. */
  cost(): ExecutableCost {
    const args = PJRT_Executable_GetCostAnalysis_Args({ executable: this.#open() });
    try {
      this.#handles.api.call('PJRT_Executable_GetCostAnalysis', args, INSPECT);
    } catch (error) {
      if (!(error instanceof PjrtError && error.status === 'UNIMPLEMENTED')) throw error;
    }
    const values = readNamedValues(args.get('properties'), args.number('num_properties'));
    const figure = (name: string): number | undefined => {
      const value = values.get(name);
      return typeof value === 'number' ? value : undefined;
    };
    return {
      flops: figure('flops'),
      transcendentals: figure('transcendentals'),
      bytesAccessed: figure('bytes accessed'),
    };
  }

  /** The device memory one execution takes. */
  memory(): ExecutableMemory {
    const args = PJRT_Executable_GetCompiledMemoryStats_Args({ executable: this.#open() });
    this.#handles.api.call('PJRT_Executable_GetCompiledMemoryStats', args, INSPECT);
    return {
      generatedCodeBytes: args.number('generated_code'),
      argumentBytes: args.number('argument'),
      outputBytes: args.number('output'),
      aliasBytes: args.number('alias'),
      tempBytes: args.number('temp'),
      peakBytes: args.number('peak'),
    };
  }

  /** Unloads the program once no execution of it is under way. */
  close(): void {
    if (this.#handle === undefined) return;
    this.#handles.release(this, this.#executable);
    this.#handles.release(this, this.#handle);
    this.#handle = undefined;
  }

  #open(): bigint {
    if (this.#handle === undefined) throw new PjrtError('PJRT_CLOSED', 'the executable is closed');
    this.#handles.assertOpen();
    return this.#executable;
  }
}

/** The structs of PJRT_LoadedExecutable_Execute, laid out once: a call then only fills in pointers. */
class ExecuteCall {
  readonly #outputs: BigUint64Array;
  readonly #event = new BigUint64Array(16);
  readonly #argumentList = new BigUint64Array(16);
  readonly #options = PJRT_ExecuteOptions({});
  #arguments = new BigUint64Array();
  #kept = new BigUint64Array();
  readonly args;

  constructor(executable: bigint, numOutputs: number) {
    this.#outputs = new BigUint64Array(Math.max(16, numOutputs));
    const outputList = new BigUint64Array(16);
    outputList[0] = addressOf(this.#outputs);
    this.args = PJRT_LoadedExecutable_Execute_Args({
      executable,
      options: this.#options,
      argument_lists: this.#argumentList,
      num_devices: 1,
      output_lists: outputList,
      device_complete_events: this.#event,
    });
  }

  setArguments(buffers: readonly PjrtBuffer[], donate: readonly number[]): void {
    if (buffers.length > this.#arguments.length) this.#grow(buffers.length);
    for (let at = 0; at < buffers.length; at++) this.#arguments[at] = buffers[at]!.handle;
    this.args.set('num_args', BigInt(buffers.length));

    const donated = new Set(donate);
    let numKept = 0;
    for (let at = 0; at < buffers.length; at++) {
      if (!donated.has(at)) this.#kept[numKept++] = BigInt(at);
    }
    this.#options.set('num_non_donatable_input_indices', BigInt(numKept));
  }

  takeOutputs(
    handles: ClientHandles,
    specs: readonly OutputSpec[],
  ): { outputs: PjrtBuffer[]; done: bigint } {
    const outputs = specs.map(
      ({ dims, type }, at) => new PjrtBuffer(handles, this.#outputs[at]!, dims, type),
    );
    return { outputs, done: this.#event[0]! };
  }

  #grow(numArguments: number): void {
    this.#arguments = new BigUint64Array(Math.max(16, numArguments));
    this.#kept = new BigUint64Array(Math.max(16, numArguments));
    this.#argumentList[0] = addressOf(this.#arguments);
    this.#options.set('non_donatable_input_indices', addressOf(this.#kept));
  }
}

function readOutputs({ api }: ClientHandles, executable: bigint): OutputSpec[] {
  const count = PJRT_Executable_NumOutputs_Args({ executable });
  api.call('PJRT_Executable_NumOutputs', count, INSPECT);
  const numOutputs = count.number('num_outputs');
  if (numOutputs === 0) return [];

  const types = PJRT_Executable_OutputElementTypes_Args({ executable });
  api.call('PJRT_Executable_OutputElementTypes', types, INSPECT);
  const codes = new Uint32Array(bytesAt(types.get('types'), numOutputs * 4).buffer);

  const shapes = PJRT_Executable_OutputDimensions_Args({ executable });
  api.call('PJRT_Executable_OutputDimensions', shapes, INSPECT);
  const ranks = Array.from(wordsAt(shapes.get('dim_sizes'), numOutputs), Number);
  const numDims = ranks.reduce((sum, rank) => sum + rank, 0);
  const dims = Array.from(wordsAt(shapes.get('dims'), numDims), Number);

  let start = 0;
  return ranks.map((rank, at) => {
    const type = elementTypeOf(codes[at]!);
    if (type === undefined) {
      throw new PjrtError(
        'PJRT_COMPILE_FAILED',
        `output ${at} of the program has an element type (PJRT_Buffer_Type ${codes[at]!}) that host arrays cannot hold`,
      );
    }
    start += rank;
    return { dims: dims.slice(start - rank, start), type };
  });
}
