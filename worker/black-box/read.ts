import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { BLACK_BOX_FOLDER, BOX_SUFFIX } from './black-box.ts';
import {
  BEAT_OFFSET,
  BOX_BYTES,
  decodeOwner,
  decodeRecord,
  HEADER_BYTES,
  RECORD_BYTES,
  type BoxOwner,
  type BoxRecord,
} from './record.ts';

/** The box of one process: who it was, its last sign of life and the last that it did, oldest first. */
export interface ReadBox {
  readonly owner: BoxOwner;
  /** When its event loop last turned, milliseconds since 1970; 250 ms apart. */
  readonly beatMs: number;
  readonly records: readonly BoxRecord[];
}

/** The boxes of a run's processes in the order of their start; none where there are none. Files of other kinds are passed over. */
export async function readBlackBoxes(runFolder: string): Promise<ReadBox[]> {
  const folder = join(runFolder, BLACK_BOX_FOLDER);
  const names = await readdir(folder).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  });
  const boxes: ReadBox[] = [];
  for (const name of names.filter((each) => each.endsWith(BOX_SUFFIX))) {
    const path = join(folder, name);
    if ((await stat(path)).size !== BOX_BYTES) continue;
    const bytes = await readFile(path);
    const owner = decodeOwner(bytes);
    if (owner === undefined) continue;
    const records: BoxRecord[] = [];
    for (let offset = HEADER_BYTES; offset < bytes.length; offset += RECORD_BYTES) {
      const record = decodeRecord(bytes.subarray(offset, offset + RECORD_BYTES));
      if (record !== undefined) records.push(record);
    }
    records.sort((a, b) => a.number - b.number);
    boxes.push({ owner, beatMs: bytes.readDoubleLE(BEAT_OFFSET), records });
  }
  return boxes.sort((a, b) => a.owner.openedMs - b.owner.openedMs);
}
