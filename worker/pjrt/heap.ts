/** How the heap is laid out before a program takes much of it. */
import { hasTrainingMemory } from '../../proto/memory-environment.ts';
import { koffi } from '../../proto/koffi.ts';

const GAP_BYTES = 64 * 2 ** 20;
const GUARD_BYTES = 64;

let isLeft = false;

/**
 * Leaves a gap in the heap for what others ask for while a program runs and after. malloc serves them from the smallest
 * piece that is free: without the gap from behind the program's temporary memory, which then no longer is the end of
 * the heap, or from within it, and the next run finds no room there. The gap is of addresses, its pages come with use.
 * One a process: another would be cut out of memory that a program has freed.
 */
export function leaveGap(): void {
  if (isLeft || process.platform !== 'linux' || !hasTrainingMemory(process.env)) return;
  isLeft = true;
  const { malloc, realloc, free } = bind();
  // Both are larger than what is free, so they come from the end of the heap; what is left of the second keeps the
  // first from becoming the end again.
  const gap = malloc(GAP_BYTES);
  const guard = gap === null ? null : malloc(GAP_BYTES);
  if (guard !== null) realloc(guard, GUARD_BYTES);
  if (gap !== null) free(gap);
}

function bind() {
  const libc = koffi.load(null);
  return {
    malloc: libc.func('void *malloc(size_t size)') as (size: number) => bigint | null,
    realloc: libc.func('void *realloc(void *piece, size_t size)') as (
      piece: bigint,
      size: number,
    ) => bigint | null,
    free: libc.func('void free(void *piece)') as (piece: bigint) => void,
  };
}
