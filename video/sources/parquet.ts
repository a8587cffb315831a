/** Parquet tables: paths, URLs or bytes of media, and captions; also as Hugging Face's `datasets` writes them. */
import {
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
  type AsyncBuffer,
  type FileMetaData,
  type RowGroup,
  type SchemaTree,
} from 'hyparquet';
import { messageOf } from '../../proto/errors.ts';
import { DataError } from '../index/sample-index.ts';
import { BOUNDED_COMPRESSORS } from '../storage/parquet-cell.ts';
import { StorageError, type Store, type StoredFile } from '../storage/store.ts';
import {
  CAPTION_FIELDS,
  fieldsOf,
  MEDIUM_FIELDS,
  parseJson,
  stringsOf,
  tellFault,
  type Fields,
} from './json-records.ts';
import { endingOf, kindOf, mediaNamesOf, stemOf, type MediaNames } from './media-names.ts';
import type { Source, SourceMedia, SourceRecord, SourceSample } from './source.ts';
import { splitsOf } from './splits.ts';

/** Columns of a row group that are larger than this, unpacked, are not read into memory. */
const MAX_COLUMN_BYTES = 256 * 2 ** 20;
const TABLES_LOOKED_AT = 8;

/**
 * The medium of a row is in the first column of videos, else of pictures: bytes (a binary column, or a structure of
 * `bytes` and `path`, or a list of these), else a path or URL in the first of `image video path … url`. Its words are
 * in the first of `caption text …`, a list giving one sample each. Names count in any case. Bytes are not read here:
 * a sample names their cell. The id is the table's name and the row, counted from 0.
 */
export const parquet: Source = {
  name: 'parquet',
  async matches(store, files, signal) {
    for (const file of files.filter(isTable).slice(0, TABLES_LOOKED_AT)) {
      const table = await openTable(store, file, signal);
      // A table that cannot be read is for reading to tell.
      if (!('layout' in table) || table.layout !== undefined) return true;
    }
    return false;
  },
  async *read(store, files, signal) {
    const tables = files.filter(isTable);
    const names = mediaNamesOf(files);
    const splitOf = splitsOf(tables.map(({ path }) => path));
    if (tables.length === 0) {
      const message = `there are no Parquet tables in ${store.root} or below it; files that end in .parquet are looked for`;
      throw new DataError('DATA_EMPTY', message);
    }
    for (const file of tables) {
      const split = splitOf(file.path);
      for await (const record of readTable(store, file, names, signal)) {
        if ('skipped' in record || split === undefined) yield record;
        else yield { sample: { ...record.sample, split } };
      }
    }
  },
};

function isTable({ path }: StoredFile): boolean {
  return endingOf(path).toLowerCase() === '.parquet';
}

/** Which columns count. */
interface Layout {
  readonly medium: string;
  readonly kind: SourceMedia['kind'];
  /** Whether the column holds names; bytes otherwise. */
  readonly isName: boolean;
  readonly isList: boolean;
  readonly caption: string | undefined;
}

interface Table {
  readonly buffer: AsyncBuffer;
  readonly metadata: FileMetaData;
  readonly layout: Layout | undefined;
}

async function* readTable(
  store: Store,
  file: StoredFile,
  names: MediaNames,
  signal?: AbortSignal,
): AsyncGenerator<SourceRecord> {
  const { path } = file;
  const table = await openTable(store, file, signal);
  if (!('layout' in table)) {
    yield { skipped: { path, ...table } };
    return;
  }
  const { buffer, metadata, layout } = table;
  if (layout === undefined) {
    const columns = parquetSchema(metadata).children.map(({ element }) => element.name);
    const message = `none of its columns ${columns.slice(0, 20).join(', ')} holds pictures or videos, or names of some`;
    yield { skipped: { path, code: 'TABLE_COLUMNS', message } };
    return;
  }
  let rowStart = 0;
  for (const group of metadata.row_groups) {
    signal?.throwIfAborted();
    const rowEnd = rowStart + Number(group.num_rows);
    const rows = await parsing(() =>
      readRows({ buffer, metadata }, { group, layout, rowStart, rowEnd }),
    );
    if (!('value' in rows)) yield { skipped: { path: `${path}#${rowStart}`, ...rows } };
    else {
      for (const [i, fields] of rows.value.entries()) {
        const row = rowStart + i;
        yield* tellFault(`${path}#${row}`, () => samplesOf({ fields, row }, layout, path, names));
      }
    }
    rowStart = rowEnd;
  }
}

type Fault = { readonly code: string; readonly message: string };

