/** The thread of `file-writer.ts`: takes ranges of memory, writes and hashes them, and makes the file durable. */
import { createHash, type Hash } from 'node:crypto';
import { open, rename, rm, type FileHandle } from 'node:fs/promises';
import { parentPort } from 'node:worker_threads';
import type { FileAnswer, FileCommand } from './file-writer.ts';
import { bytesOf } from './memory-range.ts';

/** As much is written with one call, and hashed meanwhile. */
const WRITE_BYTES = 4 << 20;
/** As much may wait in the page cache before the disk is told to begin. */
const SYNC_BYTES = 64 << 20;

interface OpenFile {
  readonly path: string;
  readonly temporary: string;
  readonly handle: FileHandle;
  readonly hash: Hash;
  sizeBytes: number;
  /** Bytes since the disk was last told. */
  unsyncedBytes: number;
  /** What the disk has been told to take. */
  syncing: Promise<void>;
}

let file: OpenFile | undefined;
let turn: Promise<void> = Promise.resolve();

parentPort!.on('message', (command: FileCommand) => {
  turn = turn.then(async () => {
    let answer: FileAnswer;
    try {
      answer = { id: command.id, ...(await perform(command)) };
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      answer = { id: command.id, failure: { code, message } };
    }
    parentPort!.postMessage(answer);
  });
});

async function perform(command: FileCommand): Promise<Omit<FileAnswer, 'id'>> {
  switch (command.type) {
    case 'open': {
      const { path } = command;
      const temporary = `${path}.tmp-${process.pid}`;
      const handle = await open(temporary, 'w', 0o644);
      const hash = createHash('sha256');
      const syncing = Promise.resolve();
      file = { path, temporary, handle, hash, sizeBytes: 0, unsyncedBytes: 0, syncing };
      return {};
    }
    case 'append':
      for (const batch of batchesOf(command.ranges.map(bytesOf))) await append(file!, batch);
      return {};
    case 'finish': {
      const { path, temporary, handle, hash, sizeBytes, syncing } = file!;
      await syncing;
      await handle.sync();
      await handle.close();
      await rename(temporary, path);
      file = undefined;
      return { saved: { sizeBytes, sha256: hash.digest('hex') } };
    }
    case 'abandon': {
      if (file === undefined) return {};
      const { temporary, handle, syncing } = file;
      file = undefined;
      await syncing.catch(() => undefined); // it is given up anyway
      await handle.close().catch(() => undefined); // closed already where the rename failed
      await rm(temporary, { force: true });
      return {};
    }
  }
}

async function append(to: OpenFile, batch: readonly Uint8Array[]): Promise<void> {
  const written = writeAll(to.handle, batch);
  written.catch(() => undefined); // told below, once the hash has gone through
  for (const bytes of batch) {
    to.hash.update(bytes); // while another thread writes
    to.sizeBytes += bytes.byteLength;
    to.unsyncedBytes += bytes.byteLength;
  }
  await written;
  if (to.unsyncedBytes < SYNC_BYTES) return;
  // One at a time: what the disk has not taken then bounds what waits for it.
  await to.syncing;
  to.unsyncedBytes = 0;
  to.syncing = to.handle.datasync();
  to.syncing.catch(() => undefined); // told by whoever waits for it
}

/** A full disk shows as a short write first, and as an error with the next. */
async function writeAll(handle: FileHandle, batch: readonly Uint8Array[]): Promise<void> {
  for (let rest = [...batch]; rest.length > 0;) {
    let { bytesWritten } = await handle.writev(rest);
    while (rest.length > 0 && bytesWritten >= rest[0]!.byteLength)
      bytesWritten -= rest.shift()!.byteLength;
    if (rest.length > 0) rest = [rest[0]!.subarray(bytesWritten), ...rest.slice(1)];
  }
}

/** Models have many tensors of a few hundred bytes and some of many megabytes: pieces of equal size of both. */
function* batchesOf(all: readonly Uint8Array[]): Generator<Uint8Array[]> {
  let batch: Uint8Array[] = [];
  let batchBytes = 0;
  for (const bytes of all) {
    for (let start = 0; start < bytes.byteLength;) {
      const piece = bytes.subarray(start, start + WRITE_BYTES - batchBytes);
      batch.push(piece);
      batchBytes += piece.byteLength;
      start += piece.byteLength;
      if (batchBytes < WRITE_BYTES) continue;
      yield batch;
      [batch, batchBytes] = [[], 0];
    }
  }
  if (batchBytes > 0) yield batch;
}
