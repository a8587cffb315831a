import path from 'node:path';

import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { ensurePlugin, pluginCacheDir } from '../../pjrt/plugin.ts';
import { openEngine } from '../engine.ts';
import type { Engine } from '../engine.ts';

/** Both engines. */
export interface TestEngines {
  readonly xla: Engine;
  readonly cpu: Engine;
  readonly cacheDir: string;
  close(): void;
}

/** `emptyCache`: with a program cache of its own; else the user's, so that the next tests need not compile again. */
export async function openTestEngines({ emptyCache = false } = {}): Promise<TestEngines> {
  const cacheDir = emptyCache
    ? await temporaryFolder('backend')
    : path.dirname(pluginCacheDir(process.env));
  const cpu = await openEngine({ engine: 'cpu', cacheDir });
  const xla = await openTestXla(cacheDir);
  return {
    xla,
    cpu,
    cacheDir,
    close() {
      xla.close();
      cpu.close();
    },
  };
}

export async function openTestXla(cacheDir: string): Promise<Engine> {
  const pluginPath = await ensurePlugin({
    name: 'cpu',
    cacheDir: pluginCacheDir(process.env),
    pluginPath: process.env['PJRT_PLUGIN_PATH'],
  });
  return openEngine({ engine: 'xla', pluginPath, cacheDir });
}