/** The table, or why it cannot be read. */
async function openTable(
  store: Store,
  { path, sizeBytes }: StoredFile,
  signal?: AbortSignal,
): Promise<Table | Fault> {
  const buffer: AsyncBuffer = {
    byteLength: sizeBytes,
    async slice(start, end = sizeBytes) {
      if (!(start >= 0 && start <= end && end <= sizeBytes)) {
        throw new Error(`bytes ${start} to ${end} are outside of its ${sizeBytes}`);
      }
      if (start === end) return new ArrayBuffer(0);
      const range = { offset: start, sizeBytes: end - start };
      const bytes = await store.read(path, signal === undefined ? { range } : { range, signal });
      // A copy, as a `Buffer` may be a part of a larger one.
      return new Uint8Array(bytes).buffer;
    },
  };
  const opened = await parsing(async () => {
    const metadata = await parquetMetadataAsync(buffer);
    return { buffer, metadata, layout: layoutOf(metadata) };
  });
  return 'value' in opened ? opened.value : opened;
}

/** What a damaged table does to its parser is told; a store that fails is not the table's fault. */
async function parsing<T>(call: () => Promise<T>): Promise<{ readonly value: T } | Fault> {
  try {
    return { value: await call() };
  } catch (error) {
    if ((error as Error).name === 'AbortError') throw error;
    if (error instanceof StorageError && error.code !== 'TOO_LARGE') throw error;
    if (error instanceof DataError || error instanceof StorageError) {
      return { code: error.code, message: error.message };
    }
    const message = `it is no Parquet table that can be read (${messageOf(error)}); write it again`;
    return { code: 'PARQUET_DAMAGED', message };
  }
}

/** The rows of a row group: names and captions, and of bytes whether they are there. */
async function readRows(
  { buffer, metadata }: Pick<Table, 'buffer' | 'metadata'>,
  {
    group,
    layout,
    rowStart,
    rowEnd,
  }: { group: RowGroup; layout: Layout; rowStart: number; rowEnd: number },
): Promise<Fields[]> {
  const { medium, caption, isName, isList } = layout;
  const numRows = rowEnd - rowStart;
  // Bytes are read only where some cells have none, or lists of an unknown length, as far as memory allows.
  const isRead =
    isName || isList || (mayBeNull(group, medium) && sizeOf(group, medium) <= MAX_COLUMN_BYTES);
  const columns = [...(isRead ? [medium] : []), ...(caption === undefined ? [] : [caption])];
  for (const column of columns) {
    const sizeBytes = sizeOf(group, column);
    if (sizeBytes > MAX_COLUMN_BYTES) {
      const message = `its column ${column} has ${sizeBytes} bytes in one row group, and ${MAX_COLUMN_BYTES} are read; write it with smaller row groups`;
      throw new DataError('ROW_GROUP_TOO_LARGE', message);
    }
  }
  if (columns.length === 0) return Array.from({ length: numRows }, () => ({}));
  const rows = await parquetReadObjects({
    ...{ file: buffer, metadata, columns, rowStart, rowEnd, compressors: BOUNDED_COMPRESSORS },
    utf8: false, // else binary columns would become text
  });
  if (rows.length !== numRows) throw new Error(`it has ${rows.length} rows of ${numRows}`);
  return rows;
}

function chunksOf({ columns }: RowGroup, column: string): RowGroup['columns'] {
  return columns.filter((chunk) => chunk.meta_data?.path_in_schema[0] === column);
}

function sizeOf(group: RowGroup, column: string): number {
  const sizes = chunksOf(group, column).map((chunk) => chunk.meta_data!.total_uncompressed_size);
  return Number(sizes.reduce((sum, size) => sum + size, 0n));
}

function mayBeNull(group: RowGroup, column: string): boolean {
  const bytes = chunksOf(group, column).find(({ meta_data }) =>
    ['bytes', column].includes(meta_data!.path_in_schema.at(-1)!),
  );
  return bytes?.meta_data?.statistics?.null_count !== 0n;
}

function samplesOf(
  { fields, row }: { readonly fields: Fields; readonly row: number },
  layout: Layout,
  recordFile: string,
  names: MediaNames,
): SourceSample[] {
  const media = mediaOf(fields[layout.medium], row, layout, recordFile, names);
  if (media.length === 0) {
    throw new DataError('RECORD_INCOMPLETE', `its column ${layout.medium} is empty`);
  }
  const told = layout.caption === undefined ? '' : (fields[layout.caption] ?? '');
  const captions = stringsOf(told);
  if (captions === undefined) {
    throw new DataError('RECORD_INCOMPLETE', `its column ${layout.caption!} holds no text`);
  }
  const id = `${stemOf(recordFile)}/${row}`;
  return (captions.length === 0 ? [''] : captions).map((caption, i) => ({
    id: captions.length > 1 ? `${id}.${i}` : id,
    media,
    text: caption.trim(),
    cues: [],
  }));
}

