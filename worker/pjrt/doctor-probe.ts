// The process in which `diagnosePlugin` tries a plugin; it talks over the IPC channel of `fork`.
import { messageOf } from '../../proto/errors.ts';
import { openPjrtClient, type PjrtClient } from './client.ts';

/** What the probe has seen so far. */
export interface ProbeReply {
  readonly apiVersion?: string;
  readonly platform?: string;
  readonly devices?: readonly { readonly kind: string; readonly description: string }[];
  readonly computes: boolean;
  readonly devicesReduced?: number;
  readonly problem: string | undefined;
}

process.once('message', (message) => {
  const { pluginPath } = message as { pluginPath: string };
  let reply: ProbeReply = { computes: false, problem: undefined };
  const report = (more: Partial<ProbeReply>): void => {
    reply = { ...reply, ...more };
    process.send?.(reply);
  };
  tryPlugin(pluginPath, report)
    .catch((error: unknown) => {
      report({ problem: messageOf(error) });
    })
    .finally(() => {
      process.disconnect();
    });
});

async function tryPlugin(
  pluginPath: string,
  report: (more: Partial<ProbeReply>) => void,
): Promise<void> {
  const client = await openAll(pluginPath);
  try {
    report({
      apiVersion: client.apiVersion,
      platform: `${client.platformName} ${client.platformVersion}`,
      devices: client.devices.map(({ kind, description }) => ({ kind, description })),
    });
    if (client.devices.length === 0) {
      report({ problem: `The plugin ${pluginPath} works and sees no device.` });
      return;
    }

    const executable = await client.compile(PRODUCT);
    const matrix = client.bufferFromHost(Float32Array.of(1, 2, 3, 4), [2, 2], 'f32');
    const [product] = await executable.execute([matrix, matrix]);
    const values = Array.from(await product!.toHost(new Float32Array(4)));
    const computes = values.join() === '7,10,15,22';
    report({ computes });
    if (!computes) {
      report({ problem: `The plugin ${pluginPath} multiplies wrongly: ${values.join()}.` });
      return;
    }

    const numDevices = client.devices.length;
    const sums = await sumOverDevices(client);
    if (sums.every((sum) => sum === (numDevices * (numDevices + 1)) / 2))
      report({ devicesReduced: numDevices });
    else report({ problem: `The ${numDevices} devices add up wrongly: ${sums.join()}.` });
  } finally {
    client.close();
  }
}

/** A client of all devices; a CPU is two, so that there is something to add up. */
async function openAll(pluginPath: string): Promise<PjrtClient> {
  // Two threads a device of a CPU that waits for another; read when the client is made.
  process.env['NPROC'] = '4';
  const client = await openPjrtClient({ pluginPath });
  if (client.platformName !== 'cpu') return client;
  client.close();
  return openPjrtClient({ pluginPath, clientOptions: { cpu_device_count: 2 } });
}

/** The sum 1 + 2 + ... of one number from each device, as each device has it in the end. */
async function sumOverDevices(client: PjrtClient): Promise<number[]> {
  const deviceIndices = [...client.devices.keys()];
  const executable = await client.compile(allReduce(deviceIndices.length), { deviceIndices });
  const numbers = deviceIndices.map((at) => [
    client.bufferFromHost(Float32Array.of(at + 1), [1], 'f32', at),
  ]);
  const sums = await executable.executeOnAll(numbers);
  return Promise.all(sums.map(async ([sum]) => (await sum!.toHost(new Float32Array(1)))[0]!));
}

const allReduce = (numDevices: number): string => `
module @doctor {
  sdy.mesh @mesh = <["devices"=${numDevices}]>
  func.func public @main(%x: tensor<${numDevices}xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"devices"}]>})
      -> (tensor<f32> {sdy.sharding = #sdy.sharding<@mesh, []>}) {
    %zero = stablehlo.constant dense<0.0> : tensor<f32>
    %0 = stablehlo.reduce(%x init: %zero) applies stablehlo.add across dimensions = [0]
      : (tensor<${numDevices}xf32>, tensor<f32>) -> tensor<f32>
    return %0 : tensor<f32>
  }
}`;

const PRODUCT = `
module @doctor {
  func.func public @main(%a: tensor<2x2xf32>, %b: tensor<2x2xf32>) -> tensor<2x2xf32> {
    %0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0], precision = [HIGHEST, HIGHEST]
      : (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x2xf32>
    return %0 : tensor<2x2xf32>
  }
}`;
