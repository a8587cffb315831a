import { VideoloomError } from '../../proto/errors.ts';

/**
 * What can go wrong with one video, picture or sound. Those that start with `VIDEO_`, `IMAGE_` or `AUDIO_` blame the file
 * and come back on every try, but for `VIDEO_TIMEOUT` (of any file), which may be the load of the machine; `DECODER_`
 * blames the process that decodes. A file that cannot be opened for its sound has the same codes as for its pictures.
 */
export type DecodeErrorCode =
  | 'VIDEO_NOT_FOUND'
  | 'VIDEO_UNREADABLE'
  | 'VIDEO_NO_STREAM'
  | 'VIDEO_TRUNCATED'
  | 'VIDEO_DAMAGED'
  | 'VIDEO_TOO_LARGE'
  | 'VIDEO_TIMEOUT'
  | 'IMAGE_NOT_FOUND'
  | 'IMAGE_UNREADABLE'
  | 'IMAGE_DAMAGED'
  | 'IMAGE_TOO_LARGE'
  | 'AUDIO_NO_STREAM'
  | 'AUDIO_UNREADABLE'
  | 'AUDIO_TRUNCATED'
  | 'AUDIO_DAMAGED'
  | 'AUDIO_TOO_LONG'
  | 'DECODER_CRASHED'
  | 'DECODER_UNAVAILABLE'
  | 'DECODER_CLOSED';

/** Whether there is nothing to decode with, so that no file is to blame. */
export function isPoolFault({ code }: { readonly code: string }): boolean {
  return code === 'DECODER_UNAVAILABLE' || code === 'DECODER_CLOSED';
}

/** A file that could not be decoded; the message names the file. */
export class DecodeError extends VideoloomError {
  declare readonly code: DecodeErrorCode;
  readonly path: string;

  constructor(code: DecodeErrorCode, path: string, message: string, cause?: unknown) {
    const retryable = code.startsWith('DECODER_') || code === 'VIDEO_TIMEOUT';
    super(code, message, { cause, retryable });
    this.path = path;
  }
}
