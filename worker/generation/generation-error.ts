import { VideoloomError } from '../../proto/errors.ts';

/** A prompt or a setting of generation that cannot be used: `GENERATION_BAD_SETTING`, `GENERATION_BAD_PROMPT`. */
export class GenerationError extends VideoloomError {}
