import { messageOf, VideoloomError } from '../../proto/errors.ts';

/** A curation command that cannot go on: no FFmpeg, no room, an output that is not its own. */
export class CurationError extends VideoloomError {}

const FULL = new Set(['ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS']);

/** The same error, or one with a cure if it says that nothing more can be written below `folder`. */
export function writeErrorOf(error: unknown, folder: string): unknown {
  const { code } = error as { code?: unknown };
  return typeof code === 'string' && FULL.has(code) ? diskFull(folder, messageOf(error)) : error;
}

export function diskFull(folder: string, reason: string): CurationError {
  return new CurationError(
    'DISK_FULL',
    `nothing more can be written below ${folder} (${reason}); make room and start the same command again, it goes on ` +
      'where it was',
    { retryable: true },
  );
}
