/**
 * Memory that a process shares with one that it starts, behind a file descriptor: frames are decoded straight into it,
 * and nothing of them goes through a pipe. It has no name and ends with the last process that holds it. Linux alone;
 * elsewhere the pipe serves. Source: memfd_create(2), mmap(2).
 */
import { closeSync, ftruncateSync } from 'node:fs';
import { koffi } from '../../proto/koffi.ts';

const CLOSE_ON_EXEC = 1;
const READ_AND_WRITE = 3;
const SHARED = 1;
const FAILED = 0xffff_ffff_ffff_ffffn;

/**
 * Its descriptor; undefined where there is no such memory, or not as much.
 * @param name for whoever looks at a process's mappings; several may bear it
 */
export function createSharedMemory(
  sizeBytes: number,
  name = 'videoloom-frames',
): number | undefined {
  const descriptor = callsOf()?.create(name, CLOSE_ON_EXEC) ?? -1;
  if (descriptor < 0) return undefined;
  try {
    ftruncateSync(descriptor, sizeBytes); // limits on the size of files hold for it too
    return descriptor;
  } catch {
    closeSync(descriptor);
    return undefined;
  }
}

/** The first bytes of shared memory, mapped for the rest of the life of this process; undefined if that fails. */
export function mapSharedMemory(descriptor: number, sizeBytes: number): Uint8Array | undefined {
  const calls = callsOf();
  const address = calls?.map(null, sizeBytes, READ_AND_WRITE, SHARED, descriptor, 0) ?? null;
  if (calls === undefined || address === null || calls.addressOf(address) === FAILED) {
    return undefined;
  }
  return new Uint8Array(calls.view(address, sizeBytes));
}

/** Lets a descriptor go; the processes that map the memory keep it. */
export function closeSharedMemory(descriptor: number): void {
  closeSync(descriptor);
}

interface Calls {
  /** koffi unloads a library that nothing refers to. */
  readonly library: unknown;
  create(name: string, flags: number): number;
  map(
    address: null,
    sizeBytes: number,
    protection: number,
    flags: number,
    descriptor: number,
    offset: number,
  ): unknown;
  addressOf(pointer: unknown): bigint;
  view(pointer: unknown, sizeBytes: number): ArrayBuffer;
}

let loaded: Calls | null | undefined;

function callsOf(): Calls | undefined {
  if (loaded === undefined) loaded = load();
  return loaded ?? undefined;
}

function load(): Calls | null {
  if (process.platform !== 'linux') return null;
  try {
    const library = koffi.load(null);
    return {
      library,
      create: library.func(
        'int memfd_create(const char *name, unsigned int flags)',
      ) as Calls['create'],
      map: library.func(
        'void *mmap(void *address, size_t size, int protection, int flags, int descriptor, int64_t offset)',
      ) as Calls['map'],
      addressOf: (pointer) => koffi.address(pointer),
      view: (pointer, sizeBytes) => koffi.view(pointer, sizeBytes),
    };
  } catch {
    return null;
  }
}
