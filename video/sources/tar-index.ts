/**
 * The members of a tar file by its headers alone, so that a large shard costs a small part of its bytes. Reads ustar,
 * pax and GNU long names. Source: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
 */
import { DataError } from '../index/sample-index.ts';
import type { Store, StoredFile } from '../storage/store.ts';
import { openReadAhead, type ReadAhead } from './read-ahead.ts';

export interface TarMember {
  /** As it is written in the tar, untrusted: a key, never a path to write to. */
  readonly name: string;
  /** Where its bytes begin in the tar. */
  readonly offset: number;
  readonly sizeBytes: number;
  readonly type: 'file' | 'folder' | 'link' | 'device' | 'sparse' | 'unknown';
}

const BLOCK = 512;
/** Pax headers and long names larger than this are no names. */
const MAX_NAME_BYTES = 2 ** 20;

/** A tar that cannot be read from `offset` on. */
export class DamagedTar extends DataError {
  readonly offset: number;
  /** The member that is not whole, where it is known. */
  readonly member: string | undefined;

  constructor(
    code: 'TAR_DAMAGED' | 'TAR_TRUNCATED',
    message: string,
    offset: number,
    member?: string,
  ) {
    super(code, message);
    this.offset = offset;
    this.member = member;
  }
}

/**
 * The members in their order, all of whose bytes are there.
 * @throws DamagedTar TAR_DAMAGED at a header that is none, TAR_TRUNCATED at a member that is not whole or at an end
 *   without its mark, both after the members before; StorageError
 */
export async function* tarMembers(
  store: Store,
  file: StoredFile,
  options: { readonly bytes?: ReadAhead; readonly signal?: AbortSignal | undefined } = {},
): AsyncGenerator<TarMember> {
  const bytes = options.bytes ?? openReadAhead(store, file, options.signal);
  const { path, sizeBytes: end } = file;
  // What a header of its own says about the next member, and pax says about all that follow.
  const global = new Map<string, string>();
  let own = new Map<string, string>();

  for (let at = 0; ;) {
    if (at + BLOCK > end) throw truncated(path, at, 'the end mark is missing');
    const block = Buffer.from(await bytes.read(at, BLOCK));
    if (block.every((byte) => byte === 0)) return;
    if (!isHeader(block)) throw damaged(path, at, 'there is no tar header where one must be');
    const type = String.fromCharCode(block[156]!);
    const written = numberOf(block.subarray(124, 136));
    const told = own.get('size') ?? global.get('size');
    const isName = 'LKxg'.includes(type);
    const size = told === undefined || isName ? written : wholeNumber(told);
    const name = nameOf(block, own, global);
    if (size === undefined) throw damaged(path, at, `the size of ${name} cannot be read`);
    const offset = at + BLOCK;
    // Links, folders and devices have no bytes, whatever their size says.
    const numBytes = '123456'.includes(type) ? 0 : size;
    if (offset + numBytes > end)
      throw truncated(path, at, `${name} is not whole`, isName ? undefined : name);

    let start = offset;
    if (isName) {
      if (size > MAX_NAME_BYTES) throw damaged(path, at, `a name of ${size} bytes is none`);
      const text = await bytes.read(offset, size);
      if (type === 'L') own.set('path', cString(text));
      else if (type !== 'K' && !readPax(text, type === 'g' ? global : own)) {
        throw damaged(path, at, 'a pax header cannot be read');
      }
    } else {
      const isSparse = type === 'S' || [...own.keys()].some((key) => key.startsWith('GNU.sparse.'));
      // A sparse map that did not fit into an old GNU header follows it, before the bytes.
      if (type === 'S') start += BLOCK * (await countSparseBlocks(block, bytes, offset, end));
      if (start + numBytes > end) throw truncated(path, at, `${name} is not whole`, name);
      yield {
        name,
        offset: start,
        sizeBytes: numBytes,
        type: isSparse ? 'sparse' : typeOf(type, name),
      };
      own = new Map();
    }
    at = start + Math.ceil(numBytes / BLOCK) * BLOCK;
  }
}

