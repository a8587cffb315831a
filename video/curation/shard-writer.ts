import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, rm, type FileHandle } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import { pack, type Pack } from 'tar-stream';
import { partOf, publish } from './part-file.ts';
import type { MediaPlace } from '../decode/media-place.ts';
import type { ByteRange } from '../storage/store.ts';

const BLOCK = 512;
const END_MARK_BYTES = 2 * BLOCK;
/** Longer names, and larger numbers, would need headers of their own. */
const MAX_NAME_CHARACTERS = 100;

/** What a finished shard is. */
export interface WrittenShard {
  readonly sizeBytes: number;
  readonly sha256: string;
}

/** Bytes in memory, or a file or a part of one. */
export type MemberContent = Uint8Array | (MediaPlace & { readonly sizeBytes: number });

/** How many bytes of a shard these members are. */
export function tarBytes(sizes: readonly number[]): number {
  return sizes.reduce((sum, size) => sum + BLOCK + paddedSize(size), 0);
}

/** Begins a tar shard; it has its name once it is finished. */
export async function openShardWriter(file: string): Promise<ShardWriter> {
  const part = partOf(file);
  return new ShardWriter(file, part, await open(part, 'w', 0o644));
}

/** A tar file whose bytes depend on its members alone: no owners, no times. */
export class ShardWriter {
  readonly #file: string;
  readonly #part: string;
  readonly #handle: FileHandle;
  readonly #pack: Pack = pack();
  readonly #hash = createHash('sha256');
  readonly #written: Promise<void>;
  #fault: unknown;
  #sizeBytes = 0;

  constructor(file: string, part: string, handle: FileHandle) {
    this.#file = file;
    this.#part = part;
    this.#handle = handle;
    this.#written = this.#write().catch((error: unknown) => {
      this.#fault = error;
      this.#pack.destroy(error as Error); // whoever waits to add a member learns of it
    });
  }

  /** Of the shard if it were finished now. */
  get sizeBytes(): number {
    return this.#sizeBytes + END_MARK_BYTES;
  }

  /** Adds a member and gives where its bytes are. */
  async add(name: string, content: MemberContent): Promise<ByteRange> {
    assert(name.length <= MAX_NAME_CHARACTERS, `${name} is too long a name`);
    const isInMemory = content instanceof Uint8Array;
    const sizeBytes = isInMemory ? content.length : content.sizeBytes;
    const header = {
      ...{ name, size: sizeBytes, type: 'file' as const, mode: 0o644 },
      ...{ mtime: new Date(0), uid: 0, gid: 0, uname: '', gname: '' },
    };
    try {
      if (isInMemory) await this.#addBytes(header, content);
      else await pipeline(streamOf(content), this.#pack.entry(header));
    } catch (error) {
      // Either side takes the other down; what happened to the file is the reason.
      await this.#written;
      throw this.#fault ?? error;
    }
    const offset = this.#sizeBytes + BLOCK;
    this.#sizeBytes += BLOCK + paddedSize(sizeBytes);
    return { offset, sizeBytes };
  }

  /** Ends the shard, flushes it and gives it its name. */
  async finish(): Promise<WrittenShard> {
    this.#pack.finalize();
    await this.#written;
    if (this.#fault !== undefined) throw this.#fault as Error;
    const sha256 = this.#hash.digest('hex');
    const sizeBytes = await publish(this.#part, this.#file);
    assert(sizeBytes === this.sizeBytes, `${this.#file} has ${sizeBytes} bytes`);
    return { sizeBytes, sha256 };
  }

  /** Throws an unfinished shard away. */
  async discard(): Promise<void> {
    this.#pack.destroy();
    await this.#written;
    await rm(this.#part, { force: true });
  }

  #addBytes(header: Parameters<Pack['entry']>[0], bytes: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#pack.entry(
        header,
        Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length),
        (error) => {
          if (error) reject(error);
          else resolve();
        },
      );
    });
  }

  async #write(): Promise<void> {
    try {
      for await (const chunk of this.#pack as AsyncIterable<Buffer>) {
        this.#hash.update(chunk);
        for (let at = 0; at < chunk.length;) {
          at += (await this.#handle.write(chunk, at)).bytesWritten;
        }
      }
    } finally {
      await this.#handle.close();
    }
  }
}

function streamOf({ path, range }: MediaPlace): NodeJS.ReadableStream {
  const part =
    range === undefined ? {} : { start: range.offset, end: range.offset + range.sizeBytes - 1 };
  return createReadStream(path, { highWaterMark: 2 ** 20, ...part });
}

function paddedSize(sizeBytes: number): number {
  return Math.ceil(sizeBytes / BLOCK) * BLOCK;
}
