import { join } from 'node:path';
import { openEngine, type Engine, type EngineName } from './backend/engine.ts';
import { meshAxes } from './parallel/sharding.ts';
import { ensurePlugin } from './pjrt/plugin.ts';
import type { Run } from './run.ts';

/** The file of the plugin that {@link openRunEngine} loads for the `xla` engine. */
export function enginePlugin({
  pluginPath,
  cacheDir,
}: {
  readonly pluginPath: string;
  readonly cacheDir: string;
}): Promise<string> {
  const named = pluginPath === '' ? {} : { pluginPath };
  return ensurePlugin({ name: 'cpu', cacheDir: join(cacheDir, 'pjrt'), ...named });
}

/** Opens the engine as a run's config sets it; an empty `pluginPath` means the pinned plugin. */
export function openRunEngine(
  { config }: Pick<Run, 'config'>,
  {
    engine,
    pluginPath,
    cacheDir,
  }: { readonly engine: EngineName; readonly pluginPath: string; readonly cacheDir: string },
): Promise<Engine> {
  const { threads, precision, devices, memoryFraction } = config.engine;
  return openEngine({
    engine,
    ...(pluginPath === '' ? {} : { pluginPath }),
    cacheDir,
    threads,
    precision,
    devices,
    memoryFraction,
    mesh: meshAxes(config.parallel),
  });
}
