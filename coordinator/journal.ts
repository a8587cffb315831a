/**
 * The journal of a run: one JSON object a line, appended, never changed. A line ends in the CRC-32C of all that stands
 * before it, and bears a number that grows by one, so that a torn, bent or lost line is seen.
 *
 * Durability: a record is handed to the operating system before `append` returns, so it outlives a kill -9 of this
 * process. It outlives a loss of power once it is on disk, which happens at once for `sync` records (generations,
 * checkpoints, the result) and within SYNC_INTERVAL_MS for the others. What is lost then are commits of at most that
 * time; their steps are done again, to the same bits.
 *
 * Fencing: each coordinator that opens the journal has an epoch, one higher than all before it. One that was taken over
 * from sees at its next record that the file is no longer as it left it and writes no more; what it may have written at
 * the very moment of the takeover bears the lower epoch, and readers pass it over. Where it may still write, the journal
 * goes on in a copy that takes the place of its file: on a network file system a machine that was cut off puts what it
 * has left to write where the file ended for it, over what others have written there since.
 */

import {
  closeSync,
  copyFileSync,
  fdatasync,
  fdatasyncSync,
  ftruncateSync,
  fstatSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';

import { randomUUID } from 'node:crypto';
import { dirname } from 'node:path';

import { crc32c } from '@node-rs/crc32';

import { syncFolder } from '../proto/durable-file.ts';
import { messageOf, VideoloomError } from '../proto/errors.ts';
import { reviveNumbers, spellNumbers } from './json-numbers.ts';
import type { JournalEvent } from './journal-events.ts';

/** Name of the journal inside a run folder. */
export const JOURNAL_FILE = 'journal.jsonl';

const SYNC_INTERVAL_MS = 1000;
/** No record is longer. */
export const MAX_LINE_BYTES = 16 * 2 ** 20;
const CHUNK_BYTES = 1 << 20;

/** One line: an event, its number (from 1) and the wall clock when it was written, ISO 8601. */
export type JournalRecord = JournalEvent & {
  readonly seq: number;
  readonly time: string;
  /** Of the coordinator that wrote it, from 1; absent in journals of before there were epochs. */
  readonly epoch?: number;
};

/** Text of a record's line, newline included. */
export function encodeRecord(record: JournalRecord): string {
  const body = JSON.stringify(record, spellNumbers).slice(0, -1);
  return `${body},"crc":"${checksum(body)}"}\n`;
}

/** The record of a line (without its newline); undefined when the line is not one that was written so. */
export function decodeRecord(line: string): JournalRecord | undefined {
  const match = /^(.*),"crc":"([0-9a-f]{8})"\}$/s.exec(line);
  if (match === null || checksum(match[1]!) !== match[2]) return undefined;
  return JSON.parse(`${match[1]!}}`, reviveNumbers) as JournalRecord;
}

function checksum(text: string): string {
  return crc32c(text).toString(16).padStart(8, '0');
}

/** Where the valid part of a journal ends. */
export interface JournalEnd {
  /** Number of the last valid record; 0 when there is none. */
  readonly seq: number;
  /** Highest epoch. */
  readonly epoch: number;
  /** Records of coordinators that had been taken over from, passed over. */
  readonly numFenced: number;
  /** Length of the longest valid prefix. */
  readonly validBytes: number;
  /** Length of the file. */
  readonly fileBytes: number;
}

/** Feeds the records of the longest valid prefix to `visit`, in order, in bounded memory. A missing file is empty. */
export function readJournal(path: string, visit: (record: JournalRecord) => void): JournalEnd {
  let file: number;
  try {
    file = openSync(path, 'r');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT')
      return { seq: 0, epoch: 0, numFenced: 0, validBytes: 0, fileBytes: 0 };
    throw error;
  }
  try {
    const fileBytes = fstatSync(file).size;
    let [seq, epoch, numFenced, validBytes] = [0, 0, 0, 0];
    let rest = Buffer.alloc(0);
    const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
    for (let position = 0; ;) {
      const length = readSync(file, chunk, 0, chunk.length, position);
      if (length === 0) break;
      position += length;
      rest = Buffer.concat([rest, chunk.subarray(0, length)]);
      for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
        const record = decodeRecord(rest.toString('utf8', 0, end));
        const isFenced = record !== undefined && (record.epoch ?? 0) < epoch;
        if (!isFenced) {
          if (record?.seq !== seq + 1) return { seq, epoch, numFenced, validBytes, fileBytes };
          visit(record);
          seq++;
          epoch = record.epoch ?? 0;
        } else numFenced++;
        validBytes += end + 1;
        rest = rest.subarray(end + 1);
      }
      if (rest.length > MAX_LINE_BYTES) break;
    }
    return { seq, epoch, numFenced, validBytes, fileBytes };
  } finally {
    closeSync(file);
  }
}

