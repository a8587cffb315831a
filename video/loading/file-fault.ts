import { VideoloomError } from '../../proto/errors.ts';
import { DecodeError, isPoolFault } from '../decode/decode-error.ts';
import { StorageError } from '../storage/store.ts';

/** What is wrong with a stored file; all else that a store reports is about the way to it or the disk. */
const STORED_FILE_CODES: ReadonlySet<string> = new Set([
  'NOT_FOUND',
  'PATH_OUTSIDE',
  'URL_REFUSED',
  'TOO_LARGE',
  'SIZE_UNKNOWN',
  'RANGE_OUTSIDE',
  'RANGE_IGNORED',
  'STORAGE_CHANGED',
  'STORAGE_DENIED',
  'CELL_MISSING',
  'PARQUET_DAMAGED',
]);

/** Whether a file is to blame, so that another may take its place and the run goes on. */
export function isFileFault(error: unknown): error is VideoloomError {
  if (error instanceof DecodeError) return !isPoolFault(error);
  return error instanceof StorageError && STORED_FILE_CODES.has(error.code);
}
