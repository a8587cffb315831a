/** Which source reads what people have. */
import { DataError } from '../index/sample-index.ts';
import type { Store, StoredFile } from '../storage/store.ts';
import { documents } from './documents.ts';
import { folder } from './folder.ts';
import { imageText } from './image-text.ts';
import { instructions } from './instructions.ts';
import { preferences } from './preferences.ts';
import { parquet } from './parquet.ts';
import type { Source } from './source.ts';
import { webdataset } from './webdataset.ts';
import { WORLD_MANIFEST } from '../world/manifest.ts';
import { webvid } from './webvid.ts';

/**
 * All sources in the order in which they are tried: what names media in records comes before the media themselves, and
 * shards come before the tables that img2dataset writes beside them.
 */
export const SOURCES: readonly Source[] = [
  webdataset,
  parquet,
  webvid,
  preferences,
  instructions,
  documents,
  imageText,
  folder,
];

/** Whether the files are what `videoloom data demo` makes. */
function isDemoWorld(files: readonly StoredFile[]): boolean {
  return (
    files.some(({ path }) => path === WORLD_MANIFEST) &&
    files.some(({ path }) => /^(?:train|held-out)\/(?:train|held-out)-\d+\.mp4$/.test(path))
  );
}

const LOOKED_FOR: readonly string[] = [
  'webdataset (.tar shards)',
  'parquet (tables with bytes, paths or URLs of media)',
  'webvid (.csv or .tsv with media and words)',
  'instructions (.json or .jsonl with conversations)',
  'preferences (.json or .jsonl with two answers, one preferred)',
  'documents (.json or .jsonl with images and texts in order)',
  'image-text (.json or .jsonl with images and captions)',
  'folder (videos or pictures, with .vtt, .srt, .txt or .json beside them)',
];

/**
 * The source of that name, else the first that recognises the files.
 * @throws DataError SOURCE_UNKNOWN, DATA_EMPTY; StorageError
 */
export async function sourceOf(
  store: Store,
  files: readonly StoredFile[],
  { name, signal }: { name?: string | undefined; signal?: AbortSignal | undefined } = {},
): Promise<Source> {
  if (name !== undefined) {
    const named = SOURCES.find((source) => source.name === name);
    if (named !== undefined) return named;
    const known = SOURCES.map((source) => source.name).join(', ');
    throw new DataError(
      'SOURCE_UNKNOWN',
      `there is no source ${JSON.stringify(name)}; there are ${known}`,
    );
  }
  // A demo world has questions beside its films; they are read when they are asked for.
  if (isDemoWorld(files)) return folder;
  for (const source of SOURCES) if (await source.matches(store, files, signal)) return source;
  throw new DataError(
    'DATA_EMPTY',
    `none of the ${files.length} files in ${store.root} is data to train on; looked for: ${LOOKED_FOR.join('; ')}`,
  );
}
