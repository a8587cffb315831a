import { koffi } from '../../proto/koffi.ts';

/** Bytes of this process's memory, which all its threads see. */
export interface MemoryRange {
  readonly address: bigint;
  readonly sizeBytes: number;
}

/** Where an array's bytes lie. The array must be referred to for as long as the range is used. */
export function rangeOf(bytes: Uint8Array): MemoryRange {
  // Short arrays lie on V8's moving heap until their buffer is asked for.
  const { buffer, byteOffset, byteLength: sizeBytes } = bytes;
  if (sizeBytes === 0) return { address: 0n, sizeBytes };
  return { address: koffi.address(new Uint8Array(buffer, byteOffset, sizeBytes)), sizeBytes };
}

/** The bytes of a range, not copied. Whoever owns the memory must keep it for as long as they are used. */
export function bytesOf({ address, sizeBytes }: MemoryRange): Uint8Array {
  return sizeBytes === 0 ? new Uint8Array() : new Uint8Array(koffi.view(address, sizeBytes));
}
