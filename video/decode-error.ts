import { VideoloomError } from '../proto/errors.ts';

/**
 * What can go wrong with one video. Those that start with `VIDEO_` blame the file and come back on every try;
 * `DECODER_` blames the process that decodes.
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

/** A video that could not be decoded; the message names the file. */
export class DecodeError extends VideoloomError {
  declare readonly code: DecodeErrorCode;
  readonly path: string;

  constructor(code: DecodeErrorCode, path: string, message: string, cause?: unknown) {
    super(code, message, { cause, retryable: code.startsWith('DECODER_') });
    this.path = path;
  }
}
