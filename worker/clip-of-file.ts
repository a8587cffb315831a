import { readdir } from 'node:fs/promises';
import { basename, dirname, extname, resolve } from 'node:path';
import { makeIndex } from '../video/index/make-index.ts';
import type { MediaFile, Sample } from '../video/index/sample.ts';
import type { SampleIndex } from '../video/index/sample-index.ts';
import { openDataAccess, type DataAccess } from '../video/loading/data-access.ts';
import { openClipLoader } from '../video/loading/loader.ts';
import { kindOf } from '../video/sources/media-names.ts';
import { StorageError, type Store } from '../video/storage/store.ts';
import { rowsOf } from './batches.ts';
import { clipLoaderOptions, dataAccessOptions, type Run } from './run.ts';
import type { Row } from './systems/system.ts';

/** A file's clips as a run's model sees them, and what they are of. */
export interface ClipsOfFile {
  /** Clips are held out. Its files begin with those of the run, in their rows: systems know files by these. */
  readonly index: SampleIndex;
  readonly data: DataAccess;
  readonly rows: readonly Row[];
  close(): Promise<void>;
}

/**
 * Opens a video or picture that is not of the run's data, with its words in files of the same name beside it; a long one
 * is cut into clips as the run's data are.
 *
 * @throws DataError where the file cannot be used; what decoding throws
 */
export async function openClipsOfFile(
  run: Pick<Run, 'config'> & { readonly index: Pick<SampleIndex, 'files'> },
  file: string,
  cacheDir: string,
): Promise<ClipsOfFile> {
  const folder = dirname(resolve(file));
  const options = dataAccessOptions(run.config, folder, cacheDir);
  const access = await openDataAccess({ ...options, frameDiskBytes: 0 });
  try {
    const store = onlyNamed(access.store, folder, basename(file));
    const { clipSeconds } = run.config.data;
    const made = await makeIndex({
      ...access,
      ...{ store, source: 'folder', clipSeconds, heldOutFraction: 0 },
    });
    // Held out: clips to train on are shown in part and turned about at random.
    const index = { ...made, ...heldOutAmong(run.index.files, made) };
    const { heldOut } = index;
    const loader = openClipLoader(clipLoaderOptions(run.config, index, 'heldOut', access));
    const requests = heldOut.map((_, sample) => ({ sample, epoch: 0, substitutes: [] }));
    const rows = rowsOf(heldOut, requests, await loader.load(requests));
    return { index, data: access, rows, close: () => access.close() };
  } catch (error) {
    await access.close();
    throw error;
  }
}

/**
 * All samples of an index, those to train on first, held out, with its files among the known ones: in the row of the same
 * bytes, which several may share, or behind.
 */
export function heldOutAmong(
  known: readonly MediaFile[],
  { files: own, train, heldOut }: SampleIndex,
): Pick<SampleIndex, 'files' | 'train' | 'heldOut'> {
  const files = [...known];
  const rows = own.map((file) => {
    const same = known.findIndex(({ sha256 }) => sha256 === file.sha256);
    const row = same < 0 ? files.length : same;
    files[row] = file;
    return row;
  });
  const moved = (sample: Sample): Sample => ({
    ...sample,
    media: sample.media.map((span) => ({ ...span, file: rows[span.file]! })),
  });
  return { files, train: [], heldOut: [...train, ...heldOut].map(moved) };
}

/**
 * A store of a folder in which there is only a file and what has its name beside it, `clip.en.vtt` for one, but no
 * other medium. Nothing else is looked at, and no folder below it: they may be many, and may not be open to all.
 */
export function onlyNamed(store: Store, folder: string, name: string): Store {
  const stem = basename(name, extname(name));
  const isBeside = (other: string): boolean =>
    other !== name && other.startsWith(`${stem}.`) && kindOf(other) === undefined;
  return {
    ...store,
    async *list() {
      // First of all the file: what is wrong with it is told.
      yield { path: name, sizeBytes: await store.sizeOf(name) };
      // A folder that may be entered but not listed has files all the same.
      const names = await readdir(folder).catch(() => []);
      for (const path of names.filter(isBeside).sort()) {
        try {
          yield { path, sizeBytes: await store.sizeOf(path) };
        } catch (error) {
          // A folder, or a link that leads elsewhere.
          if (!(error instanceof StorageError)) throw error;
        }
      }
    },
  };
}
