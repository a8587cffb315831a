/** What a {@link VideoloomError} carries beside its message. */
export interface VideoloomErrorOptions {
  readonly cause?: unknown;
  /** Whether the same call may succeed later without anybody mending anything. */
  readonly retryable?: boolean;
}

/**
 * Base of every error that is thrown on purpose: something that a caller or an operator can cause or cure.
 * The message says what happened with the values, where, and how to mend it; `code` is stable.
 */
export class VideoloomError extends Error {
  readonly code: string;
  readonly retryable: boolean;

  constructor(code: string, message: string, options: VideoloomErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = new.target.name;
    this.code = code;
    this.retryable = options.retryable ?? false;
  }
}

/** Wrong use of a command or a wrong config: `main.ts` files exit with {@link EXIT_USAGE} on it instead of 1. */
export class UsageError extends VideoloomError {}

/** Exit code of what would come again wherever it is started. */
export const EXIT_USAGE = 2;

/** The message of anything thrown, one line. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Prints `code: message` for errors thrown on purpose and the stack of bugs; gives the exit code of a `main.ts`. */
export function reportFatal(error: unknown): number {
  if (error instanceof VideoloomError) {
    process.stderr.write(`${error.code}: ${error.message}\n`);
    return error instanceof UsageError ? EXIT_USAGE : 1;
  }
  process.stderr.write(
    `${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
  );
  return 1;
}
