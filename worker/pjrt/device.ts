import { type Failure, type PjrtApi, PjrtError } from './c-api.ts';
import {
  PJRT_Device_GetDescription_Args,
  PJRT_Device_MemoryStats_Args,
  PJRT_DeviceDescription_Number_Args,
  PJRT_DeviceDescription_Text_Args,
  textAt,
} from './structs.ts';

/** A device of a client. */
export interface PjrtDevice {
  /** Unlike any other's, also of other processes that the client has joined. */
  readonly id: number;
  /** Which of the joined processes it belongs to; 0 where a client is alone. */
  readonly processIndex: number;
  /** The vendor's name of the model, such as `NVIDIA H100 80GB HBM3` or `cpu`. */
  readonly kind: string;
  /** The runtime's name of this one device. */
  readonly description: string;
  /** Device memory now, for runtimes that count it; undefined for others, such as CPUs. */
  memory(): DeviceMemory | undefined;
  /** @internal The PJRT_Device. */
  readonly handle: bigint;
}

export interface DeviceMemory {
  readonly inUseBytes: number;
  readonly peakBytes: number | undefined;
  readonly limitBytes: number | undefined;
}

const FAILURE: Failure = { code: 'PJRT_CLIENT_FAILED', what: 'a device could not be described' };

/** Describes `device`, a PJRT_Device. */
export function readDevice(api: PjrtApi, device: bigint): PjrtDevice {
  const get = PJRT_Device_GetDescription_Args({ device });
  api.call('PJRT_Device_GetDescription', get, FAILURE);
  const description = get.get('description');
  const number = (
    name: 'PJRT_DeviceDescription_Id' | 'PJRT_DeviceDescription_ProcessIndex',
  ): number => {
    const args = PJRT_DeviceDescription_Number_Args({ description });
    api.call(name, args, FAILURE);
    return Number(BigInt.asIntN(32, args.get('value')));
  };
  const text = (
    name: 'PJRT_DeviceDescription_Kind' | 'PJRT_DeviceDescription_ToString',
  ): string => {
    const args = PJRT_DeviceDescription_Text_Args({ description });
    api.call(name, args, FAILURE);
    return textAt(args.get('text'), args.get('text_size'));
  };
  return {
    id: number('PJRT_DeviceDescription_Id'),
    processIndex: number('PJRT_DeviceDescription_ProcessIndex'),
    kind: text('PJRT_DeviceDescription_Kind'),
    description: text('PJRT_DeviceDescription_ToString'),
    handle: device,
    memory: () => readMemory(api, device),
  };
}

function readMemory(api: PjrtApi, device: bigint): DeviceMemory | undefined {
  const args = PJRT_Device_MemoryStats_Args({ device });
  try {
    api.call('PJRT_Device_MemoryStats', args, FAILURE);
  } catch (error) {
    if (error instanceof PjrtError && error.status === 'UNIMPLEMENTED') return undefined;
    throw error;
  }
  const optional = (field: 'peak_bytes_in_use' | 'bytes_limit'): number | undefined =>
    (args.get(`${field}_is_set`) & 0xffn) === 0n ? undefined : args.number(field);
  return {
    inUseBytes: args.number('bytes_in_use'),
    peakBytes: optional('peak_bytes_in_use'),
    limitBytes: optional('bytes_limit'),
  };
}
