import { closeSync, openSync, readSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { decodeRecord, type JournalRecord } from '../journal.ts';
import type { Findings } from './findings.ts';

/** What a journal is made of. */
export interface JournalScan {
  /** Lines that are whole, those of fenced coordinators left out. */
  readonly numRecords: number;
  /** Coordinators that wrote to it. */
  readonly numEpochs: number;
  /** Records of coordinators that had been taken over from; they do not count. */
  readonly numFenced: number;
}

const CHUNK_BYTES = 1 << 20;
/** Longer than any line that is written. */
const MAX_LINE_BYTES = 64 * 2 ** 20;

/**
 * Reads a journal to its end, past whatever is wrong with it, and gives every whole record to `visit`. Unlike a
 * coordinator, which stops at the first damage, an audit wants to know all of it.
 */
export function scanJournal(
  path: string,
  visit: (record: JournalRecord) => void,
  findings: Findings,
): JournalScan {
  let [numRecords, numFenced, seq, epoch] = [0, 0, 0, 0];
  /** Number of the last record of each epoch. */
  const lastSeqs = new Map<number, number>();
  for (const { line, number, isWhole } of linesOf(path)) {
    const record = decodeRecord(line);
    if (record === undefined) {
      if (isWhole)
        findings.problem(
          'JOURNAL_RECORD_DAMAGED',
          `line ${number} does not have the checksum that it ends in, or is no record at all`,
        );
      else findings.note(`the journal ends in half a record (line ${number}), as a kill leaves it`);
      continue;
    }
    const own = record.epoch ?? 0;
    if (own < epoch && record.seq > (lastSeqs.get(own) ?? 0)) {
      // Written at the very moment of a takeover: nobody was told of it.
      numFenced++;
      continue;
    }
    numRecords++;
    if (record.seq <= seq) {
      findings.problem(
        'JOURNAL_RECORD_DOUBLED',
        `line ${number} is record ${record.seq} (${describe(record)}), which the journal has already; ` +
          `${seq + 1} had to follow`,
      );
    } else if (record.seq > seq + 1) {
      const [first, last] = [seq + 1, record.seq - 1];
      findings.problem(
        'JOURNAL_RECORD_MISSING',
        `${first === last ? `record ${first} is` : `records ${first} to ${last} are`} missing before line ${number} ` +
          `(${describe(record)})`,
      );
    }
    seq = Math.max(seq, record.seq);
    epoch = Math.max(epoch, own);
    lastSeqs.set(own, Math.max(record.seq, lastSeqs.get(own) ?? 0));
    visit(record);
  }
  return { numRecords, numEpochs: lastSeqs.size, numFenced };
}

/** Pieces that a coordinator cut off because they were damaged. */
export async function damagedPieces(path: string): Promise<string[]> {
  const names = await readdir(dirname(path));
  return names.filter((name) => name.startsWith(`${basename(path)}.damaged-`)).sort();
}

function describe(record: JournalRecord): string {
  return 'step' in record ? `${record.type} of step ${record.step}` : record.type;
}

/** Lines in order, in bounded memory; the last one need not be whole. */
function* linesOf(path: string): Generator<{ line: string; number: number; isWhole: boolean }> {
  const file = openSync(path, 'r');
  try {
    const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
    let rest: Buffer = Buffer.alloc(0);
    let number = 0;
    for (let position = 0; ;) {
      const length = readSync(file, chunk, 0, chunk.length, position);
      if (length === 0) break;
      position += length;
      rest = Buffer.concat([rest, chunk.subarray(0, length)]);
      let begin = 0;
      for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10, begin)) {
        yield { line: rest.toString('utf8', begin, end), number: ++number, isWhole: true };
        begin = end + 1;
      }
      rest = rest.subarray(begin);
      // What no newline ends is no record: of it only the beginning is kept.
      if (rest.length > MAX_LINE_BYTES) rest = rest.subarray(0, CHUNK_BYTES);
    }
    if (rest.length > 0) yield { line: rest.toString('utf8'), number: ++number, isWhole: false };
  } finally {
    closeSync(file);
  }
}
