import { koffi } from '../../proto/koffi.ts';

/** A word of a struct: a number, an address, or memory of this process whose address is taken. */
export type Word = bigint | number | boolean | ArrayBufferView | Struct<string> | undefined;

/** One C struct in memory. It keeps what its words point at alive; hold it until the runtime is done with it. */
export interface Struct<Field extends string> {
  readonly words: BigUint64Array;
  /** Reads a field that the runtime has written. */
  get(field: Field): bigint;
  set(field: Field, value: bigint): void;
  /** Reads a field as a count, size or small integer. */
  number(field: Field): number;
  readonly references: readonly (ArrayBufferView | Struct<string>)[];
}

/** Makes structs of one type; fields that are not given are zero. */
export type StructType<Field extends string> = (
  values: Partial<Record<Field, Word>>,
) => Struct<Field>;

// Typed arrays under 64 bytes live on V8's moving heap until their buffer is asked for.
const MIN_WORDS = 16;

/**
 * Lays out a struct of `pjrt_c_api.h`: 8-byte words after `struct_size` and `extension_start`. Narrower members
 * (int, bool, enum) take a word each, as the structs used here never have two of them side by side.
 */
function struct<const Field extends string>(...fields: Field[]): StructType<Field> {
  const index = new Map<string, number>(fields.map((field, at) => [field, at + 2]));
  const sizeBytes = BigInt((fields.length + 2) * 8);
  return (values) => {
    // The words past `sizeBytes` are spare room for a plugin that writes a newer, longer struct.
    const words = new BigUint64Array(Math.max(MIN_WORDS, fields.length + 10));
    words[0] = sizeBytes;
    const references: (ArrayBufferView | Struct<string>)[] = [];
    for (const field in values) {
      const value: Word = values[field];
      if (value === undefined) continue;
      if (typeof value === 'object') references.push(value);
      words[index.get(field)!] = wordOf(value);
    }
    return new WordStruct(words, index, references);
  };
}

class WordStruct<Field extends string> implements Struct<Field> {
  readonly words: BigUint64Array;
  readonly references: readonly (ArrayBufferView | Struct<string>)[];
  readonly #index: ReadonlyMap<string, number>;

  constructor(
    words: BigUint64Array,
    index: ReadonlyMap<string, number>,
    references: readonly (ArrayBufferView | Struct<string>)[],
  ) {
    this.words = words;
    this.#index = index;
    this.references = references;
  }

