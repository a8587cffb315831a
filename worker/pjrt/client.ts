import { PjrtBuffer } from './buffer.ts';
import { type Failure, loadPjrtApi, type PjrtApi, PjrtError, type PjrtFunction } from './c-api.ts';
import { encodeCompileOptions, type XlaFlags } from './compile-options.ts';
import { ELEMENT_TYPES, type ElementType, sizeBytesOf } from './element-type.ts';
import { PjrtExecutable } from './executable.ts';
import { ClientHandles } from './handles.ts';
import { type KeyValueStore, openKeyValueCallbacks } from './key-value.ts';
import { checkArraySizes, hostMemoryBytes } from './limits.ts';
import { type NamedValues, writeNamedValues } from './named-values.ts';
import {
  PJRT_Client_BufferFromHostBuffer_Args,
  PJRT_Client_Compile_Args,
  PJRT_Client_Create_Args,
  PJRT_Client_Devices_Args,
  PJRT_Client_Text_Args,
  PJRT_Event_Args,
  PJRT_Executable_DeserializeAndLoad_Args,
  PJRT_Program,
  type Struct,
  textAt,
  wordsAt,
} from './structs.ts';
import { type PjrtDevice, readDevice } from './device.ts';

export interface CompileOptions {
  /** Flags for this program alone, as in `XLA_FLAGS` but without dashes. */
  readonly flags?: XlaFlags;
  /**
   * Positions in `client.devices` of the devices to run on; the first when left out. Several run one program together,
   * cut up by its `sdy.sharding` attributes over a mesh of as many devices in this order.
   */
  readonly deviceIndices?: readonly number[];
  /**
   * Instead of `deviceIndices`, ids of devices of several processes, all of which compile the same program for the same
   * list; each runs it on its own.
   */
  readonly deviceIds?: readonly number[];
}

const CREATE: Failure = { code: 'PJRT_CLIENT_FAILED', what: 'the PJRT client could not be opened' };
const COMPILE: Failure = { code: 'PJRT_COMPILE_FAILED', what: 'the program could not be compiled' };
const LOAD: Failure = {
  code: 'PJRT_COMPILE_FAILED',
  what: 'the serialized executable could not be loaded',
};
const BUFFER: Failure = {
  code: 'PJRT_BUFFER_FAILED',
  what: 'host data could not be copied to the device',
};
const utf8 = new TextEncoder();
const MLIR = utf8.encode('mlir');

/**
 * Opens the devices of the plugin at `pluginPath`. `clientOptions` are the plugin's own, such as `cpu_device_count`.
 * The CPU plugin has as many threads as `NPROC` in the environment says, else as cores, and at least one a device; it
 * splits long sums in matrix products by that number, so the bits of results depend on it, as on the instruction set.
 * @throws PjrtError PJRT_PLUGIN_INVALID when the file is no usable plugin; PJRT_CLIENT_FAILED when it finds no device
 */
export async function openPjrtClient(options: {
  readonly pluginPath: string;
  readonly clientOptions?: NamedValues;
  /** Where the clients of several hosts find each other, for plugins that are one of `num_nodes` (CUDA, ROCm). */
  readonly keyValues?: KeyValueStore;
}): Promise<PjrtClient> {
  const api = loadPjrtApi(options.pluginPath);
  const { list, count } = writeNamedValues(options.clientOptions ?? {});
  const callbacks = options.keyValues && (await openKeyValueCallbacks(options.keyValues));
  const args = PJRT_Client_Create_Args({
    create_options: list,
    num_options: count,
    kv_get_callback: callbacks?.get,
    kv_put_callback: callbacks?.put,
    kv_try_get_callback: callbacks?.tryGet,
  });
  try {
    await api.callAsync('PJRT_Client_Create', args, CREATE);
  } catch (error) {
    await callbacks?.close();
    throw error;
  }
  return new PjrtClient(api, args.get('client'), () => void callbacks?.close());
}

/** The devices of one plugin in this process. Close it last: with it go its buffers and executables. */
export class PjrtClient {
  readonly platformName: string;
  readonly platformVersion: string;
  readonly apiVersion: string;
  /** Those of this process. */
  readonly devices: readonly PjrtDevice[];
  /** Those of all processes that it has joined. */
  readonly allDevices: readonly PjrtDevice[];
  readonly #handles: ClientHandles;

  /** How many buffers and executables are open. */
  get numOpen(): number {
    return this.#handles.numOpen;
  }

  /** @internal Takes over `client`, a PJRT_Client; `onDestroyed` is called when it is gone. */
  constructor(api: PjrtApi, client: bigint, onDestroyed: () => void = () => undefined) {
    const text = (name: PjrtFunction): string => {
      const args = PJRT_Client_Text_Args({ client });
      api.call(name, args, CREATE);
      return textAt(args.get('text'), args.get('text_size'));
    };
    this.platformName = text('PJRT_Client_PlatformName');
    const memoryLimitBytes = this.platformName === 'cpu' ? hostMemoryBytes() : undefined;
    this.#handles = new ClientHandles(api, client, { memoryLimitBytes, onDestroyed });
    this.platformVersion = text('PJRT_Client_PlatformVersion');
    this.apiVersion = `${api.version.major}.${api.version.minor}`;
    const list = (name: 'PJRT_Client_AddressableDevices' | 'PJRT_Client_Devices'): PjrtDevice[] => {
      const args = PJRT_Client_Devices_Args({ client });
      api.call(name, args, CREATE);
      return Array.from(wordsAt(args.get('devices'), args.number('num_devices')), (device) =>
        readDevice(api, device),
      );
    };
    this.devices = list('PJRT_Client_AddressableDevices');
    this.allDevices = list('PJRT_Client_Devices');
  }

