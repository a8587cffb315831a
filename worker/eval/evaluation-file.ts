/** The file of an evaluation while it is made: what is done is in it, and an evaluation that was killed goes on from there. */
import { open, readFile, rm } from 'node:fs/promises';
import { UsageError } from '../../proto/errors.ts';
import { writeFileDurably } from '../../proto/durable-file.ts';
import { outputError } from '../../proto/output-path.ts';

/** What answers are answers of: equal for evaluations of which one may go on with what the other has done. */
export type EvaluationOf = Readonly<Record<string, string | number>>;

export interface EvaluationFile {
  /** How many units were found done. */
  readonly numKnown: number;
  /** What a unit of work comes to, as JSON holds it: what the file has, else what is made and then is there unless undefined. */
  unit<T>(name: string, make: () => Promise<T>): Promise<T>;
  /** Puts the whole evaluation in its place, and removes what was kept to go on from. @throws UsageError OUT_NOT_WRITABLE */
  finish(lines: readonly unknown[]): Promise<void>;
  /** Idempotent. */
  close(): Promise<void>;
}

/** Where an evaluation is until it is finished. */
export function partialPath(path: string): string {
  return `${path}.partial`;
}

/**
 * Opens what an evaluation has done so far: JSON Lines, the first of which says what it is of, the others what a unit has
 * come to. A line that is torn, and what is behind it, is dropped.
 *
 * @param path of the whole evaluation, which is there once it is finished
 * @throws UsageError EVALUATION_OTHER where what is there is of another checkpoint, config or question; OUT_NOT_WRITABLE
 */
export async function openEvaluationFile(path: string, of: EvaluationOf): Promise<EvaluationFile> {
  const partial = partialPath(path);
  const content = await readFile(partial).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return Buffer.alloc(0);
    throw outputError(error, partial);
  });
  const { records, numBytes } = wholeLines(content);
  const known = new Map<string, unknown>();
  const [first, ...rest] = records;
  if (first !== undefined) refuseOther(partial, (first as { of?: EvaluationOf }).of ?? {}, of);
  for (const record of rest) {
    const { unit, result } = record as { unit: string; result: unknown };
    known.set(unit, result);
  }
  const handle = await open(partial, 'a').catch((error: unknown) => {
    throw outputError(error, partial);
  });
  let isOpen = true;
  const close = async (): Promise<void> => {
    if (!isOpen) return;
    isOpen = false;
    await handle.close();
  };
  const append = async (record: unknown): Promise<void> => {
    try {
      await handle.appendFile(`${JSON.stringify(record)}\n`);
      await handle.datasync();
    } catch (error) {
      throw outputError(error, partial);
    }
  };
  try {
    await handle.truncate(numBytes);
    if (first === undefined) await append({ of });
  } catch (error) {
    await close();
    throw error;
  }
  return {
    numKnown: known.size,
    async unit<T>(name: string, make: () => Promise<T>): Promise<T> {
      if (known.has(name)) return known.get(name) as T;
      const result = await make();
      if (result === undefined) return result;
      await append({ unit: name, result });
      known.set(name, result);
      return result;
    },
    async finish(lines) {
      await close();
      const whole = lines.map((line) => `${JSON.stringify(line)}\n`);
      await writeFileDurably(path, whole).catch((error: unknown) => {
        throw outputError(error, path);
      });
      await rm(partial, { force: true });
    },
    close,
  };
}

/** The records of all lines up to the first that is none, and how many bytes they take. */
function wholeLines(content: Buffer): { records: object[]; numBytes: number } {
  const records: object[] = [];
  let numBytes = 0;
  for (let end; (end = content.indexOf('\n', numBytes)) !== -1; numBytes = end + 1) {
    try {
      const record: unknown = JSON.parse(content.toString('utf8', numBytes, end));
      if (typeof record !== 'object' || record === null) break;
      records.push(record);
    } catch {
      break;
    }
  }
  return { records, numBytes };
}

function refuseOther(partial: string, found: EvaluationOf, wanted: EvaluationOf): void {
  const keys = new Set([...Object.keys(found), ...Object.keys(wanted)]);
  const other = [...keys].filter((key) => found[key] !== wanted[key]);
  if (other.length === 0) return;
  const shown = (value: string | number | undefined): string =>
    String(value ?? 'none').slice(0, 40);
  const said = other.map((key) => `${key} ${shown(found[key])}, not ${shown(wanted[key])}`);
  throw new UsageError(
    'EVALUATION_OTHER',
    `${partial} is of another evaluation that was not finished (${said.join('; ')}): finish that one, remove the file, ` +
      'or name another place with --out',
  );
}