/** A journal open for appending. */
export interface Journal {
  /**
   * Adds a record; it is with the operating system when this returns, on disk too when `sync`.
   * @throws VideoloomError JOURNAL_WRITE_FAILED; it takes no more then, and nobody was told of the record.
   * @throws VideoloomError RUN_FENCED when another coordinator writes to it by now; the record does not count.
   */
  append(event: JournalEvent, options?: { readonly sync?: boolean }): JournalRecord;
  /** Brings everything to disk and closes the file; may be called twice. */
  close(): void;
}

/** What a journal needs from its surroundings. */
export interface JournalSurroundings {
  readonly wallTime: () => Date;
  /** Told when a write in the background failed: the run cannot go on. */
  readonly onFailure: (error: VideoloomError) => void;
  /** Told the number of each record, once it is with the operating system. */
  readonly onAppended?: ((seq: number) => void) | undefined;
  /** Told where records were put that follow a damaged one: they count no more. */
  readonly onCut?: ((keptAs: string) => void) | undefined;
}

/**
 * Puts a copy in the place of the journal at `path`: whoever has it open writes to a file that nobody reads. What that one
 * has written before it could see so is in the copy. A missing journal stays missing.
 * @param isOurs whether this process still has the right to; asked before the copy takes its place
 * @throws VideoloomError JOURNAL_WRITE_FAILED, RUN_FENCED
 */