  /**
   * Compiles an MLIR module of StableHLO, text or bytecode, on a thread of the pool.
   * @throws PjrtError PJRT_COMPILE_FAILED with the compiler's message; PJRT_OUT_OF_MEMORY
   */
  async compile(mlir: string | Uint8Array, options: CompileOptions = {}): Promise<PjrtExecutable> {
    const args = this.#compileArgs(mlir, options);
    return this.#handles.during(async () => {
      await this.#handles.api.callAsync('PJRT_Client_Compile', args, COMPILE);
      return new PjrtExecutable(this.#handles, args.get('executable'));
    });
  }

  /** `compile`, with this thread held until it is done. */
  compileSync(mlir: string | Uint8Array, options: CompileOptions = {}): PjrtExecutable {
    this.#handles.assertOpen();
    const args = this.#compileArgs(mlir, options);
    this.#handles.api.call('PJRT_Client_Compile', args, COMPILE);
    return new PjrtExecutable(this.#handles, args.get('executable'));
  }

  #compileArgs(mlir: string | Uint8Array, options: CompileOptions): Struct<'executable'> {
    if (typeof mlir === 'string' && this.platformName === 'cpu') checkArraySizes(mlir);
    const code = typeof mlir === 'string' ? utf8.encode(mlir) : mlir;
    const program = PJRT_Program({
      code,
      code_size: code.length,
      format: MLIR,
      format_size: MLIR.length,
    });
    const deviceIds =
      options.deviceIds ?? (options.deviceIndices ?? [0]).map((index) => this.#device(index).id);
    const compileOptions = encodeCompileOptions(deviceIds, options.flags ?? {});
    return PJRT_Client_Compile_Args({
      client: this.#handles.client,
      program,
      compile_options: compileOptions,
      compile_options_size: compileOptions.length,
    });
  }

  /** Loads what `PjrtExecutable.serialize` gave. @throws PjrtError PJRT_COMPILE_FAILED when it is of another plugin */
  async deserialize(bytes: Uint8Array): Promise<PjrtExecutable> {
    const args = this.#deserializeArgs(bytes);
    return this.#handles.during(async () => {
      await this.#handles.api.callAsync('PJRT_Executable_DeserializeAndLoad', args, LOAD);
      return new PjrtExecutable(this.#handles, args.get('loaded_executable'));
    });
  }

  /** `deserialize`, with this thread held until it is done. */
  deserializeSync(bytes: Uint8Array): PjrtExecutable {
    this.#handles.assertOpen();
    const args = this.#deserializeArgs(bytes);
    this.#handles.api.call('PJRT_Executable_DeserializeAndLoad', args, LOAD);
    return new PjrtExecutable(this.#handles, args.get('loaded_executable'));
  }

  #deserializeArgs(bytes: Uint8Array): Struct<'loaded_executable'> {
    return PJRT_Executable_DeserializeAndLoad_Args({
      client: this.#handles.client,
      bytes,
      bytes_size: bytes.length,
    });
  }

  /**
   * Copies a dense row-major array to a device. The bytes of `data` are copied before it returns.
   * @throws PjrtError PJRT_BUFFER_FAILED when `data` does not have the bytes of `dims`; PJRT_OUT_OF_MEMORY when the
   * device has no room
   */
  bufferFromHost(
    data: ArrayBufferView,
    dims: readonly number[],
    type: ElementType,
    deviceIndex?: number,
  ): PjrtBuffer {
    this.#handles.assertOpen();
    if (data.byteLength !== sizeBytesOf(dims, type)) {
      throw new PjrtError(
        'PJRT_BUFFER_FAILED',
        `a ${type}[${dims.join(',')}] buffer takes ${sizeBytesOf(dims, type)} bytes, and the data has ` +
          `${data.byteLength}`,
      );
    }
    const { api, client } = this.#handles;
    const args = PJRT_Client_BufferFromHostBuffer_Args({
      client,
      data: data.byteLength === 0 ? NO_DATA : data,
      type: ELEMENT_TYPES[type].code,
      dims: BigInt64Array.from(dims, BigInt),
      num_dims: dims.length,
      host_buffer_semantics: IMMUTABLE_ONLY_DURING_CALL,
      device: this.#device(deviceIndex).handle,
    });
    api.call('PJRT_Client_BufferFromHostBuffer', args, BUFFER);
    // With these semantics the event is ready: there is nothing to wait for.
    api.call(
      'PJRT_Event_Destroy',
      PJRT_Event_Args({ event: args.get('done_with_host_buffer') }),
      BUFFER,
    );
    return new PjrtBuffer(this.#handles, args.get('buffer'), dims, type);
  }

  /** Frees the devices, and every buffer and executable that is still open; waits for work in flight. Idempotent. */
  close(): void {
    this.#handles.close();
  }

  #device(index = 0): PjrtDevice {
    const device = this.devices[index];
    if (device !== undefined) return device;
    throw new PjrtError(
      'PJRT_CLIENT_FAILED',
      `there is no device ${index}: ${this.platformName} has ${this.devices.length}, numbered from 0`,
    );
  }
}

// Source: PJRT_HostBufferSemantics in pjrt_c_api.h.
const IMMUTABLE_ONLY_DURING_CALL = 0;
// Runtimes refuse a null pointer even for an array without elements.
const NO_DATA = new Uint8Array(64);
