/**
 * A thread of `file-writer.ts`: takes ranges of memory, writes and hashes them, and makes the file durable.
 *
 * The bytes go through two blocks: one is written while the other is filled and hashed. Where the file system takes it,
 * blocks go to the disk past the page cache (O_DIRECT): a checkpoint is not read again soon, would push out what is, and
 * an fsync would only then begin to write it.
 */
import { createHash, type Hash } from 'node:crypto';
import { constants } from 'node:fs';
import { open, rename, rm, type FileHandle } from 'node:fs/promises';
import { parentPort } from 'node:worker_threads';
import { exists } from '../../proto/exists.ts';
import type { FileAnswer, FileCommand } from './file-writer.ts';
import { bytesOf, rangeOf } from './memory-range.ts';

/** As much is written with one call, and hashed meanwhile. */
const BLOCK_BYTES = 4 << 20;
/** What memory, places and lengths of direct writes are multiples of; disks ask for 512 or 4096. */
const ALIGNMENT = 4096;
/** Where writes are not direct: as much may wait in the page cache before the disk is told to begin. */
const SYNC_BYTES = 64 << 20;

interface OpenFile {
  readonly path: string;
  readonly temporary: string;
  handle: FileHandle;
  isDirect: boolean;
  readonly hash: Hash;
  /** Bytes in blocks that were filled. */
  sizeBytes: number;
  /** Of the block that is being filled. */
  filledBytes: number;
  /** The block before it. */
  writing: Promise<void>;
  /** Bytes since the disk was last told. */
  unsyncedBytes: number;
  /** What the disk has been told to take. */
  syncing: Promise<void>;
}

/** The one that is being filled first. */
let blocks: [Buffer, Buffer] | undefined;
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
      blocks ??= [alignedBlock(), alignedBlock()];
      file = {
        ...{ path, temporary, ...(await create(temporary)) },
        ...{ hash: createHash('sha256'), sizeBytes: 0, filledBytes: 0 },
        ...{ writing: Promise.resolve(), unsyncedBytes: 0, syncing: Promise.resolve() },
      };
      return {};
    }
    case 'append':
      for (const range of command.ranges) await append(file!, bytesOf(range));
      return {};
    case 'finish': {
      const { path, temporary, hash } = file!;
      const sizeBytes = file!.sizeBytes + file!.filledBytes;
      await pushBlock(file!);
      await file!.writing;
      await file!.syncing;
      // The last block was written whole.
      if (file!.isDirect) await file!.handle.truncate(sizeBytes);
      await file!.handle.sync();
      await file!.handle.close();
      const { unless } = command;
      if (unless !== undefined && (await exists(unless)))
        throw new Error(`too late for a final name: ${unless} is there`);
      await rename(temporary, path);
      file = undefined;
      return { saved: { sizeBytes, sha256: hash.digest('hex') } };
    }
    case 'abandon': {
      if (file === undefined) return {};
      const abandoned = file;
      file = undefined;
      await abandoned.writing.catch(() => undefined); // it is given up anyway
      await abandoned.syncing.catch(() => undefined);
      await abandoned.handle.close().catch(() => undefined); // closed already where the rename failed
      await rm(abandoned.temporary, { force: true });
      return {};
    }
  }
}

async function create(path: string): Promise<Pick<OpenFile, 'handle' | 'isDirect'>> {
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC;
  // Not every system has it, and not every file system takes it.
  const direct = (constants as Partial<typeof constants>).O_DIRECT;
  if (direct !== undefined) {
    try {
      return { handle: await open(path, flags | direct, 0o644), isDirect: true };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
    }
  }
  return { handle: await open(path, flags, 0o644), isDirect: false };
}

function alignedBlock(): Buffer {
  const memory = Buffer.alloc(BLOCK_BYTES + ALIGNMENT);
  const start = -Number(rangeOf(memory).address % BigInt(ALIGNMENT)) + ALIGNMENT;
  return memory.subarray(start, start + BLOCK_BYTES);
}

async function append(to: OpenFile, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.byteLength;) {
    const piece = bytes.subarray(at, at + BLOCK_BYTES - to.filledBytes);
    blocks![0].set(piece, to.filledBytes);
    to.filledBytes += piece.byteLength;
    at += piece.byteLength;
    if (to.filledBytes === BLOCK_BYTES) await pushBlock(to);
  }
}

/** Has the filled block written, hashes it meanwhile, and goes on with the other one. */
async function pushBlock(to: OpenFile): Promise<void> {
  const { filledBytes, sizeBytes } = to;
  if (filledBytes === 0) return;
  await to.writing;
  const block = blocks![0];
  to.writing = writeBlock(to, block, filledBytes, sizeBytes);
  to.writing.catch(() => undefined); // told by whoever waits for it
  to.hash.update(block.subarray(0, filledBytes)); // while another thread writes
  to.sizeBytes += filledBytes;
  to.filledBytes = 0;
  blocks!.reverse();
}

async function writeBlock(
  to: OpenFile,
  block: Buffer,
  filledBytes: number,
  position: number,
): Promise<void> {
  let at = 0;
  while (to.isDirect && at < filledBytes) {
    const end = Math.ceil(filledBytes / ALIGNMENT) * ALIGNMENT;
    try {
      const { bytesWritten } = await to.handle.write(block, at, end - at, position + at);
      // A full disk shows as a short write first, and as an error with the next.
      at += bytesWritten - (bytesWritten % ALIGNMENT);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
      await leaveDirect(to);
    }
  }
  if (to.isDirect) return;
  while (at < filledBytes)
    at += (await to.handle.write(block, at, filledBytes - at, position + at)).bytesWritten;
  to.unsyncedBytes += filledBytes;
  if (to.unsyncedBytes < SYNC_BYTES) return;
  // One at a time: what the disk has not taken then bounds what waits for it.
  await to.syncing;
  to.unsyncedBytes = 0;
  to.syncing = to.handle.datasync();
  to.syncing.catch(() => undefined); // told by whoever waits for it
}

/** The file system takes no direct write here, for one at a limit on file sizes: it goes on, or says why not. */
async function leaveDirect(to: OpenFile): Promise<void> {
  const plain = await open(to.temporary, 'r+');
  await to.handle.close();
  to.handle = plain;
  to.isDirect = false;
}
