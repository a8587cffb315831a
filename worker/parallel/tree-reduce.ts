/**
 * The gradient sum between workers, over sockets: reduce-scatter and all-gather in one pass, in the order of the tree.
 *
 * The vector is cut into one slice a worker. The owner of a slice receives the blocks of all others for it, adds them along
 * the tree and sends the finished slice to everybody: 2 S (W - 1) / W bytes out and in for each worker when each has one
 * block. Slices go in chunks, so that a chunk is added and sent on while the next is received. Which worker adds does not
 * matter for the bits, since addition is element by element and the tree is the same everywhere.
 */
import assert from 'node:assert/strict';
import type { MeshGeneration } from './collectives.ts';
import { FRAME_KIND, type FrameHeader } from './frame.ts';
import { MeshError } from './mesh-errors.ts';
import type { Exchange, OutgoingFrame } from './mesh.ts';
import { blocksOf, type GradientBlock, type TreeNode } from './tree-sum.ts';
import { type SumPrecision, VECTOR_PADDING_BYTES, VectorMemory } from './vector-memory.ts';
import { Wire } from './wire.ts';

/** 1 MiB of f32, the most that a frame carries: fewer system calls, and less of each is overhead. */
const MAX_CHUNK_ELEMENTS = 262_144;
const MIN_CHUNK_ELEMENTS = 16_384;
/** A slice is cut into this many chunks at least, where they stay above the minimum: what overlaps. */
const MIN_CHUNKS = 2;
/** Elements received and not yet added, of all peers together. */
const STAGING_ELEMENTS = 2 * 1024 * 1024;
/** Chunks in bfloat16 that lie in the reduction's memory; those of more peers lie outside, and are rounded slower. */
const MAX_ROUNDED_CHUNKS = 12;
/** Slices begin at a multiple of this many elements: a cache line. */
const SLICE_ALIGNMENT = 16;

/** What an all-reduce writes into; made once, used by every generation and step. */
export interface ReduceBuffers {
  readonly memory: VectorMemory;
  readonly result: Float32Array;
  /** Received and not yet added. */
  readonly staging: Float32Array;
}

/** Bytes of {@link ReduceBuffers}, and of what is rounded before it is sent. */
export function reduceBytes(numElements: number, precision: SumPrecision = 'float32'): number {
  const numRounded = precision === 'float32' ? 0 : MAX_ROUNDED_CHUNKS * (MAX_CHUNK_ELEMENTS / 2);
  const padding = (2 + MAX_ROUNDED_CHUNKS) * VECTOR_PADDING_BYTES;
  return 4 * (numElements + STAGING_ELEMENTS + numRounded) + padding;
}

/** @param options.memory where the blocks lie and {@link reduceBytes} are left; else the sums pass through a copy */
export function allocateReduceBuffers(
  numElements: number,
  {
    precision,
    memory = new VectorMemory(reduceBytes(numElements, precision)),
  }: { precision: SumPrecision; memory?: VectorMemory | undefined },
): ReduceBuffers {
  const staging = memory.allocate(STAGING_ELEMENTS);
  return { memory, staging, result: memory.allocate(numElements) };
}

/** A block of some worker. `staged` numbers those of the others, as they lie in the staging memory. */
interface Leaf extends TreeNode {
  readonly rank: number;
  /** Among the worker's own blocks. */
  readonly index: number;
  readonly staged: number | undefined;
}

type Operand = { readonly own: number } | { readonly staged: number };

/** One addition of two operands. The last one writes the result, the others onto an operand that is staged. */
interface Addition {
  readonly left: Operand;
  readonly right: Operand;
  readonly target: { readonly staged: number } | 'result';
}

/** Who sends what to whom in a generation. The same on all workers but for `rank`. */
export interface ReducePlan {
  readonly rank: number;
  readonly worldSize: number;
  readonly chunkElements: number;
  /** Chunks that a peer may be ahead of the addition. */
  readonly window: number;
  /** By rank. */
  readonly slices: readonly { readonly start: number; readonly end: number }[];
  readonly leaves: readonly (readonly Leaf[])[];
  readonly numStaged: number;
  readonly additions: readonly Addition[];
  /** The only leaf, where one worker has the whole batch. */
  readonly only: Operand | undefined;
}

