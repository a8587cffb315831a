import { pino } from 'pino';
import type { Logger } from 'pino';

/** Fields that a log line may carry beside its message; a child logger binds those that stay the same. */
export interface LogFields {
  readonly run_id?: string;
  readonly worker_id?: string;
  readonly step?: number;
  readonly generation?: number;
}

/** A logger of JSON lines, pino's own interface. */
export type Log = Logger;

/** Where lines go and from which level on. */
export interface LogOptions {
  /** File to append to; stderr when left out. Missing folders are made. */
  readonly file?: string | undefined;
  /** Texts that no line may bear, wherever they stand in it. */
  readonly secrets?: readonly string[];
  /** Lowest level that is written; `info` when left out. */
  readonly level?: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'silent';
}

const CENSOR = '[secret]';
/** Fields that are secrets whatever they hold, on a line itself or one level below. */
const SECRET_FIELDS = ['token', 'authorization', 'session', 'privateKey', 'password', 'secret'];

/**
 * Opens a log of JSON lines that bear `fields`. Lines are written before the call returns: the last ones before a
 * crash are those that count.
 */
export function openLog(fields: LogFields, options: LogOptions = {}): Log {
  const { secrets = [] } = options;
  return pino(
    {
      redact: {
        paths: [...SECRET_FIELDS, ...SECRET_FIELDS.map((name) => `*.${name}`)],
        censor: CENSOR,
      },
      hooks: {
        streamWrite: (line) =>
          secrets.reduce((text, secret) => text.replaceAll(secret, CENSOR), line),
      },
      level: options.level ?? 'info',
      base: { ...fields, pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    destinationOf(options.file),
  );
}

/** Lines that could not be written wait for room up to this size; then they are dropped. */
const MAX_WAITING_BYTES = 1 << 20;

function destinationOf(file: string | undefined): ReturnType<typeof pino.destination> {
  const destination = pino.destination({
    ...{ dest: file ?? 2, sync: true, mkdir: true, append: true, maxLength: MAX_WAITING_BYTES },
  });
  let isTold = false;
  // A full disk costs lines of the log, not the process that wanted to write them.
  destination.on('error', (error: Error) => {
    if (!isTold && file !== undefined)
      process.stderr.write(`LOG_WRITE_FAILED: ${file}: ${error.message}\n`);
    isTold = true;
  });
  return destination;
}
