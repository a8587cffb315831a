import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import type { LibraryHandle } from 'koffi';

import { koffi } from '../../proto/koffi.ts';
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import {
  PJRT_Error_Args,
  PJRT_Error_GetCode_Args,
  PJRT_Event_Args,
  PJRT_Plugin_Initialize_Args,
  type Struct,
  bytesAt,
  textAt,
  wordsAt,
} from './structs.ts';

/** The status that a plugin gave an error. Source: PJRT_Error_Code in pjrt_c_api.h. */
export type PjrtStatus = (typeof STATUSES)[number];

/** An error of a PJRT plugin, or of a file that should be one. `status` is the plugin's own, where it gave one. */
export class PjrtError extends VideoloomError {
  readonly status: PjrtStatus | undefined;

  constructor(
    code: PjrtErrorCode,
    message: string,
    options: { status?: PjrtStatus; cause?: unknown } = {},
  ) {
    super(code, message, { cause: options.cause, retryable: options.status === 'UNAVAILABLE' });
    this.status = options.status;
  }
}

/** What failed, by the part of the API. */
export type PjrtErrorCode =
  | 'PJRT_PLUGIN_INVALID'
  | 'PJRT_CLIENT_FAILED'
  | 'PJRT_COMPILE_FAILED'
  | 'PJRT_EXECUTE_FAILED'
  | 'PJRT_BUFFER_FAILED'
  | 'PJRT_OUT_OF_MEMORY'
  | 'PJRT_DEVICE_LOST'
  | 'PJRT_CLOSED';

/** A loaded plugin: its function table, and calls whose errors are thrown. It stays loaded for the life of the process. */
export interface PjrtApi {
  readonly path: string;
  readonly version: { readonly major: number; readonly minor: number };
  /** Calls on this thread. @throws PjrtError `code` with the plugin's message, prefixed by `what`. */
  call(name: PjrtFunction, args: Struct<string>, failure: Failure): void;
  /** Calls on a thread of the pool, so the event loop stays free. Rejects as `call` throws. */
  callAsync(name: PjrtFunction, args: Struct<string>, failure: Failure): Promise<void>;
  /** Ends with the event and destroys it; tells whether it was ready when called. Rejects with its error. */
  awaitEvent(event: bigint, failure: Failure): Promise<boolean>;
  /** `awaitEvent`, with this thread held until then. Throws the event's error. */
  awaitEventSync(event: bigint, failure: Failure): void;
}

/** How an error of a call is reported. */
export interface Failure {
  readonly code: PjrtErrorCode;
  /** A clause that starts the message, such as `the program could not be compiled`. */
  readonly what: string;
}

/** Loads the plugin at `path` and initializes it, once a process. @throws PjrtError PJRT_PLUGIN_INVALID */
export function loadPjrtApi(path: string): PjrtApi {
  const absolute = resolve(path);
  let api = loaded.get(absolute);
  if (api === undefined) {
    api = bindApi(absolute);
    api.call('PJRT_Plugin_Initialize', PJRT_Plugin_Initialize_Args({}), {
      code: 'PJRT_PLUGIN_INVALID',
      what: `the plugin ${absolute} could not be initialized`,
    });
    loaded.set(absolute, api);
  }
  return api;
}

const loaded = new Map<string, PjrtApi>();

const CHOOSE_ANOTHER =
  'Name the shared library of a PJRT plugin in PJRT_PLUGIN_PATH, or unset it to use the one that ' +
  '`videoloom engine install` fetches.';