/** Plans the sums of a generation over vectors of `numElements`. */
export function planReduce(
  { members }: MeshGeneration,
  rank: number,
  numElements: number,
): ReducePlan {
  const worldSize = members.length;
  let numStaged = 0;
  const leaves = members.map((member) =>
    blocksOf(member).map((node, index): Leaf => {
      const staged = member.rank === rank ? undefined : numStaged++;
      return { ...node, rank: member.rank, index, staged };
    }),
  );
  const numMicrobatches = members.reduce((sum, { numMicrobatches: count }) => sum + count, 0);
  const numBlocks = leaves.flat().length;
  const cut = (at: number) => {
    const exact = Math.floor((at * numElements) / worldSize);
    return at === worldSize ? numElements : exact - (exact % SLICE_ALIGNMENT);
  };
  const slices = members.map((_, at) => ({ start: cut(at), end: cut(at + 1) }));
  // From what all workers know alike, so that they cut alike. Two chunks of every block fit into the staging memory.
  const chunkElements = Math.min(
    MAX_CHUNK_ELEMENTS,
    Math.max(MIN_CHUNK_ELEMENTS, roundDown(numElements / worldSize / MIN_CHUNKS)),
    roundDown(STAGING_ELEMENTS / (2 * numBlocks)),
  );
  const { additions, root } = planAdditions(leaves.flat(), numMicrobatches);
  return {
    ...{ rank, worldSize, chunkElements, slices, leaves, numStaged, additions },
    window: numStaged === 0 ? 1 : Math.floor(STAGING_ELEMENTS / (numStaged * chunkElements)),
    only: additions.length === 0 ? root : undefined,
  };
}

/** The tree over all microbatches as a list of additions; children come before their parents. */
function planAdditions(
  leaves: readonly Leaf[],
  numMicrobatches: number,
): { additions: Addition[]; root: Operand } {
  const additions: Addition[] = [];
  const visit = (start: number, size: number): Operand => {
    const leaf = leaves.find((block) => block.start === start && block.size === size);
    if (leaf !== undefined) {
      return leaf.staged === undefined ? { own: leaf.index } : { staged: leaf.staged };
    }
    assert(size > 1, 'the members have all microbatches among them');
    const left = visit(start, size / 2);
    const right = visit(start + size / 2, size / 2);
    // Both cannot be own blocks: they would have been one.
    const staged = 'staged' in left ? left : right;
    assert('staged' in staged, 'sibling blocks of one worker are one block');
    additions.push({ left, right, target: size === numMicrobatches ? 'result' : staged });
    return staged;
  };
  const root = visit(0, numMicrobatches);
  return { additions, root };
}

/** To a multiple of the slices' alignment, not below it. */
function roundDown(elements: number): number {
  return Math.max(SLICE_ALIGNMENT, Math.floor(elements / SLICE_ALIGNMENT) * SLICE_ALIGNMENT);
}

/** What the exchanges of a generation use one after the other. */
export interface ReduceMeans {
  readonly buffers: ReduceBuffers;
  readonly wire: Wire;
  /** With bfloat16, blocks are rounded already. */
  readonly precision: SumPrecision;
}

export function reduceMeans(
  plan: ReducePlan,
  buffers: ReduceBuffers,
  precision: SumPrecision,
): ReduceMeans {
  const wire = new Wire(buffers.memory, precision, plan.chunkElements);
  return { buffers, precision, wire };
}

/** The exchange of one step. The sum is in `buffers.result` once it has run. */
export class ReduceExchange implements Exchange {
  /** Has the size in it, so that workers with models of different size see it by the first frame. */
  readonly name: string;
  readonly step: number;
  readonly #plan: ReducePlan;
  readonly #buffers: ReduceBuffers;
  readonly #wire: Wire;
  readonly #precision: SumPrecision;
  readonly #blocks: readonly GradientBlock[];
  /** Chunks of the own slice that are finished in the result. */
  #reduced = 0;
  readonly #numOwnChunks: number;
  /** For the oldest chunk on: staged blocks that are still missing, at chunk % window. */
  readonly #missing: Int32Array;
  /** By rank: how many parts and how many finished chunks have been handed out. */
  readonly #parts: number[];
  readonly #sums: number[];
  /** By rank: parts and finished chunks that have been placed; they come in order. */
  readonly #placedParts: number[];
  readonly #placedSums: number[];

