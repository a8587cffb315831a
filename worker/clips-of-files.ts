import { isAbsolute, relative, resolve, sep } from 'node:path';
import { UsageError } from '../proto/errors.ts';
import { makeIndex } from '../video/index/make-index.ts';
import type { SampleIndex } from '../video/index/sample-index.ts';
import { openDataAccess } from '../video/loading/data-access.ts';
import { openClipLoader, type ClipLoader } from '../video/loading/loader.ts';
import { StorageError, type Store } from '../video/storage/store.ts';
import { heldOutAmong } from './clip-of-file.ts';
import { clipLoaderOptions, dataAccessOptions, type Run } from './run.ts';

/** Pictures and films that are not of a run's data, each one clip, however long it is. */
export interface ClipsOfFiles {
  /** They are its held-out samples; its files begin with those of the run, in their rows. */
  readonly index: SampleIndex;
  readonly loader: ClipLoader;
  /** Sample of a file; undefined where it cannot be used. */
  sampleOf(path: string): number | undefined;
  close(): Promise<void>;
}

/**
 * @param paths relative to the folder `root`, each once
 * @throws UsageError MEDIA_OUTSIDE where one leads out of it, MEDIA_MISSING where one is not there; DataError DATA_EMPTY
 *   where none can be used; StorageError
 */
export async function openClipsOfFiles(
  run: Pick<Run, 'config'> & { readonly index: Pick<SampleIndex, 'files'> },
  { root, paths, cacheDir }: { root: string; paths: readonly string[]; cacheDir: string },
): Promise<ClipsOfFiles> {
  const names = new Map(paths.map((path) => [path, nameIn(root, path)]));
  const access = await openDataAccess(dataAccessOptions(run.config, resolve(root), cacheDir));
  try {
    const made = await makeIndex({
      ...access,
      store: onlyThese(access.store, [...new Set(names.values())].sort(), root),
      ...{ source: 'folder', clipSeconds: Infinity, heldOutFraction: 0 },
    });
    const index = { ...made, ...heldOutAmong(run.index.files, made) };
    // By the names that they have here: files with the bytes of one of the run's files share its row.
    const samples = new Map(
      [...made.train, ...made.heldOut].map(({ media }, sample) => [
        made.files[media[0]!.file]!.path,
        sample,
      ]),
    );
    return {
      index,
      loader: openClipLoader(clipLoaderOptions(run.config, index, 'heldOut', access)),
      sampleOf: (path) => samples.get(names.get(path)!),
      close: () => access.close(),
    };
  } catch (error) {
    await access.close();
    throw error;
  }
}

/** A path as the store of the folder has it. */
function nameIn(root: string, path: string): string {
  const name = relative(resolve(root), resolve(root, path));
  if (name.startsWith('..') || isAbsolute(name))
    throw new UsageError(
      'MEDIA_OUTSIDE',
      `${path} is not below ${root}: name the folder that all of them are in with --media`,
    );
  return name.split(sep).join('/');
}

/** A store in which there are only these files: listing them throws UsageError MEDIA_MISSING where one is not there. */
function onlyThese(store: Store, names: readonly string[], root: string): Store {
  return {
    ...store,
    async *list() {
      const missing: string[] = [];
      for (const path of names) {
        try {
          yield { path, sizeBytes: await store.sizeOf(path) };
        } catch (error) {
          if (!(error instanceof StorageError) || error.code !== 'NOT_FOUND') throw error;
          missing.push(path);
        }
      }
      if (missing.length === 0) return;
      const shown = [...missing.slice(0, 3), ...(missing.length > 3 ? ['...'] : [])].join(', ');
      throw new UsageError(
        'MEDIA_MISSING',
        `${missing.length} of ${names.length} files are not below ${root} (${shown}): put them there, or name the folder ` +
          'that all of them are in with --media',
      );
    },
  };
}
