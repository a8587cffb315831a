import { VideoloomError } from '../proto/errors.ts';

/**
 * What can go wrong with one video. Those that start with `VIDEO_` blame the file and come back on every try, but for
 * `VIDEO_TIMEOUT`, which may be the load of the machine; `DECODER_` blames the process that decodes.
 */
export type DecodeErrorCode =
  | 'VIDEO_NOT_FOUND'
  | 'VIDEO_UNREADABLE'
  | 'VIDEO_NO_STREAM'
  | 'VIDEO_TRUNCATED'
  | 'VIDEO_DAMAGED'
  | 'VIDEO_TOO_LARGE'
  | 'VIDEO_TIMEOUT'
  | 'DECODER_CRASHED'
  | 'DECODER_UNAVAILABLE'
  | 'DECODER_CLOSED';

/** Whether there is nothing to decode with, so that no file is to blame. */
export function isPoolFault({ code }: { readonly code: string }): boolean {
  return code === 'DECODER_UNAVAILABLE' || code === 'DECODER_CLOSED';
}

/** A video that could not be decoded; the message names the file. */
export class DecodeError extends VideoloomError {
  declare readonly code: DecodeErrorCode;
  readonly path: string;

  constructor(code: DecodeErrorCode, path: string, message: string, cause?: unknown) {
    const retryable = code.startsWith('DECODER_') || code === 'VIDEO_TIMEOUT';
    super(code, message, { cause, retryable });
    this.path = path;
  }
}