  constructor(
    step: number,
    plan: ReducePlan,
    { buffers, wire, precision }: ReduceMeans,
    blocks: readonly GradientBlock[],
  ) {
    this.name = `${precision} gradient[${buffers.result.length}]`;
    this.step = step;
    this.#plan = plan;
    this.#buffers = buffers;
    this.#wire = wire;
    this.#precision = precision;
    this.#blocks = blocks;
    this.#numOwnChunks = this.#numChunks(plan.rank);
    this.#missing = new Int32Array(plan.window).fill(plan.numStaged);
    const zeros = (): number[] => plan.slices.map(() => 0);
    [this.#parts, this.#sums, this.#placedParts, this.#placedSums] = [
      zeros(),
      zeros(),
      zeros(),
      zeros(),
    ];
    if (plan.numStaged === 0) {
      while (this.#reduced < this.#numOwnChunks) this.#reduceNext();
    }
  }

  numOutgoing(rank: number): number {
    return this.#numParts(this.#plan.rank, rank) + this.#numOwnChunks;
  }

  numIncoming(rank: number): number {
    return this.#numParts(rank, this.#plan.rank) + this.#numChunks(rank);
  }

  /** Parts and finished chunks in turn, so that both ends have something to add and something to pass on. */
  next(rank: number): OutgoingFrame | undefined {
    const numParts = this.#numParts(this.#plan.rank, rank);
    const sums = this.#sums[rank]!;
    const parts = this.#parts[rank]!;
    const ownBlocks = this.#plan.leaves[this.#plan.rank]!.length;
    if (sums < this.#reduced && (parts === numParts || sums * ownBlocks <= parts)) {
      this.#sums[rank] = sums + 1;
      const chunk = this.#bounds(this.#plan.rank, sums);
      const payload = this.#wire.payloadOf(rank, partOf(this.#buffers.result, chunk));
      return { kind: FRAME_KIND.sum, chunk: sums, payload };
    }
    if (parts === numParts) return undefined;
    this.#parts[rank] = parts + 1;
    const chunk = this.#bounds(rank, Math.floor(parts / ownBlocks));
    const { sum } = this.#blocks[parts % ownBlocks]!;
    const payload = this.#wire.payloadOf(rank, partOf(sum, chunk));
    return { kind: FRAME_KIND.part, chunk: parts, payload };
  }

  place(rank: number, { kind, chunk, length }: FrameHeader): Uint8Array | undefined {
    const values =
      kind === FRAME_KIND.sum ? this.#placeSum(rank, chunk) : this.#placePart(rank, chunk);
    const place = values && this.#wire.placeOf(values);
    if (place !== undefined && place.length !== length) throw this.#differs(rank);
    return place;
  }

  received(rank: number, { kind, chunk }: FrameHeader): void {
    if (kind !== FRAME_KIND.part) {
      this.#wire.arrived(partOf(this.#buffers.result, this.#bounds(rank, chunk)));
      return;
    }
    const blocks = this.#plan.leaves[rank]!;
    const ownChunk = Math.floor(chunk / blocks.length);
    this.#wire.arrived(this.#staged(blocks[chunk % blocks.length]!.staged!, ownChunk));
    this.#missing[ownChunk % this.#plan.window]!--;
    while (
      this.#reduced < this.#numOwnChunks &&
      this.#missing[this.#reduced % this.#plan.window] === 0
    ) {
      this.#missing[this.#reduced % this.#plan.window] = this.#plan.numStaged;
      this.#reduceNext();
    }
  }

  #placeSum(rank: number, chunk: number): Float32Array {
    if (chunk !== this.#placedSums[rank] || chunk >= this.#numChunks(rank))
      throw this.#differs(rank);
    this.#placedSums[rank] = chunk + 1;
    return partOf(this.#buffers.result, this.#bounds(rank, chunk));
  }

  #placePart(rank: number, part: number): Float32Array | undefined {
    const blocks = this.#plan.leaves[rank]!;
    if (part !== this.#placedParts[rank] || part >= this.#numParts(rank, this.#plan.rank)) {
      throw this.#differs(rank);
    }
    const chunk = Math.floor(part / blocks.length);
    if (chunk >= this.#reduced + this.#plan.window) return undefined;
    this.#placedParts[rank] = part + 1;
    return this.#staged(blocks[part % blocks.length]!.staged!, chunk);
  }

  /** Adds the next chunk of the own slice: all blocks for it are here. */
  #reduceNext(): void {
    const { additions, only } = this.#plan;
    const { memory, result } = this.#buffers;
    const chunk = this.#reduced++;
    const bounds = this.#bounds(this.#plan.rank, chunk);
    const viewOf = (operand: Operand): Float32Array => {
      return 'own' in operand
        ? partOf(this.#blocks[operand.own]!.sum, bounds)
        : this.#staged(operand.staged, chunk);
    };
    const finished = partOf(result, bounds);
    if (only !== undefined) finished.set(viewOf(only));
    for (const { left, right, target } of additions) {
      const sum = target === 'result' ? finished : viewOf(target);
      memory.sum(this.#precision, sum, viewOf(left), viewOf(right));
    }
  }

  /** Where a staged block's part of a chunk of the own slice lies. */
  #staged(block: number, chunk: number): Float32Array {
    const { chunkElements, numStaged, window, rank } = this.#plan;
    const { start, end } = this.#bounds(rank, chunk);
    const at = ((chunk % window) * numStaged + block) * chunkElements;
    return this.#buffers.staging.subarray(at, at + end - start);
  }

  #numChunks(rank: number): number {
    const { start, end } = this.#plan.slices[rank]!;
    return Math.ceil((end - start) / this.#plan.chunkElements);
  }

  #numParts(from: number, to: number): number {
    return this.#plan.leaves[from]!.length * this.#numChunks(to);
  }

  /** Elements of a chunk of a worker's slice. */
  #bounds(rank: number, chunk: number): { start: number; end: number } {
    const { slices, chunkElements } = this.#plan;
    const start = slices[rank]!.start + chunk * chunkElements;
    return { start, end: Math.min(start + chunkElements, slices[rank]!.end) };
  }

  #differs(rank: number): MeshError {
    return new MeshError(
      'COLLECTIVE_MISMATCH',
      `rank ${rank} cuts the gradient of step ${this.step} in another way than rank ${this.#plan.rank}: ` +
        'the workers train models of different size, run them with one config',
      { rank },
    );
  }
}

function partOf(
  vector: Float32Array,
  { start, end }: { start: number; end: number },
): Float32Array {
  return vector.subarray(start, end);
}
