import { hostname } from 'node:os';
import { readRunPlan, type RunPlan } from '../proto/run-plan.ts';
import { userCacheDir } from '../proto/user-cache.mjs';
import {
  openDataAccess,
  type DataAccess,
  type DataAccessOptions,
} from '../video/loading/data-access.ts';
import {
  openClipLoader,
  type ClipLoader,
  type ClipLoaderOptions,
} from '../video/loading/loader.ts';
import type { SampleIndex } from '../video/index/sample-index.ts';
import type { Config } from './config.ts';
import type { DecodeCounters } from './metrics.ts';
import { withInitialWeights } from './initial-weights.ts';
import { openRunSystem } from './run-system.ts';
import type { VideoLanguageSystem } from './systems/system.ts';

/** What a prepared run is, from the files of its folder. */
export interface DescribedRun {
  readonly folder: string;
  readonly host: string;
  readonly plan: RunPlan;
  readonly config: Config;
  readonly index: SampleIndex;
  readonly system: VideoLanguageSystem;
}

/** A prepared run, opened by a worker. */
export interface Run extends DescribedRun {
  readonly data: DataAccess;
  readonly trainLoader: ClipLoader;
  readonly heldOutLoader: ClipLoader;
  /** What the decoders have done so far. */
  counters(): DecodeCounters;
  close(): Promise<void>;
}

/** Opens a folder that `prepare` has made. @throws as {@link describeRun}, {@link openRunData} */
export async function openRun(folder: string, overrides: readonly string[] = []): Promise<Run> {
  return openRunData(await describeRun(folder, overrides));
}

/**
 * Reads a folder that `prepare` has made; `overrides` change fields of its config for this reader alone.
 *
 * @throws UsageError `RUN_PLAN_MISSING` when it is none; as {@link withInitialWeights}
 */
export async function describeRun(
  folder: string,
  overrides: readonly string[] = [],
): Promise<DescribedRun> {
  const plan = await readRunPlan(folder);
  const { config, index, system } = await openRunSystem(folder, overrides);
  const sha256 = plan.initialSha256;
  const beginning = await withInitialWeights(system, config, { folder, sha256 });
  return { folder, host: hostname(), plan, config, index, system: beginning };
}

/** Starts what reads and decodes a run's data. @throws as `openDataAccess` */
export async function openRunData(run: DescribedRun): Promise<Run> {
  const { config, index } = run;
  const access = await openDataAccess(
    dataAccessOptions(config, index.root, userCacheDir(process.env)),
  );
  const trainLoader = openClipLoader(clipLoaderOptions(config, index, 'train', access));
  const heldOutLoader = openClipLoader(clipLoaderOptions(config, index, 'heldOut', access));
  return {
    ...run,
    data: access,
    trainLoader,
    heldOutLoader,
    counters: () => ({
      framesDecoded: access.pool.stats.numFrames,
      failuresByReason: addCounts(trainLoader.stats.errorsByCode, heldOutLoader.stats.errorsByCode),
    }),
    close: () => access.close(),
  };
}

function addCounts(...parts: readonly Record<string, number>[]): Record<string, number> {
  const sums: Record<string, number> = {};
  for (const [name, count] of parts.flatMap((part) => Object.entries(part))) {
    sums[name] = (sums[name] ?? 0) + count;
  }
  return sums;
}

/** How the data at `root` are reached. */
export function dataAccessOptions(
  { data }: Config,
  root: string,
  cacheDir: string,
): DataAccessOptions {
  return {
    root,
    decoders: data.decoders,
    decodeTimeoutSeconds: data.decodeTimeoutSeconds,
    mediaCacheBytes: data.mediaCacheGibibytes * 2 ** 30,
    frameDiskBytes: data.frameDiskGibibytes * 2 ** 30,
    allowPrivateHosts: data.allowPrivateHosts,
    cacheDir,
  };
}

/** How clips of a split are sampled: a function of the config alone, so every worker sees the same frames. */
export function clipLoaderOptions(
  { data, train }: Config,
  index: SampleIndex,
  split: 'train' | 'heldOut',
  { media, pool, frames }: DataAccess,
): ClipLoaderOptions {
  return {
    index,
    media,
    split,
    pool,
    frames,
    frameSize: data.frameSize,
    numWindows: data.windows,
    framesPerWindow: data.framesPerWindow,
    audio: data.audio ?? undefined,
    view: {
      sampling: data.sampling,
      fit: data.fit,
      augment: data.augment,
      seed: train.seed,
    },
    cacheBytes: data.cacheMebibytes * 2 ** 20,
  };
}