function bindApi(path: string): PjrtApi {
  const invalid = (why: string, cause?: unknown): PjrtError =>
    new PjrtError(
      'PJRT_PLUGIN_INVALID',
      `${path} is not a usable PJRT plugin: ${why}. ${CHOOSE_ANOTHER}`,
      { cause },
    );
  if (!statSync(path, { throwIfNoEntry: false })?.isFile()) throw invalid('there is no such file');
  // Plugins of XLA write what they note to stderr. What goes wrong comes as errors.
  process.env['TF_CPP_MIN_LOG_LEVEL'] ??= '2';
  let library: LibraryHandle;
  try {
    library = koffi.load(path);
  } catch (cause) {
    throw invalid(`it could not be loaded as a shared library (${messageOf(cause)})`, cause);
  }
  let getApi: () => bigint | null;
  try {
    getApi = library.func('void *GetPjrtApi()') as () => bigint | null;
  } catch (cause) {
    throw invalid('it is a shared library without the function GetPjrtApi', cause);
  }
  stayLoaded(path);
  const table = getApi();
  if (table === null) throw invalid('its GetPjrtApi returned no function table');

  // struct_size, extension_start, { struct_size, extension_start, major: int, minor: int }, functions...
  const sizeBytes = Number(wordsAt(table, 1)[0]);
  const [major, minor] = new Int32Array(bytesAt(table + 32n, 8).buffer) as unknown as [
    number,
    number,
  ];
  const numFunctions = Math.floor((sizeBytes - TABLE_START_BYTES) / 8);
  if (major !== SUPPORTED_MAJOR_VERSION) {
    throw invalid(`it speaks PJRT ${major}.${minor}, and ${SUPPORTED_MAJOR_VERSION}.x is needed`);
  }

  const type = koffi.proto('void *', ['void *']);
  const bind = (name: PjrtFunction): NativeFunction => {
    const at = FUNCTIONS[name];
    const address =
      at < numFunctions ? wordsAt(table + BigInt(TABLE_START_BYTES + at * 8), 1)[0]! : 0n;
    if (address === 0n) {
      throw invalid(`its version, PJRT ${major}.${minor}, is too old: it lacks ${name}`);
    }
    return koffi.decode(address, type) as NativeFunction;
  };
  const functions = Object.fromEntries(
    (Object.keys(FUNCTIONS) as PjrtFunction[]).map((name) => [name, bind(name)]),
  ) as Record<PjrtFunction, NativeFunction>;

  // Structs that a thread of the pool is using, kept from the garbage collector.
  const inFlight = new Set<Struct<string>>();
  const api: PjrtApi = {
    path,
    version: { major, minor },
    call(name, args, failure) {
      const error = functions[name](args.words);
      if (error !== null) throw takeError(functions, error, failure);
    },
    callAsync(name, args, failure) {
      inFlight.add(args);
      return new Promise((done, fail) => {
        functions[name].async(args.words, (thrown, error) => {
          inFlight.delete(args);
          if (thrown !== null) fail(thrown);
          else if (error !== null) fail(takeError(functions, error, failure));
          else done();
        });
      });
    },
    async awaitEvent(event, failure) {
      const args = PJRT_Event_Args({ event });
      try {
        api.call('PJRT_Event_IsReady', args, failure);
        const isReady = args.number('is_ready') !== 0;
        if (isReady) api.call('PJRT_Event_Error', args, failure);
        else await api.callAsync('PJRT_Event_Await', args, failure);
        return isReady;
      } finally {
        api.call('PJRT_Event_Destroy', args, failure);
      }
    },
    awaitEventSync(event, failure) {
      const args = PJRT_Event_Args({ event });
      try {
        api.call('PJRT_Event_Await', args, failure);
      } finally {
        api.call('PJRT_Event_Destroy', args, failure);
      }
    },
  };
  return api;
}

/** Reads a plugin's error and frees it. */
function takeError(
  functions: Record<PjrtFunction, NativeFunction>,
  error: bigint,
  { code, what }: Failure,
): PjrtError {
  try {
    const said = PJRT_Error_Args({ error });
    functions.PJRT_Error_Message(said.words);
    const status = PJRT_Error_GetCode_Args({ error });
    functions.PJRT_Error_GetCode(status.words);
    const name = STATUSES[status.number('code')] ?? 'UNKNOWN';
    const text = textAt(said.get('message'), said.get('message_size'));
    const message = `${what}: ${name}: ${text.replace(/\.?\s*$/, '')}`;
    if (name === 'RESOURCE_EXHAUSTED')
      return new PjrtError('PJRT_OUT_OF_MEMORY', `${message}. ${USE_LESS}`, { status: name });
    if (DEVICE_LOST.test(text))
      return new PjrtError('PJRT_DEVICE_LOST', `${message}. ${START_AGAIN}`, { status: name });
    return new PjrtError(code, message, { status: name });
  } finally {
    functions.PJRT_Error_Destroy(PJRT_Error_Args({ error }).words);
  }
}

/** What to do when memory does not suffice. */
export const USE_LESS =
  'Make the batch or the model smaller, compute in bfloat16, or spread the program over more devices.';

