/**
 * Memory that processes of one host share, mapped into the middle of a buffer that a process has already: that is how
 * WebAssembly, which sees one buffer only, adds what other processes wrote. It has no name, only descriptors, and ends
 * with the last process that maps it, however that process ended. Linux alone. Source: memfd_create(2), mmap(2).
 */
import { closeSync, fstatSync, openSync, readFileSync, readlinkSync, readSync } from 'node:fs';
import { koffi } from '../../proto/koffi.ts';
import { createSharedMemory } from '../../video/decode/shared-memory.ts';

/** Mapped parts begin and end at multiples of this: pages are 4, 16 or 64 KiB. */
export const PAGE_BYTES = 65_536;

const [READ, READ_AND_WRITE] = [1, 3];
const [SHARED, PRIVATE, FIXED, ANONYMOUS, NO_RESERVE, POPULATE] = [
  0x1, 0x2, 0x10, 0x20, 0x4000, 0x8000,
];

export { createSharedMemory };

/** What another process needs to find a piece of shared memory, and to know that it is this one. */
export interface SharedMemoryName {
  readonly processId: number;
  readonly descriptor: number;
  readonly sizeBytes: number;
  /** Random u32, which the memory holds at `tokenOffset`. */
  readonly token: Uint32Array;
}

/**
 * The descriptor of another process's memory; undefined where it cannot be reached (another host, container or user) or
 * is not what the name says.
 * @param tokenOffset where the memory holds the token, bytes
 */
export function openSharedMemory(
  { processId, descriptor, sizeBytes, token }: SharedMemoryName,
  { tokenOffset, writable = false }: { tokenOffset: number; writable?: boolean },
): number | undefined {
  let opened: number | undefined;
  const path = `/proc/${processId}/fd/${descriptor}`;
  try {
    // Opening what is no memory could have effects of its own.
    if (!readlinkSync(path).startsWith('/memfd:')) return undefined;
    opened = openSync(path, writable ? 'r+' : 'r');
    const found = new Uint32Array(token.length);
    const stats = fstatSync(opened);
    if (stats.isFile() && stats.size === sizeBytes) {
      readSync(opened, found, 0, found.byteLength, tokenOffset);
      if (token.every((value, at) => value === found[at])) return opened;
    }
  } catch {
    // Not there, or not for us: the sockets remain.
  }
  if (opened !== undefined) closeSync(opened);
  return undefined;
}

/** Tells the running systems of hosts apart, as a number; 0 where that cannot be told. */
export function systemId(): number {
  try {
    const id = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').replaceAll('-', '');
    return Number.parseInt(id.slice(0, 13), 16); // 52 bits
  } catch {
    return 0;
  }
}

/** Puts shared memory in the place of `target`'s pages, and has the kernel find all of them now. Answers whether it did. */
export function mapOver(
  target: Uint8Array,
  { descriptor, offset, writable }: { descriptor: number; offset: number; writable: boolean },
): boolean {
  const flags = SHARED | FIXED | (writable ? 0 : POPULATE);
  return map(target, writable ? READ_AND_WRITE : READ, flags, descriptor, offset);
}

/** Puts fresh zeros in the place of `target`'s pages, which frees what was there. */
export function unmapFrom(target: Uint8Array): void {
  map(target, READ_AND_WRITE, PRIVATE | FIXED | ANONYMOUS | NO_RESERVE, -1, 0);
}

type Map = (
  address: Uint8Array,
  sizeBytes: number,
  protection: number,
  flags: number,
  descriptor: number,
  offset: number,
) => number | bigint;

let loaded: { readonly library: unknown; readonly mmap: Map } | undefined;

function map(
  target: Uint8Array,
  protection: number,
  flags: number,
  descriptor: number,
  offset: number,
): boolean {
  if (loaded === undefined) {
    const library = koffi.load(null); // koffi unloads a library that nothing refers to
    const mmap = library.func(
      'intptr_t mmap(void *address, size_t size, int protection, int flags, int descriptor, int64_t offset)',
    ) as Map;
    loaded = { library, mmap };
  }
  const size = target.byteLength;
  return Number(loaded.mmap(target, size, protection, flags, descriptor, offset)) !== -1;
}
