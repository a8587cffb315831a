import { VideoloomError } from '../../proto/errors.ts';

export type PretrainedErrorCode =
  | 'PRETRAINED_UNREADABLE'
  | 'PRETRAINED_CONFIG'
  | 'PRETRAINED_NAMES'
  | 'PRETRAINED_SHAPE'
  | 'PRETRAINED_IMAGE';

/** A folder of somebody else's weights that is not what the caller asked for. */
export class PretrainedError extends VideoloomError {
  constructor(code: PretrainedErrorCode, message: string, cause?: unknown) {
    super(code, message, { cause });
  }
}