export async function renewJournal(path: string, isOurs: () => boolean): Promise<void> {
  let old: number;
  try {
    old = openSync(path, 'r');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
  // Another one may be doing the same.
  const copy = `${path}.${randomUUID()}`;
  try {
    copyFileSync(path, copy);
    const file = openSync(copy, 'a+');
    try {
      const copied = fstatSync(file).size;
      fdatasyncSync(file);
      if (!isOurs()) throw replaced(path);
      renameSync(copy, path);
      // A record counts once its writer has seen the journal in its place: all of those are there by now.
      const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
      for (let at = copied, length; (length = readSync(old, chunk, 0, chunk.length, at)) > 0;) {
        writeFileSync(file, chunk.subarray(0, length));
        at += length;
      }
      fdatasyncSync(file);
      await syncFolder(dirname(path));
    } finally {
      closeSync(file);
    }
  } catch (error) {
    rmSync(copy, { force: true });
    throw error instanceof VideoloomError ? error : writeFailed(path, error);
  } finally {
    closeSync(old);
  }
}

/**
 * Opens the journal at `path` for appending after its longest valid prefix, which is fed to `visit`. What follows it is
 * cut off; more than a torn last line is kept beside the journal as `<path>.damaged-<seq>`.
 * @throws VideoloomError JOURNAL_WRITE_FAILED, RUN_FENCED
 */
export function openJournal(
  path: string,
  visit: (record: JournalRecord) => void,
  { wallTime, onFailure, onAppended, onCut }: JournalSurroundings,
): Journal {
  const end = readJournal(path, visit);
  const file = openSync(path, 'a+', 0o644);
  let [seq, length] = [end.seq, end.validBytes];
  const epoch = end.epoch + 1;
  let timer: NodeJS.Timeout | undefined;
  let [failed, closed] = [false, false];

  const writing = (action: () => void): void => {
    try {
      if (failed) throw new Error('an earlier write failed');
      action();
    } catch (error) {
      failed = true;
      throw error instanceof VideoloomError ? error : writeFailed(path, error);
    }
  };
  const own = fstatSync(file, { bigint: true }).ino;
  /** Nobody else has written: the file is the one that was opened, and as long as what was read and written here. */
  const checkAlone = (): void => {
    const { ino, size } = placeOf(path, file);
    if (ino !== own) throw replaced(path, epoch);
    if (size !== BigInt(length)) throw fenced(path, epoch, { size, knownBytes: length });
  };
  /** What a failure to write comes from, where another coordinator has the journal by now. */
  const causeOf = (error: unknown): VideoloomError => {
    try {
      checkAlone();
    } catch (found) {
      if (found instanceof VideoloomError) return found;
    }
    return writeFailed(path, error);
  };
  writing(() => {
    if (end.fileBytes > end.validBytes) {
      const tail = Buffer.alloc(end.fileBytes - end.validBytes);
      readSync(file, tail, 0, tail.length, end.validBytes);
      if (tail.includes(10)) {
        const keptAs = `${path}.damaged-${end.seq + 1}`;
        writeFileSync(keptAs, tail);
        onCut?.(keptAs);
      }
      ftruncateSync(file, end.validBytes);
    }
    fdatasyncSync(file);
  });

  return {
    append(event, { sync = false } = {}) {
      const time = wallTime().toISOString();
      const record: JournalRecord = { seq: seq + 1, epoch, time, ...event };
      const line = Buffer.from(encodeRecord(record));
      writing(() => {
        checkAlone();
        try {
          for (let written = 0; written < line.length;) written += writeSync(file, line, written);
        } catch (error) {
          ftruncateSync(file, length);
          throw error;
        }
        length += line.length;
        // Both may have found nobody before they wrote: whoever came second sees it here, before anybody hears of it.
        checkAlone();
        if (sync) fdatasyncSync(file);
      });
      seq++;
      timer ??= setTimeout(() => {
        timer = undefined;
        if (closed) return;
        fdatasync(file, (error) => {
          if (error === null || closed) return;
          failed = true;
          onFailure(causeOf(error));
        });
      }, SYNC_INTERVAL_MS).unref();
      onAppended?.(seq);
      return record;
    },
    close() {
      if (closed) return;
      closed = true;
      clearTimeout(timer);
      try {
        fdatasyncSync(file);
      } catch (error) {
        // Where it had failed already, that was told.
        if (!failed) throw causeOf(error);
      } finally {
        closeSync(file);
      }
    },
  };
}

/** The file at a path. Opening it is what makes a network file system ask the server, in place of what it remembers. */
function placeOf(path: string, file: number): { readonly ino: bigint; readonly size: bigint } {
  let found: number;
  try {
    found = openSync(path, 'r');
  } catch (error) {
    // Of descriptors there may be none for a moment; what is known of the open one will do.
    if (!['EMFILE', 'ENFILE'].includes((error as NodeJS.ErrnoException).code!)) throw error;
    return fstatSync(file, { bigint: true });
  }
  try {
    return fstatSync(found, { bigint: true });
  } finally {
    closeSync(found);
  }
}

function fenced(
  path: string,
  epoch: number,
  { size, knownBytes }: { readonly size: bigint; readonly knownBytes: number },
): VideoloomError {
  return new VideoloomError(
    'RUN_FENCED',
    `the journal ${path} has ${size} bytes instead of the ${knownBytes} that this coordinator (epoch ${epoch}) ` +
      'left in it: another one has taken the run over, this one writes no more. Workers find the new one at the address ' +
      'that it was started with.',
  );
}

function replaced(path: string, epoch?: number): VideoloomError {
  return new VideoloomError(
    'RUN_FENCED',
    `another coordinator has taken the run over and goes on in another file at ${path}: this one${epoch === undefined ? '' : ` (epoch ${epoch})`} writes no ` +
      'more. Workers find the new one at the address that it was started with.',
  );
}

function writeFailed(path: string, cause: unknown): VideoloomError {
  return new VideoloomError(
    'JOURNAL_WRITE_FAILED',
    `cannot write to the journal ${path}: ${messageOf(cause)}. Without it no step can be committed. ` +
      'Make room on that disk (or mend it), then start the run again: it goes on from the last checkpoint.',
    { cause },
  );
}
