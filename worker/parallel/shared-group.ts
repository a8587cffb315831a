/**
 * Workers of one host that see each other's gradients. Each maps its own slice of the others' blocks to read, and one
 * vector, which lies in the memory of rank 0, to write its slice of the sum into.
 *
 * A generation begins with fresh memory on every worker (`VectorMemory.renew`), and what is mapped here is of that
 * generation alone. A worker that was left behind, stopped in the middle of a sum, still writes where it did: into memory
 * that nobody reads any more. The memory has no name and goes with the last process that maps it.
 */
import { closeSync } from 'node:fs';
import { openSharedMemory, systemId } from './host-memory.ts';
import { MeshError } from './mesh-errors.ts';
import { TOKEN_OFFSET, type VectorMemory } from './vector-memory.ts';

export interface SharedGroupOptions {
  readonly rank: number;
  readonly memory: VectorMemory;
  /** In the memory; that of rank 0 serves all. */
  readonly result: Float32Array;
  /** Of the result and of every block, what this worker adds. */
  readonly slice: { readonly start: number; readonly end: number };
  /** Everybody's values, by rank. */
  readonly gather: (name: string, values: Float64Array) => Promise<Float64Array[]>;
}

const BYTES = Float32Array.BYTES_PER_ELEMENT;

/**
 * Opens the memories of all members, if every member can do so with every other; else undefined, on all of them.
 * @throws {MeshError} as `gather` does
 */
export async function openSharedGroup(
  options: SharedGroupOptions,
): Promise<SharedGroup | undefined> {
  const { memory, result, gather, rank } = options;
  const offset = memory.offsetOf(result);
  const name = memory.shared;
  const own =
    name === undefined || offset === undefined
      ? []
      : [systemId(), name.processId, name.descriptor, name.sizeBytes, offset, ...name.token];
  const said = await gather('memories', Float64Array.from(own));
  if (said.some(({ length }) => length === 0)) return undefined;
  const descriptors = said.map((values, of) => (of === rank ? undefined : open(values)));
  const offsets = said.map((values) => values[4]!);
  const group = new SharedGroup(options, descriptors, offsets[0]!);
  let isUsed = false;
  try {
    const all = await gather('memories open', Float64Array.of(group.isComplete ? 1 : 0));
    isUsed = all.every(([complete]) => complete === 1);
    return isUsed ? group : undefined;
  } finally {
    if (!isUsed) group.close();
  }
}

function open(said: Float64Array): number | undefined {
  const [system, processId, descriptor, sizeBytes] = said as unknown as number[];
  const token = Uint32Array.from(said.subarray(5));
  if (system === 0 || system !== systemId()) return undefined;
  return openSharedMemory(
    { processId: processId!, descriptor: descriptor!, sizeBytes: sizeBytes!, token },
    { tokenOffset: TOKEN_OFFSET, writable: true },
  );
}

/** Windows onto the memories of a generation's members. */
export class SharedGroup {
  /** The sum, which every member sees. */
  readonly result: Float32Array;
  /** Whether everything is mapped that is needed by now. */
  readonly isComplete: boolean;
  readonly #options: SharedGroupOptions;
  /** By rank; undefined at this worker's own. */
  readonly #descriptors: readonly (number | undefined)[];
  /** By rank and place of the block there. */
  readonly #windows = new Map<string, Float32Array>();
  #closed = false;

  constructor(
    options: SharedGroupOptions,
    descriptors: readonly (number | undefined)[],
    resultOffset: number,
  ) {
    const { rank, memory, result } = options;
    this.#options = options;
    this.#descriptors = descriptors;
    const numElements = result.length;
    const place = { offset: resultOffset, numElements, writable: true };
    const first = descriptors[0];
    const shared =
      rank === 0 ? result : first === undefined ? undefined : memory.mapWindow(first, place);
    this.result = shared ?? result;
    this.isComplete =
      shared !== undefined && descriptors.every((it, of) => of === rank || it !== undefined);
  }

  /**
   * This worker's slice of another's block.
   * @param offset of the whole block in the other's memory, bytes
   * @throws {MeshError} NO_SHARED_MEMORY when it cannot be mapped
   */
  sliceOf(rank: number, offset: number): Float32Array {
    const { memory, slice } = this.#options;
    const key = `${rank}/${offset}`;
    let window = this.#windows.get(key);
    if (window === undefined) {
      window = memory.mapWindow(this.#descriptors[rank]!, {
        offset: offset + BYTES * slice.start,
        numElements: slice.end - slice.start,
        writable: false,
      });
      if (window === undefined) {
        throw new MeshError(
          'NO_SHARED_MEMORY',
          `the gradient of rank ${rank} at ${offset} cannot be mapped: is a limit on this process's address space or on ` +
            'its mappings (vm.max_map_count) too low? cluster.sharedMemory: false does without',
          { rank },
        );
      }
      this.#windows.set(key, window);
    }
    return window;
  }

  /** Lets go the others' memories, not the windows: `VectorMemory.renew` does that, once nobody reads the result. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const descriptor of this.#descriptors) if (descriptor !== undefined) closeSync(descriptor);
  }
}