function mediaOf(
  value: unknown,
  row: number,
  { medium, kind, isName, isList }: Layout,
  recordFile: string,
  names: MediaNames,
): SourceMedia[] {
  const one = (cell: unknown, column: string): SourceMedia[] => {
    const { bytes = cell, path } = cell instanceof Uint8Array ? {} : (fieldsOf(cell) ?? {});
    const name = typeof path === 'string' ? path : undefined;
    // Not read, so there: see readRows.
    if (value === undefined || bytes instanceof Uint8Array) {
      const told = name === undefined ? undefined : kindOf(name);
      return [{ kind: told ?? kind, path: recordFile, cell: { column, row } }];
    }
    const named = typeof cell === 'string' ? cell : name;
    return named === undefined || named.trim() === ''
      ? []
      : [names.find(named.trim(), { recordFile, kind })];
  };
  if (isName && value === undefined) return [];
  if (!isList) return one(value, medium);
  return Array.isArray(value) ? value.flatMap((cell, i) => one(cell, `${medium}.${i}`)) : [];
}

const VIDEO_NAME = /video|clip|film|mp4|webm/i;
const IMAGE_NAME = /image|img|picture|photo|jpe?g|png|webp|^bytes$|^content$|^data$/i;

function layoutOf(metadata: FileMetaData): Layout | undefined {
  const columns = parquetSchema(metadata).children;
  const features = featuresOf(metadata);
  const byName = new Map(columns.map(({ element }) => [element.name.toLowerCase(), element.name]));
  const caption = CAPTION_FIELDS.map((name) => byName.get(name)).find((name) => name !== undefined);

  const candidates = columns.flatMap((tree): (Omit<Layout, 'caption'> & { isName: false })[] => {
    const { name } = tree.element;
    const item = itemOf(tree);
    const type = features.get(name);
    if (!holdsBytes(item) || (type !== undefined && type !== 'Image' && type !== 'Video'))
      return [];
    const isVideo = type === undefined ? VIDEO_NAME.test(name) : type === 'Video';
    if (type === undefined && !isVideo && !IMAGE_NAME.test(name)) return [];
    const kind = isVideo ? 'video' : 'image';
    return [{ medium: name, kind, isName: false, isList: item !== tree }];
  });
  const bytes = candidates.find(({ kind }) => kind === 'video') ?? candidates[0];
  if (bytes !== undefined) return { ...bytes, caption };

  const name = MEDIUM_FIELDS.map((field) => byName.get(field)).find((field) => field !== undefined);
  if (name === undefined) return undefined;
  const kind = VIDEO_NAME.test(name) ? 'video' : 'image';
  const tree = columns.find(({ element }) => element.name === name)!;
  return { medium: name, kind, isName: true, isList: itemOf(tree) !== tree, caption };
}

/** Of a list what it is a list of, else the column itself. */
function itemOf(tree: SchemaTree): SchemaTree {
  const { element, children } = tree;
  const isList = element.converted_type === 'LIST' || element.logical_type?.type === 'LIST';
  return isList ? (children[0]?.children[0] ?? tree) : tree;
}

function holdsBytes({ element, children }: SchemaTree): boolean {
  if (children.length > 0) {
    return children.some((child) => child.element.name === 'bytes' && holdsBytes(child));
  }
  const isText = element.converted_type !== undefined || element.logical_type !== undefined;
  return element.type === 'BYTE_ARRAY' && !isText;
}

/** By column: what Hugging Face's `datasets` says that it holds (`Image`, `Video`, `Audio`, `Value` …). */
function featuresOf({ key_value_metadata: pairs = [] }: FileMetaData): Map<string, string> {
  const written = pairs.find(({ key }) => key === 'huggingface')?.value ?? '';
  const parsed = parseJson(Buffer.from(written));
  const info = 'value' in parsed ? fieldsOf(fieldsOf(parsed.value)?.['info']) : undefined;
  const types = Object.entries(fieldsOf(info?.['features']) ?? {}).map(([name, feature]) => {
    const inner = fieldsOf(Array.isArray(feature) ? feature[0] : feature) ?? {};
    const type = (fieldsOf(inner['feature']) ?? inner)['_type'];
    return [name, typeof type === 'string' ? type : ''] as const;
  });
  return new Map(types.filter(([, type]) => type !== ''));
}
