import { type PjrtClient, openPjrtClient } from '../client.ts';
import { ensurePlugin, pluginCacheDir } from '../plugin.ts';

/** The CPU plugin as the product fetches it, in the user's own cache. */
export function cpuPlugin(): Promise<string> {
  return ensurePlugin({
    name: 'cpu',
    pluginPath: process.env['PJRT_PLUGIN_PATH'],
    cacheDir: pluginCacheDir(process.env),
  });
}

/** A client of the CPU plugin; the caller closes it. */
export async function openCpuClient(): Promise<PjrtClient> {
  return openPjrtClient({ pluginPath: await cpuPlugin() });
}
