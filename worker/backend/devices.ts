import { availableParallelism } from 'node:os';

import { openPjrtClient } from '../pjrt/client.ts';
import type { PjrtClient } from '../pjrt/client.ts';
import type { Mesh } from '../stablehlo/sharding.ts';
import { numDevicesOf } from '../stablehlo/sharding.ts';
import { clientOptions } from './client-options.ts';
import { EngineError } from './errors.ts';

/** Sizes of a mesh's axes; one of them may take the devices that the others leave. */
export type MeshAxes = Readonly<Record<string, number | 'rest'>>;

export interface Devices {
  readonly client: PjrtClient;
  /** Over the first devices of the client. */
  readonly mesh: Mesh;
  /** Size of the thread pool of a CPU client. */
  readonly threads: number;
}

export interface DeviceOptions {
  readonly pluginPath: string;
  readonly devices: number | 'all';
  readonly axes: MeshAxes;
  readonly threads: number | undefined;
  readonly memoryFraction?: number | undefined;
}

/**
 * Opens the plugin with that many devices in a mesh.
 *
 * @throws EngineError `XLA_MESH_INVALID`, `XLA_TOO_FEW_DEVICES`, `XLA_TOO_FEW_THREADS`; PjrtError of the plugin
 */
export async function openDevices({
  pluginPath,
  devices,
  axes,
  threads,
  memoryFraction,
}: DeviceOptions): Promise<Devices> {
  const atLeast = devices === 'all' ? 1 : devices;
  const poolSize = threads ?? Math.max(availableParallelism(), threadsFor(atLeast));
  // The CPU plugin reads this variable when the client is made, and takes no option for it.
  const before = process.env['NPROC'];
  if (threads !== undefined || atLeast > 1) process.env['NPROC'] = String(poolSize);
  const client = await openClient(pluginPath, devices, memoryFraction).finally(() => {
    if (before === undefined) delete process.env['NPROC'];
    else process.env['NPROC'] = before;
  });
  try {
    const numDevices = devices === 'all' ? client.devices.length : devices;
    const mesh = meshOf(axes, numDevices);
    if (numDevices > client.devices.length) {
      throw new EngineError(
        'XLA_TOO_FEW_DEVICES',
        `The engine is to use ${numDevices} devices, and ${client.platformName} has ${client.devices.length}. ` +
          'Lower engine.devices, or set it to all.',
      );
    }
    if (client.platformName === 'cpu' && poolSize < threadsFor(numDevices)) {
      throw new EngineError(
        'XLA_TOO_FEW_THREADS',
        `${numDevices} devices of a CPU wait for one another in a pool of ${poolSize} threads, which can end in a ` +
          `deadlock. Set engine.threads to ${threadsFor(numDevices)} or more.`,
      );
    }
    return { client, mesh, threads: poolSize };
  } catch (error) {
    client.close();
    throw error;
  }
}

/** A CPU is as many devices as one asks of it; the devices of others are counted. */
async function openClient(
  pluginPath: string,
  devices: number | 'all',
  memoryFraction: number | undefined,
): Promise<PjrtClient> {
  const client = await openPjrtClient({
    pluginPath,
    clientOptions: clientOptions(pluginPath, memoryFraction),
  });
  if (client.platformName !== 'cpu' || devices === 'all' || devices <= client.devices.length)
    return client;
  client.close();
  return openPjrtClient({ pluginPath, clientOptions: { cpu_device_count: devices } });
}

/**
 * A device of the CPU plugin that waits in a collective holds a thread, and two collectives may be under way that the
 * devices have begun in different orders.
 */
export function threadsFor(numDevices: number): number {
  return numDevices === 1 ? 1 : 2 * numDevices;
}

/** The mesh over `numDevices`. @throws EngineError `XLA_MESH_INVALID` when the axes are for another number */
export function meshOf(axes: MeshAxes, numDevices: number): Mesh {
  const text = Object.entries(axes)
    .map(([axis, size]) => `${axis} ${size}`)
    .join(', ');
  const fixed = Object.values(axes).reduce<number>(
    (product, size) => (size === 'rest' ? product : product * size),
    1,
  );
  const rest = numDevices / fixed;
  const mesh = Object.fromEntries(
    Object.entries(axes).map(([axis, size]) => [axis, size === 'rest' ? rest : size]),
  );
  if (Number.isInteger(rest) && numDevicesOf(mesh) === numDevices) return mesh;
  throw new EngineError(
    'XLA_MESH_INVALID',
    `The mesh (${text || 'without axes'}) does not come to ${numDevices} devices: the product of its axes must be ` +
      'the number of devices.',
  );
}
