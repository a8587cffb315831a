/** The system of a run as its folder describes it. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { INDEX_FILE, readIndex, type SampleIndex } from '../video/index/sample-index.ts';
import { resolveConfig, type Config } from './config.ts';
import { systemNamed } from './systems/registry.ts';
import type { VideoLanguageSystem } from './systems/system.ts';

/** Files of a run folder that `prepare` writes and every worker reads; `run.json` is written last. */
export const RUN_FILES = {
  config: 'config.resolved.yaml',
  index: INDEX_FILE,
} as const;

export interface RunSystem {
  readonly config: Config;
  readonly index: SampleIndex;
  /** With all parameters and whatever initial values. */
  readonly system: VideoLanguageSystem;
}

/** `overrides` change fields of the run's config for this reader alone. */
export async function openRunSystem(
  folder: string,
  overrides: readonly string[] = [],
): Promise<RunSystem> {
  const file = join(folder, RUN_FILES.config);
  const config = resolveConfig({ text: await readFile(file, 'utf8'), file, overrides });
  const index = await readIndex(join(folder, RUN_FILES.index));
  const system = await systemNamed(config.model.name).open({ config, index, folder });
  return { config, index, system };
}
