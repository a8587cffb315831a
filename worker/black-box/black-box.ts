import { closeSync, ftruncateSync, mkdirSync, openSync, writeSync } from 'node:fs';
import { readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf } from '../../proto/errors.ts';
import type { Log } from '../../proto/log.ts';
import { lookUpProcess } from '../../proto/process-look.ts';
import {
  BEAT_OFFSET,
  BOX_BYTES,
  encodeOwner,
  encodeRecord,
  HEADER_BYTES,
  NUM_RECORDS,
  RECORD_BYTES,
  type BoxRecord,
  type RecordKind,
} from './record.ts';

/** The folder of a run with the boxes of its workers, one file a process. */
export const BLACK_BOX_FOLDER = 'blackbox';
export const BOX_SUFFIX = '.box';

const BEAT_MS = 250;
/** Boxes of one worker that are kept: those of its last processes. */
const KEPT = 4;

/** What a record has beside its kind, number and time. */
export type Entry = Partial<Pick<BoxRecord, 'generation' | 'step' | 'digest' | 'text'>>;

/**
 * The last that a worker did, in a file of fixed size. A record is with the kernel when `record` returns, so it
 * outlives a kill -9 of the process, though not a loss of power; it costs one write of 128 bytes.
 */
export interface BlackBox {
  record(kind: RecordKind, entry?: Entry): void;
  close(): void;
}

export interface BlackBoxOptions {
  readonly runFolder: string;
  readonly runId: string;
  readonly workerId: string;
  readonly host: string;
  /** See the record's owner. */
  readonly sameBitsAlways: boolean;
  readonly log: Log;
}

/** Opens the box of this process. A disk that takes none costs the box, not the run: the log says so. */
export async function openBlackBox(options: BlackBoxOptions): Promise<BlackBox> {
  const { runFolder, log, ...owner } = options;
  const folder = join(runFolder, BLACK_BOX_FOLDER);
  let descriptor: number | undefined;
  const giveUp = (error: unknown): void => {
    log.warn(`there is no black box of this process: ${messageOf(error)}`);
    if (descriptor !== undefined) closeSync(descriptor);
    descriptor = undefined;
  };
  try {
    mkdirSync(folder, { recursive: true });
    await removeOldest(folder, owner.workerId);
    const openedMs = Date.now();
    const { pid } = process;
    descriptor = openSync(join(folder, `${owner.workerId}.${openedMs}-${pid}${BOX_SUFFIX}`), 'wx');
    ftruncateSync(descriptor, BOX_BYTES);
    writeSync(
      descriptor,
      encodeOwner({ ...owner, pid, processStart: lookUpProcess(pid)?.startedAt ?? '', openedMs }),
    );
  } catch (error) {
    giveUp(error);
  }

  const slot = Buffer.alloc(RECORD_BYTES);
  const time = Buffer.alloc(8);
  let number = 0;
  const beat = (): void => {
    if (descriptor === undefined) return;
    time.writeDoubleLE(wallMs());
    writeSync(descriptor, time, 0, time.length, BEAT_OFFSET);
  };
  const timer = setInterval(() => {
    try {
      beat();
    } catch (error) {
      giveUp(error);
    }
  }, BEAT_MS);
  timer.unref();
  return {
    record(kind, { generation = 0, step = 0, digest = 0, text = '' } = {}) {
      if (descriptor === undefined) return;
      number++;
      encodeRecord(slot, { number, timeMs: wallMs(), kind, generation, step, digest, text });
      try {
        const place = (number - 1) % NUM_RECORDS;
        writeSync(descriptor, slot, 0, RECORD_BYTES, HEADER_BYTES + place * RECORD_BYTES);
      } catch (error) {
        giveUp(error);
      }
    },
    close() {
      clearInterval(timer);
      if (descriptor !== undefined) closeSync(descriptor);
      descriptor = undefined;
    },
  };
}

function wallMs(): number {
  return performance.timeOrigin + performance.now();
}

async function removeOldest(folder: string, workerId: string): Promise<void> {
  const own = (await readdir(folder)).filter(
    (name) => name.endsWith(BOX_SUFFIX) && name.replace(/\.\d+-\d+\.box$/, '') === workerId,
  );
  const aged = await Promise.all(
    own.map(async (name) => ({ name, ms: (await stat(join(folder, name))).mtimeMs })),
  );
  aged.sort((a, b) => b.ms - a.ms);
  for (const { name } of aged.slice(KEPT - 1)) await rm(join(folder, name), { force: true });
}
