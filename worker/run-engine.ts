import { openEngine, type Engine, type EngineName } from './backend/engine.ts';
import { meshAxes } from './parallel/sharding.ts';
import type { Run } from './run.ts';

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
