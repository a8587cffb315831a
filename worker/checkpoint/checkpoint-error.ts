import { VideoloomError } from '../../proto/errors.ts';

/** What keeps a checkpoint from being written or read. */
export type CheckpointErrorCode =
  | 'CHECKPOINT_DISK_FULL'
  | 'CHECKPOINT_TOO_LARGE'
  | 'CHECKPOINT_NOT_WRITABLE'
  | 'CHECKPOINT_DISK_FAILED'
  | 'CHECKPOINT_CORRUPT'
  | 'CHECKPOINT_INCOMPLETE';

/** A checkpoint that could not be written, or cannot be trusted. */
export class CheckpointError extends VideoloomError {
  constructor(code: CheckpointErrorCode, message: string, cause?: unknown) {
    super(code, message, { cause });
  }
}

/** Codes of the system's errors while writing, with what to do about them. */
const WRITE_FAILURES: Readonly<Record<string, readonly [CheckpointErrorCode, string]>> = {
  ENOSPC: ['CHECKPOINT_DISK_FULL', 'the disk is full: free space or keep fewer checkpoints'],
  EDQUOT: ['CHECKPOINT_DISK_FULL', 'the quota is used up: free space or keep fewer checkpoints'],
  EFBIG: [
    'CHECKPOINT_TOO_LARGE',
    'the file is larger than this process may write: raise ulimit -f',
  ],
  EACCES: [
    'CHECKPOINT_NOT_WRITABLE',
    'this user may not write there: change the folder or its owner',
  ],
  EPERM: [
    'CHECKPOINT_NOT_WRITABLE',
    'this user may not write there: change the folder or its owner',
  ],
  EROFS: ['CHECKPOINT_NOT_WRITABLE', 'the file system is read-only: choose another folder'],
  ENOTDIR: ['CHECKPOINT_NOT_WRITABLE', 'a part of the path is a file: change the folder'],
  EIO: ['CHECKPOINT_DISK_FAILED', 'the disk failed: choose another and look into the kernel log'],
};

/** The system's error as ours; anything else, a bug among them, as it is. */
export function writeFailure(error: unknown, path: string): unknown {
  const code = error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;
  const known = code === undefined ? undefined : WRITE_FAILURES[code];
  if (known === undefined) return error;
  return new CheckpointError(
    known[0],
    `${path} could not be written (${code}): ${known[1]}`,
    error,
  );
}