function typeOf(type: string, name: string): TarMember['type'] {
  switch (type) {
    case '\0':
      return name.endsWith('/') ? 'folder' : 'file';
    case '0':
    case '7':
      return 'file';
    case '1':
    case '2':
      return 'link';
    case '3':
    case '4':
    case '6':
      return 'device';
    case '5':
      return 'folder';
    default:
      return 'unknown';
  }
}

/** By its checksum, over unsigned or, in old tars, signed bytes. */
function isHeader(block: Buffer): boolean {
  const told = numberOf(block.subarray(148, 156));
  let [unsigned, signed] = [0, 0];
  for (let i = 0; i < BLOCK; i++) {
    const byte = i >= 148 && i < 156 ? 0x20 : block[i]!;
    unsigned += byte;
    signed += byte < 128 ? byte : byte - 256;
  }
  return told === unsigned || told === signed;
}

/** Octal, or base 256 where the first bit is set; undefined where it is neither or not exact as a number. */
function numberOf(field: Buffer): number | undefined {
  if (field[0]! & 0x80) {
    if (field[0] !== 0x80) return undefined; // negative, or larger than any file
    const value = field.subarray(1).reduce((sum, byte) => sum * 256 + byte, 0);
    return Number.isSafeInteger(value) ? value : undefined;
  }
  const digits = cString(field).trim();
  return /^[0-7]+$/.test(digits) ? Number.parseInt(digits, 8) : digits === '' ? 0 : undefined;
}

function wholeNumber(text: string): number | undefined {
  const value = /^\d+$/.test(text) ? Number(text) : NaN;
  return Number.isSafeInteger(value) ? value : undefined;
}

function nameOf(
  block: Buffer,
  own: ReadonlyMap<string, string>,
  global: ReadonlyMap<string, string>,
): string {
  const told = own.get('GNU.sparse.name') ?? own.get('path') ?? global.get('path');
  if (told !== undefined) return told;
  const name = cString(block.subarray(0, 100));
  // GNU's own magic has a space: it keeps times where POSIX has the prefix.
  const isPosix = block.toString('latin1', 257, 263) === 'ustar\0';
  const prefix = isPosix ? cString(block.subarray(345, 500)) : '';
  return prefix === '' ? name : `${prefix}/${name}`;
}

function cString(field: Uint8Array): string {
  const end = field.indexOf(0);
  return new TextDecoder().decode(end === -1 ? field : field.subarray(0, end));
}

/** `length key=value\n` one after the other; whether all could be read. */
function readPax(text: Uint8Array, into: Map<string, string>): boolean {
  const bytes = Buffer.from(text);
  for (let at = 0; at < bytes.length && bytes[at] !== 0;) {
    const space = bytes.indexOf(0x20, at);
    const length = space === -1 ? undefined : wholeNumber(bytes.toString('latin1', at, space));
    if (length === undefined || length <= space - at + 1 || at + length > bytes.length)
      return false;
    const equals = bytes.indexOf(0x3d, space);
    if (equals === -1 || equals >= at + length) return false;
    const key = bytes.toString('utf8', space + 1, equals);
    into.set(key, bytes.toString('utf8', equals + 1, at + length - 1));
    at += length;
  }
  return true;
}

async function countSparseBlocks(
  header: Buffer,
  bytes: ReadAhead,
  offset: number,
  end: number,
): Promise<number> {
  let count = 0;
  for (let more = header[482] === 1; more && offset + (count + 1) * BLOCK <= end; count++) {
    more = (await bytes.read(offset + count * BLOCK, BLOCK))[504] === 1;
  }
  return count;
}

function truncated(path: string, offset: number, what: string, member?: string): DamagedTar {
  const message = `${path} was cut short: ${what} (header at byte ${offset}); fetch the shard again`;
  return new DamagedTar('TAR_TRUNCATED', message, offset, member);
}

function damaged(path: string, offset: number, what: string): DamagedTar {
  const message = `${path} is damaged: ${what} (byte ${offset}); fetch the shard again`;
  return new DamagedTar('TAR_DAMAGED', message, offset);
}
