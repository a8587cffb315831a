/** Reads a journal that is being written to, in bounded memory and without holding up whoever writes. */
import { open } from 'node:fs/promises';

import { VideoloomError } from '../../proto/errors.ts';
import { decodeRecord, MAX_LINE_BYTES, type JournalRecord } from '../journal.ts';

/** A record and the checksum that its line ends in. */
export interface FollowedRecord {
  readonly record: JournalRecord;
  readonly checksum: string;
}

export interface JournalFollower {
  /**
   * The next record; undefined while there is none.
   * @throws VideoloomError JOURNAL_NOT_FOLLOWED where the file is not what one coordinator after the other has written
   */
  next(): Promise<FollowedRecord | undefined>;
  close(): Promise<void>;
}

const CHUNK_BYTES = 1 << 18;
const NEWLINE = 10;

/** Follows the journal at `path` from its first record on. */
export async function followJournal(path: string): Promise<JournalFollower> {
  const file = await open(path, 'r');
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  let rest: Buffer = Buffer.alloc(0);
  let [position, seq, epoch] = [0, 0, 0];

  /** The next whole line, without its newline. */
  const nextLine = async (): Promise<string | undefined> => {
    for (let searched = 0; ;) {
      const end = rest.indexOf(NEWLINE, searched);
      if (end >= 0) {
        const line = rest.toString('utf8', 0, end);
        rest = rest.subarray(end + 1);
        return line;
      }
      searched = rest.length;
      if (searched > MAX_LINE_BYTES) throw notFollowed(path, seq);
      const { bytesRead } = await file.read(chunk, 0, chunk.length, position);
      if (bytesRead === 0) return undefined;
      position += bytesRead;
      rest = Buffer.concat([rest, chunk.subarray(0, bytesRead)]);
    }
  };
  return {
    async next() {
      for (;;) {
        const line = await nextLine();
        if (line === undefined) return undefined;
        const record = decodeRecord(line);
        // Of a coordinator that had been taken over from.
        if (record !== undefined && (record.epoch ?? 0) < epoch) continue;
        if (record?.seq !== seq + 1) throw notFollowed(path, seq);
        seq++;
        epoch = record.epoch ?? 0;
        return { record, checksum: line.slice(-'01234567"}'.length, -'"}'.length) };
      }
    },
    close: () => file.close(),
  };
}

function notFollowed(path: string, seq: number): VideoloomError {
  return new VideoloomError(
    'JOURNAL_NOT_FOLLOWED',
    `what follows record ${seq} in ${path} is no record of this run: another coordinator has taken it over, or the file is ` +
      'damaged (`videoloom audit` says where).',
  );
}
