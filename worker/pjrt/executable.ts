import { PjrtBuffer } from './buffer.ts';
import { type Failure, type PjrtApi, PjrtError } from './c-api.ts';
import { type ElementType, elementTypeOf } from './element-type.ts';
import type { ClientHandles } from './handles.ts';
import { leaveGap } from './heap.ts';
import { checkFits } from './limits.ts';
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
  PJRT_LoadedExecutable_AddressableDevices_Args,
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
// From this on temporary memory is kept from being taken twice. Such a program runs for longer than the wait by far.
const LARGE_TEMPORARY_BYTES = 128 * 2 ** 20;
const FREEING_MS = 2;
const EXECUTE: Failure = { code: 'PJRT_EXECUTE_FAILED', what: 'the program could not be executed' };
const INSPECT: Failure = { code: 'PJRT_EXECUTE_FAILED', what: 'the executable could not be read' };

/** A compiled program, loaded on one device or cut up over several. */
export class PjrtExecutable {
  /** Of one device: where the program is cut up, the shapes are those of the parts. */
  readonly outputs: readonly OutputSpec[];
  readonly numDevices: number;
  readonly #handles: ClientHandles;
  readonly #executable: bigint;
  readonly #call: ExecuteCall;
  #isKnownToFit = false;
  #hasLargeTemporary = false;
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
    this.numDevices = countDevices(handles, handle);
    this.#call = this.#newCall(handle);
  }

  get numOutputs(): number {
    return this.outputs.length;
  }

  /**
   * Runs the program on `args` and gives its outputs once they are computed; the event loop stays free meanwhile.
   * Several executions may be under way: each starts when its arguments are ready.
   * @throws PjrtError PJRT_EXECUTE_FAILED with the runtime's message; PJRT_OUT_OF_MEMORY; PJRT_DEVICE_LOST; PJRT_CLOSED
   * when an argument was closed or donated
   */
  execute(args: readonly PjrtBuffer[], options: ExecuteOptions = {}): Promise<PjrtBuffer[]> {
    this.#checkDevices(1);
    return this.#execute(args, options);
  }

  /** `execute` on all its devices at once: for each of them, in order, the arguments that it has, and its outputs. */
  async executeOnAll(
    args: readonly (readonly PjrtBuffer[])[],
    options: ExecuteOptions = {},
  ): Promise<PjrtBuffer[][]> {
    this.#checkDevices(args.length);
    const outputs = await this.#execute(args.flat(), options);
    const { length } = this.outputs;
    return args.map((_, device) => outputs.slice(device * length, (device + 1) * length));
  }

  #checkDevices(count: number): void {
    if (count === this.numDevices) return;
    throw new PjrtError(
      'PJRT_EXECUTE_FAILED',
      `the program is for ${this.numDevices} devices and was given the arguments of ${count}`,
    );
  }

  /** Arguments and outputs of one device after the other. */
  #execute(args: readonly PjrtBuffer[], options: ExecuteOptions): Promise<PjrtBuffer[]> {
    return this.#handles.during(async () => {
      this.#checkFits();
      const start = performance.now();
      const { outputs, done } = await this.#dispatch(args, options.donate ?? []);
      try {
        const wasDone = await awaitAll(this.#handles.api, done);
        this.#holdsThread = wasDone && performance.now() - start > MAX_HELD_MS;
      } catch (error) {
        for (const output of outputs) output.close();
        throw error;
      } finally {
        if (this.#hasLargeTemporary) this.#handles.freedAt = performance.now() + FREEING_MS;
      }
      return outputs;
    });
  }

  /**
   * `execute` without donation, with this thread held until the outputs are computed.
   * @throws PjrtError as `execute` rejects
   */
  executeSync(args: readonly PjrtBuffer[]): PjrtBuffer[] {
    if (this.#handle === undefined) throw new PjrtError('PJRT_CLOSED', 'the executable is closed');
    this.#handles.assertOpen();
    const { api } = this.#handles;
    this.#checkDevices(1);
    this.#checkFits();
    const call = this.#newCall(this.#handle);
    call.setArguments(args, []);
    api.call('PJRT_LoadedExecutable_Execute', call.args, EXECUTE);
    const { outputs, done } = call.takeOutputs(this.#handles, this.outputs);
    try {
      for (const event of done) api.awaitEventSync(event, EXECUTE);
    } catch (error) {
      for (const output of outputs) output.close();
      throw error;
    }
    return outputs;
  }

  async #dispatch(
    args: readonly PjrtBuffer[],
    donate: readonly number[],
  ): Promise<{ outputs: PjrtBuffer[]; done: bigint[] }> {
    if (this.#handle === undefined) throw new PjrtError('PJRT_CLOSED', 'the executable is closed');
    const { api } = this.#handles;
    const perDevice = args.length / this.numDevices;
    const donated = Array.from({ length: this.numDevices }, (_, device) =>
      donate.map((at) => args[device * perDevice + at]!),
    ).flat();
    const mustWait = this.#hasLargeTemporary && this.#handles.freedAt > performance.now();
    if (!this.#holdsThread && !mustWait) {
      this.#call.setArguments(args, donate);
      try {
        api.call('PJRT_LoadedExecutable_Execute', this.#call.args, EXECUTE);
      } finally {
        for (const buffer of donated) buffer.consume();
      }
      return this.#call.takeOutputs(this.#handles, this.outputs);
    }
    const call = this.#newCall(this.#handle);
    call.setArguments(args, donate);
    await this.#handles.holdingReleased(async () => {
      for (const buffer of donated) buffer.consume();
      if (mustWait) await this.#handles.untilFreed();
      await api.callAsync('PJRT_LoadedExecutable_Execute', call.args, EXECUTE);
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
    unlessUnimplemented(() => {
      this.#handles.api.call('PJRT_Executable_GetCostAnalysis', args, INSPECT);
    });
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

  #checkFits(): void {
    if (this.#isKnownToFit) return;
    const { numDevices } = this;
    const { memoryLimitBytes: limitBytes } = this.#handles;
    if (limitBytes !== undefined) {
      const memory = unlessUnimplemented(() => this.memory());
      if (memory !== undefined) {
        checkFits(memory, { numDevices, limitBytes });
        this.#hasLargeTemporary = memory.tempBytes >= LARGE_TEMPORARY_BYTES;
        if (this.#hasLargeTemporary) leaveGap();
      }
    }
    this.#isKnownToFit = true;
  }

  #newCall(handle: bigint): ExecuteCall {
    return new ExecuteCall(handle, this.outputs.length, this.numDevices);
  }

  #open(): bigint {
    if (this.#handle === undefined) throw new PjrtError('PJRT_CLOSED', 'the executable is closed');
    this.#handles.assertOpen();
    return this.#executable;
  }
}

/** The structs of PJRT_LoadedExecutable_Execute, laid out once: a call then only fills in pointers. */
class ExecuteCall {
  readonly #numDevices: number;
  // Those of one device after the other, to which the lists point.
  readonly #outputs: BigUint64Array;
  #arguments = words(0);
  readonly #argumentLists: BigUint64Array;
  readonly #events: BigUint64Array;
  readonly #options = PJRT_ExecuteOptions({});
  #kept = words(0);
  readonly args;

  constructor(executable: bigint, numOutputs: number, numDevices: number) {
    this.#numDevices = numDevices;
    this.#events = words(numDevices);
    this.#argumentLists = words(numDevices);
    this.#outputs = words(numOutputs * numDevices);
    const outputLists = words(numDevices);
    pointInto(this.#outputs, numOutputs, numDevices, outputLists);
    this.args = PJRT_LoadedExecutable_Execute_Args({
      executable,
      options: this.#options,
      argument_lists: this.#argumentLists,
      num_devices: numDevices,
      output_lists: outputLists,
      device_complete_events: this.#events,
    });
  }

  setArguments(buffers: readonly PjrtBuffer[], donate: readonly number[]): void {
    const numArguments = buffers.length / this.#numDevices;
    if (this.args.number('num_args') !== numArguments) this.#fit(numArguments);
    for (let at = 0; at < buffers.length; at++) this.#arguments[at] = buffers[at]!.handle;

    const donated = new Set(donate);
    let numKept = 0;
    for (let at = 0; at < numArguments; at++) {
      if (!donated.has(at)) this.#kept[numKept++] = BigInt(at);
    }
    this.#options.set('num_non_donatable_input_indices', BigInt(numKept));
  }

  takeOutputs(
    handles: ClientHandles,
    specs: readonly OutputSpec[],
  ): { outputs: PjrtBuffer[]; done: bigint[] } {
    const outputs = Array.from({ length: specs.length * this.#numDevices }, (_, at) => {
      const { dims, type } = specs[at % specs.length]!;
      return new PjrtBuffer(handles, this.#outputs[at]!, dims, type);
    });
    return { outputs, done: [...this.#events.subarray(0, this.#numDevices)] };
  }

  #fit(numArguments: number): void {
    this.#arguments = words(numArguments * this.#numDevices);
    this.#kept = words(numArguments);
    pointInto(this.#arguments, numArguments, this.#numDevices, this.#argumentLists);
    this.args.set('num_args', BigInt(numArguments));
    this.#options.set('non_donatable_input_indices', addressOf(this.#kept));
  }
}

// Typed arrays under 64 bytes live on V8's moving heap until their buffer is asked for.
function words(count: number): BigUint64Array<ArrayBuffer> {
  return new BigUint64Array(Math.max(16, count));
}

/** Sets `pointers` to every `stride`th word of `memory`. */
function pointInto(
  memory: BigUint64Array,
  stride: number,
  count: number,
  pointers: BigUint64Array,
): void {
  const start = addressOf(memory);
  for (let at = 0; at < count; at++) pointers[at] = start + BigInt(at * stride * 8);
}

/** Waits for the events of all devices; tells whether they were ready. Rejects with the first error, once all ended. */
async function awaitAll(api: PjrtApi, events: readonly bigint[]): Promise<boolean> {
  if (events.length === 1) return api.awaitEvent(events[0]!, EXECUTE);
  let wereReady = true;
  const errors: unknown[] = [];
  for (const event of events) {
    try {
      wereReady = (await api.awaitEvent(event, EXECUTE)) && wereReady;
    } catch (error) {
      errors.push(error);
    }
  }
  if (errors.length > 0) throw errors[0];
  return wereReady;
}

function unlessUnimplemented<T>(call: () => T): T | undefined {
  try {
    return call();
  } catch (error) {
    if (error instanceof PjrtError && error.status === 'UNIMPLEMENTED') return undefined;
    throw error;
  }
}

function countDevices({ api }: ClientHandles, handle: bigint): number {
  const args = PJRT_LoadedExecutable_AddressableDevices_Args({ executable: handle });
  api.call('PJRT_LoadedExecutable_AddressableDevices', args, INSPECT);
  return args.number('num_addressable_devices');
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