  get(field: Field): bigint {
    return this.words[this.#index.get(field)!]!;
  }

  set(field: Field, value: bigint): void {
    this.words[this.#index.get(field)!] = value;
  }

  number(field: Field): number {
    return Number(this.get(field));
  }
}

/** The structs one after the other, as a C array of them. */
export function arrayOf(structs: readonly Struct<string>[]): Struct<string> {
  const sizes = structs.map(({ words }) => Number(words[0]) / 8);
  const words = new BigUint64Array(
    Math.max(
      MIN_WORDS,
      sizes.reduce((sum, size) => sum + size, 0),
    ),
  );
  let at = 0;
  for (const [i, struct] of structs.entries()) {
    words.set(struct.words.subarray(0, sizes[i]), at);
    at += sizes[i]!;
  }
  return new WordStruct(words, new Map(), structs);
}

function wordOf(value: Exclude<Word, undefined>): bigint {
  if (typeof value !== 'object') return BigInt(value);
  return addressOf(ArrayBuffer.isView(value) ? value : value.words);
}

/** The address of memory of this process; 0 for empty memory, which has none. */
export function addressOf(memory: ArrayBufferView): bigint {
  return memory.byteLength === 0 ? 0n : koffi.address(memory);
}

/** Copies `sizeBytes` bytes of native memory at `address`. */
export function bytesAt(address: bigint, sizeBytes: number | bigint): Uint8Array<ArrayBuffer> {
  const size = Number(sizeBytes);
  return size === 0 ? new Uint8Array() : new Uint8Array(koffi.view(address, size)).slice();
}

/** Copies `count` 8-byte words of native memory at `address`. */
export function wordsAt(address: bigint, count: number): BigUint64Array<ArrayBuffer> {
  return new BigUint64Array(bytesAt(address, count * 8).buffer);
}

/** Reads `sizeBytes` bytes of UTF-8 at `address`. */
export function textAt(address: bigint, sizeBytes: number | bigint): string {
  return Buffer.from(bytesAt(address, sizeBytes)).toString('utf8');
}

/** Calls a C function `void deleter(void *object)`. */
export function callDeleter(deleter: bigint, object: bigint): void {
  koffi.call(deleter, DELETER, object);
}
const DELETER = koffi.proto('void', ['void *']);

// Source: pjrt_c_api.h of PJRT 0.81; the members and their order have not changed since.
export const PJRT_Error_Args = struct('error', 'message', 'message_size');
export const PJRT_Error_GetCode_Args = struct('error', 'code');
export const PJRT_Plugin_Initialize_Args = struct();
export const PJRT_Plugin_Attributes_Args = struct('attributes', 'num_attributes');
export const PJRT_NamedValue = struct('name', 'name_size', 'type', 'value', 'value_size');
export const PJRT_Event_Args = struct('event', 'is_ready');
export const PJRT_Client_Create_Args = struct(
  'create_options',
  'num_options',
  'kv_get_callback',
  'kv_get_user_arg',
  'kv_put_callback',
  'kv_put_user_arg',
  'client',
  'kv_try_get_callback',
  'kv_try_get_user_arg',
);
export const PJRT_Client_Args = struct('client');
export const PJRT_Client_Text_Args = struct('client', 'text', 'text_size');
export const PJRT_Client_Devices_Args = struct('client', 'devices', 'num_devices');
export const PJRT_Device_GetDescription_Args = struct('device', 'description');
export const PJRT_Device_MemoryStats_Args = struct(
  'device',
  'bytes_in_use',
  'peak_bytes_in_use',
  'peak_bytes_in_use_is_set',
  'num_allocs',
  'num_allocs_is_set',
  'largest_alloc_size',
  'largest_alloc_size_is_set',
  'bytes_limit',
  'bytes_limit_is_set',
  'bytes_reserved',
  'bytes_reserved_is_set',
  'peak_bytes_reserved',
  'peak_bytes_reserved_is_set',
  'bytes_reservable_limit',
  'bytes_reservable_limit_is_set',
  'largest_free_block_bytes',
  'largest_free_block_bytes_is_set',
  'pool_bytes',
  'pool_bytes_is_set',
  'peak_pool_bytes',
  'peak_pool_bytes_is_set',
);
// An int, in the word that it lies in: the id, or the index of the process.
export const PJRT_DeviceDescription_Number_Args = struct('description', 'value');
export const PJRT_DeviceDescription_Text_Args = struct('description', 'text', 'text_size');
export const PJRT_Program = struct('code', 'code_size', 'format', 'format_size');
export const PJRT_Client_Compile_Args = struct(
  'client',
  'program',
  'compile_options',
  'compile_options_size',
  'executable',
);
export const PJRT_Client_BufferFromHostBuffer_Args = struct(
  'client',
  'data',
  'type',
  'dims',
  'num_dims',
  'byte_strides',
  'num_byte_strides',
  'host_buffer_semantics',
  'device',
  'memory',
  'device_layout',
  'done_with_host_buffer',
  'buffer',
);
export const PJRT_Executable_NumOutputs_Args = struct('executable', 'num_outputs');
export const PJRT_Executable_OutputElementTypes_Args = struct('executable', 'types', 'num_types');
export const PJRT_Executable_OutputDimensions_Args = struct(
  'executable',
  'num_outputs',
  'dims',
  'dim_sizes',
);
export const PJRT_Executable_GetCostAnalysis_Args = struct(
  'executable',
  'num_properties',
  'properties',
);
export const PJRT_Executable_GetCompiledMemoryStats_Args = struct(
  'executable',
  'generated_code',
  'argument',
  'output',
  'alias',
  'temp',
  'host_generated_code',
  'host_argument',
  'host_output',
  'host_alias',
  'host_temp',
  'peak',
);
export const PJRT_Executable_Serialize_Args = struct(
  'executable',
  'bytes',
  'bytes_size',
  'serialized_executable',
  'deleter',
);
export const PJRT_Executable_DeserializeAndLoad_Args = struct(
  'client',
  'bytes',
  'bytes_size',
  'loaded_executable',
  'compile_options',
  'compile_options_size',
);
export const PJRT_LoadedExecutable_AddressableDevices_Args = struct(
  'executable',
  'addressable_devices',
  'num_addressable_devices',
);
export const PJRT_LoadedExecutable_GetExecutable_Args = struct('loaded_executable', 'executable');
export const PJRT_ExecuteOptions = struct(
  'send_callbacks',
  'recv_callbacks',
  'num_send_ops',
  'num_recv_ops',
  'launch_id',
  'non_donatable_input_indices',
  'num_non_donatable_input_indices',
  'context',
  'call_location',
  'num_tasks',
  'task_ids',
  'incarnation_ids',
);
export const PJRT_LoadedExecutable_Execute_Args = struct(
  'executable',
  'options',
  'argument_lists',
  'num_devices',
  'num_args',
  'output_lists',
  'device_complete_events',
  'execute_device',
);
export const PJRT_Buffer_Args = struct('buffer');
export const PJRT_Buffer_MemoryLayout = struct(
  'tiled_struct_size',
  'tiled_extension_start',
  'minor_to_major',
  'minor_to_major_size',
  'tile_dims',
  'tile_dim_sizes',
  'num_tiles',
  'type',
);
export const PJRT_Buffer_GetMemoryLayout_Args = struct(
  'buffer',
  // The PJRT_Buffer_MemoryLayout that it holds, flat.
  'layout_struct_size',
  'layout_extension_start',
  'tiled_struct_size',
  'tiled_extension_start',
  'minor_to_major',
  'minor_to_major_size',
  'tile_dims',
  'tile_dim_sizes',
  'num_tiles',
  'type',
);
export const PJRT_Buffer_IsOnCpu_Args = struct('buffer', 'is_on_cpu');
export const PJRT_Buffer_ReadyEvent_Args = struct('buffer', 'event');
export const PJRT_Buffer_UnsafePointer_Args = struct('buffer', 'buffer_pointer');
export const PJRT_Buffer_ToHostBuffer_Args = struct(
  'buffer',
  'host_layout',
  'dst',
  'dst_size',
  'event',
);