// Errors of a GPU after which every call of its context fails; the plugin passes them on by name, as INTERNAL.
// Source: CUresult in cuda.h ("the process must be terminated and relaunched"), hipError_t in hip_runtime_api.h.
const DEVICE_LOST = new RegExp(
  '\\bCUDA_ERROR_(ILLEGAL_ADDRESS|ILLEGAL_INSTRUCTION|LAUNCH_FAILED|LAUNCH_TIMEOUT|HARDWARE_STACK_ERROR|' +
    'ECC_UNCORRECTABLE|NVLINK_UNCORRECTABLE|MISALIGNED_ADDRESS|INVALID_ADDRESS_SPACE|INVALID_PC|ASSERT|' +
    'CONTEXT_IS_DESTROYED|DEVICE_UNAVAILABLE|CONTAINED|EXTERNAL_DEVICE)\\b|' +
    '\\bhipError(IllegalAddress|LaunchFailure|LaunchTimeOut|ECCNotCorrectable|Assert|ContextIsDestroyed)\\b',
);
const START_AGAIN =
  'The device does not answer this process any more: start it again from its last checkpoint. If that fails too, ' +
  'see what `videoloom engine doctor` and `dmesg` say.';

type NativeFunction = ((args: BigUint64Array) => bigint | null) & {
  async(
    args: BigUint64Array,
    callback: (thrown: Error | null, result: bigint | null) => void,
  ): void;
};

// koffi unloads a library when its handle is collected or Node tears down, while threads of the plugin still run and its
// exit handlers are yet to come. A reference of the system's own is never given back.
function stayLoaded(path: string): void {
  const dlopen = koffi.load(null).func('void *dlopen(const char *path, int flags)') as (
    path: string,
    flags: number,
  ) => bigint | null;
  dlopen(path, RTLD_NOW);
}

const RTLD_NOW = 2;

const SUPPORTED_MAJOR_VERSION = 0;
// Bytes of PJRT_Api before its first function.
const TABLE_START_BYTES = 40;

/** Positions in the function table. Source: the order of struct PJRT_Api in pjrt_c_api.h, which only grows. */
const FUNCTIONS = {
  PJRT_Error_Destroy: 0,
  PJRT_Error_Message: 1,
  PJRT_Error_GetCode: 2,
  PJRT_Plugin_Initialize: 3,
  PJRT_Plugin_Attributes: 4,
  PJRT_Event_Destroy: 5,
  PJRT_Event_IsReady: 6,
  PJRT_Event_Error: 7,
  PJRT_Event_Await: 8,
  PJRT_Client_Create: 10,
  PJRT_Client_Destroy: 11,
  PJRT_Client_PlatformName: 12,
  PJRT_Client_PlatformVersion: 14,
  PJRT_Client_Devices: 15,
  PJRT_Client_AddressableDevices: 16,
  PJRT_Client_Compile: 20,
  PJRT_Client_BufferFromHostBuffer: 22,
  PJRT_DeviceDescription_Id: 23,
  PJRT_DeviceDescription_ProcessIndex: 24,
  PJRT_DeviceDescription_Kind: 26,
  PJRT_DeviceDescription_ToString: 28,
  PJRT_Device_GetDescription: 29,
  PJRT_Device_MemoryStats: 34,
  PJRT_Executable_Destroy: 40,
  PJRT_Executable_NumOutputs: 44,
  PJRT_Executable_GetCostAnalysis: 46,
  PJRT_Executable_Serialize: 49,
  PJRT_LoadedExecutable_Destroy: 50,
  PJRT_LoadedExecutable_GetExecutable: 51,
  PJRT_LoadedExecutable_AddressableDevices: 52,
  PJRT_LoadedExecutable_Execute: 55,
  PJRT_Executable_DeserializeAndLoad: 56,
  PJRT_Buffer_Destroy: 58,
  PJRT_Buffer_GetMemoryLayout: 63,
  PJRT_Buffer_IsDeleted: 68,
  PJRT_Buffer_ToHostBuffer: 70,
  PJRT_Buffer_IsOnCpu: 71,
  PJRT_Buffer_ReadyEvent: 72,
  PJRT_Buffer_UnsafePointer: 73,
  PJRT_Executable_OutputElementTypes: 90,
  PJRT_Executable_OutputDimensions: 91,
  PJRT_Executable_GetCompiledMemoryStats: 96,
} as const;

/** A function of the C API that is used here. */
export type PjrtFunction = keyof typeof FUNCTIONS;

const STATUSES = [
  'OK',
  'CANCELLED',
  'UNKNOWN',
  'INVALID_ARGUMENT',
  'DEADLINE_EXCEEDED',
  'NOT_FOUND',
  'ALREADY_EXISTS',
  'PERMISSION_DENIED',
  'RESOURCE_EXHAUSTED',
  'FAILED_PRECONDITION',
  'ABORTED',
  'OUT_OF_RANGE',
  'UNIMPLEMENTED',
  'INTERNAL',
  'UNAVAILABLE',
  'DATA_LOSS',
  'UNAUTHENTICATED',
] as const;
