// The process in which `diagnosePlugin` tries a plugin; it talks over the IPC channel of `fork`.
import { messageOf } from '../../proto/errors.ts';
import { openPjrtClient } from './client.ts';

/** What the probe has seen so far. */
export interface ProbeReply {
  readonly apiVersion?: string;
  readonly platform?: string;
  readonly devices?: readonly { readonly kind: string; readonly description: string }[];
  readonly computes: boolean;
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
  const client = await openPjrtClient({ pluginPath });
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
    report({
      computes,
      ...(computes
        ? {}
        : { problem: `The plugin ${pluginPath} multiplies wrongly: ${values.join()}.` }),
    });
  } finally {
    client.close();
  }
}

const PRODUCT = `
module @doctor {
  func.func public @main(%a: tensor<2x2xf32>, %b: tensor<2x2xf32>) -> tensor<2x2xf32> {
    %0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0], precision = [HIGHEST, HIGHEST]
      : (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x2xf32>
    return %0 : tensor<2x2xf32>
  }
}`;
