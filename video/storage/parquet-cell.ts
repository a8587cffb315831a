import {
  parquetMetadataAsync,
  parquetReadObjects,
  type AsyncBuffer,
  type Compressors,
  type FileMetaData,
} from 'hyparquet';
import { compressors } from 'hyparquet-compressors';
import { messageOf } from '../../proto/errors.ts';
import type { MediaLocation } from '../index/sample.ts';
import { StorageError, type ByteRange } from './store.ts';

/** A Parquet file by its parts. */
export interface Table {
  /** Names it in messages. */
  readonly what: string;
  readonly sizeBytes: number;
  readRange(range: ByteRange): Promise<Uint8Array>;
}

/** What a table says of itself; worth keeping for its next cell. */
export type TableMetadata = FileMetaData;

/** @throws StorageError PARQUET_DAMAGED */
export async function readTableMetadata(table: Table): Promise<TableMetadata> {
  return parsing(table.what, () => parquetMetadataAsync(asyncBuffer(table)));
}

/** What has to be read for a cell. */
export interface FoundCell {
  /** The outermost column, and the way from its values to the cell. */
  readonly column: string;
  readonly inner: readonly string[];
  /** The cell's row alone where the column has an index of pages, else all rows of its row group. */
  readonly rowStart: number;
  readonly rowEnd: number;
  readonly hasPages: boolean;
  /** Of the column in the row group, unpacked. */
  readonly sizeBytes: number;
}

/**
 * Where a cell is. The column may lead into a structure or a list: `image.bytes`, `images.0`; of a structure with
 * bytes and a path, as Hugging Face's datasets keep pictures, the bytes are taken.
 * @throws StorageError CELL_MISSING
 */
export function findCell(
  what: string,
  metadata: TableMetadata,
  { column, row }: NonNullable<MediaLocation['cell']>,
): FoundCell {
  const cell = `${what}#${column}/${row}`;
  const columns = topColumns(metadata);
  const [top, inner] = columns.includes(column)
    ? [column, []]
    : [column.split('.')[0]!, column.split('.').slice(1)];
  if (!columns.includes(top)) {
    throw missing(cell, `there is no column ${top}; there are ${columns.slice(0, 20).join(', ')}`);
  }
  let rowStart = 0;
  for (const { num_rows: numRows, columns: chunks } of metadata.row_groups) {
    const rowEnd = rowStart + Number(numRows);
    if (row >= rowStart && row < rowEnd) {
      const own = chunks.filter(({ meta_data }) => meta_data?.path_in_schema[0] === top);
      const hasPages = own.every(({ offset_index_offset: offset }) => offset !== undefined);
      const sizes = own.map(({ meta_data }) => Number(meta_data!.total_uncompressed_size));
      return {
        ...{ column: top, inner, hasPages },
        ...(hasPages ? { rowStart: row, rowEnd: row + 1 } : { rowStart, rowEnd }),
        sizeBytes: sizes.reduce((sum, size) => sum + size, 0),
      };
    }
    rowStart = rowEnd;
  }
  throw missing(cell, `the table has ${rowStart} rows`);
}

/**
 * The values of the rows that {@link findCell} names.
 * @throws StorageError PARQUET_DAMAGED, TOO_LARGE
 */
export async function readColumn(
  table: Table,
  metadata: TableMetadata,
  { column, rowStart, rowEnd }: FoundCell,
): Promise<readonly unknown[]> {
  const rows = await parsing(table.what, () =>
    parquetReadObjects({
      file: asyncBuffer(table),
      metadata,
      columns: [column],
      rowStart,
      rowEnd,
      useOffsetIndex: true,
      utf8: false,
      compressors: BOUNDED_COMPRESSORS,
    }),
  );
  return rows.map((row) => row[column] as unknown);
}

/**
 * The bytes in a cell, of its column's value in its row.
 * @throws StorageError CELL_MISSING
 */
export function bytesOfCell(
  what: string,
  { column, row }: NonNullable<MediaLocation['cell']>,
  columnValue: unknown,
  inner: readonly string[],
): Uint8Array {
  let value = columnValue;
  for (const name of inner) value = memberOf(value, name);
  if (!(value instanceof Uint8Array)) value = memberOf(value, 'bytes');
  if (!(value instanceof Uint8Array))
    throw missing(`${what}#${column}/${row}`, 'it holds no bytes');
  return new Uint8Array(value); // a copy, without the page around it
}

/** Names of the columns, of structures the outermost. */
function topColumns({ schema }: FileMetaData): string[] {
  const names: string[] = [];
  let skip = 0; // elements below one that was taken, depth first
  for (const { name, num_children: numChildren = 0 } of schema.slice(1)) {
    if (skip === 0) names.push(name);
    else skip--;
    skip += numChildren;
  }
  return names;
}

function memberOf(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, name)
    ? (value as Record<string, unknown>)[name]
    : undefined;
}

function asyncBuffer(table: Table): AsyncBuffer {
  const { sizeBytes } = table;
  return {
    byteLength: sizeBytes,
    async slice(start, end = sizeBytes) {
      const range = { offset: start, sizeBytes: Math.min(end, sizeBytes) - start };
      // A copy, as a `Buffer` may be a part of a larger one.
      return new Uint8Array(await table.readRange(range)).buffer;
    },
  };
}

async function parsing<T>(what: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (cause) {
    if (cause instanceof StorageError || (cause as Error).name === 'AbortError') throw cause;
    throw new StorageError(
      'PARQUET_DAMAGED',
      `${what} is no Parquet table that can be read (${messageOf(cause)}): write it again, with zstd or snappy`,
      { cause },
    );
  }
}

function missing(cell: string, why: string): StorageError {
  return new StorageError('CELL_MISSING', `${cell}: ${why}. Correct the location, or index again.`);
}

/** Pages say themselves how large they are once unpacked. */
const MAX_PAGE_BYTES = 256 * 2 ** 20;
export const BOUNDED_COMPRESSORS = Object.fromEntries(
  Object.entries(compressors).map(([codec, unpack]) => [
    codec,
    (input: Uint8Array, outputLength: number) => {
      if (outputLength <= MAX_PAGE_BYTES) return unpack(input, outputLength);
      throw new StorageError(
        'TOO_LARGE',
        `a page of a Parquet table says that it has ${outputLength} bytes, and ${MAX_PAGE_BYTES} are the most: write ` +
          'it with smaller pages',
      );
    },
  ]),
) as Compressors;
