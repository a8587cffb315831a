import { PjrtBuffer } from './buffer.ts';
import { type Failure, loadPjrtApi, type PjrtApi, PjrtError, type PjrtFunction } from './c-api.ts';
import { encodeCompileOptions, type XlaFlags } from './compile-options.ts';
import { ELEMENT_TYPES, type ElementType, sizeBytesOf } from './element-type.ts';
import { PjrtExecutable } from './executable.ts';
import { ClientHandles } from './handles.ts';
import { type NamedValues, writeNamedValues } from './named-values.ts';
import {
  PJRT_Client_AddressableDevices_Args,
  PJRT_Client_BufferFromHostBuffer_Args,
  PJRT_Client_Compile_Args,
  PJRT_Client_Create_Args,
  PJRT_Client_Text_Args,
  PJRT_Event_Args,
  PJRT_Executable_DeserializeAndLoad_Args,
  PJRT_Program,
  textAt,
  wordsAt,
} from './structs.ts';
import { type PjrtDevice, readDevice } from './device.ts';

export interface CompileOptions {
  /** Flags for this program alone, as in `XLA_FLAGS` but without dashes. */
  readonly flags?: XlaFlags;
  /** Position in `client.devices` of the device to run on; the first when left out. */
  readonly deviceIndex?: number;
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
}): Promise<PjrtClient> {
  const api = loadPjrtApi(options.pluginPath);
  const { list, count } = writeNamedValues(options.clientOptions ?? {});
  const args = PJRT_Client_Create_Args({ create_options: list, num_options: count });
  await api.callAsync('PJRT_Client_Create', args, CREATE);
  return new PjrtClient(api, args.get('client'));
}

/** The devices of one plugin in this process. Close it last: with it go its buffers and executables. */
export class PjrtClient {
  readonly platformName: string;
  readonly platformVersion: string;
  readonly apiVersion: string;
  readonly devices: readonly PjrtDevice[];
  readonly #handles: ClientHandles;

  /** @internal Takes over `client`, a PJRT_Client. */
  constructor(api: PjrtApi, client: bigint) {
    const text = (name: PjrtFunction): string => {
      const args = PJRT_Client_Text_Args({ client });
      api.call(name, args, CREATE);
      return textAt(args.get('text'), args.get('text_size'));
    };
    this.#handles = new ClientHandles(api, client);
    this.platformName = text('PJRT_Client_PlatformName');
    this.platformVersion = text('PJRT_Client_PlatformVersion');
    this.apiVersion = `${api.version.major}.${api.version.minor}`;
    const devices = PJRT_Client_AddressableDevices_Args({ client });
    api.call('PJRT_Client_AddressableDevices', devices, CREATE);
    this.devices = Array.from(
      wordsAt(devices.get('devices'), devices.number('num_devices')),
      (device) => readDevice(api, device),
    );
  }

  /**
   * Compiles an MLIR module of StableHLO, text or bytecode, on a thread of the pool.
   * @throws PjrtError PJRT_COMPILE_FAILED with the compiler's message
   */
  async compile(mlir: string | Uint8Array, options: CompileOptions = {}): Promise<PjrtExecutable> {
    const code = typeof mlir === 'string' ? utf8.encode(mlir) : mlir;
    const program = PJRT_Program({
      code,
      code_size: code.length,
      format: MLIR,
      format_size: MLIR.length,
    });
    const device = this.#device(options.deviceIndex);
    const compileOptions = encodeCompileOptions(device.id, options.flags ?? {});
    const args = PJRT_Client_Compile_Args({
      client: this.#handles.client,
      program,
      compile_options: compileOptions,
      compile_options_size: compileOptions.length,
    });
    return this.#handles.during(async () => {
      await this.#handles.api.callAsync('PJRT_Client_Compile', args, COMPILE);
      return new PjrtExecutable(this.#handles, args.get('executable'));
    });
  }

  /** Loads what `PjrtExecutable.serialize` gave. @throws PjrtError PJRT_COMPILE_FAILED when it is of another plugin */
  async deserialize(bytes: Uint8Array): Promise<PjrtExecutable> {
    const args = PJRT_Executable_DeserializeAndLoad_Args({
      client: this.#handles.client,
      bytes,
      bytes_size: bytes.length,
    });
    return this.#handles.during(async () => {
      await this.#handles.api.callAsync('PJRT_Executable_DeserializeAndLoad', args, LOAD);
      return new PjrtExecutable(this.#handles, args.get('loaded_executable'));
    });
  }

  /**
   * Copies a dense row-major array to a device. The bytes of `data` are copied before it returns.
   * @throws PjrtError PJRT_BUFFER_FAILED when `data` does not have the bytes of `dims`, or the device no room
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
