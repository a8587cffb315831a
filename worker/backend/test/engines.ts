import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { ensurePlugin, pluginCacheDir } from '../../pjrt/plugin.ts';
import { openEngine } from '../engine.ts';
import type { Engine } from '../engine.ts';

/** Both engines. */
export interface TestEngines {
  readonly xla: Engine;
  readonly cpu: Engine;
  readonly cacheDir: string;
  close(): Promise<void>;
}

/** `emptyCache`: with a program cache of its own; else the user's, so that the next tests need not compile again. */
export async function openTestEngines({ emptyCache = false } = {}): Promise<TestEngines> {
  const cacheDir = emptyCache
    ? await mkdtemp(path.join(tmpdir(), 'videoloom-backend-'))
    : path.dirname(pluginCacheDir(process.env));
  const cpu = await openEngine({ engine: 'cpu', cacheDir });
  const xla = await openTestXla(cacheDir);
  return {
    xla,
    cpu,
    cacheDir,
    async close() {
      xla.close();
      cpu.close();
      if (emptyCache) await rm(cacheDir, { recursive: true, force: true });
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
