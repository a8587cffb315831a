import assert from 'node:assert/strict';
import { PjrtError } from '../c-api.ts';
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

/** For `assert.throws` and `assert.rejects`: a PjrtError of that code whose message matches. */
export const isPjrtError =
  (code: string, message: RegExp) =>
  (error: unknown): boolean => {
    assert.ok(error instanceof PjrtError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  };
