/**
 * The gradient sum round a ring: each worker sends to the next alone, W - 1 times a slice of sums so far, then W - 1 times
 * a finished slice. As many bytes as the tree takes (2 S (W - 1) / W out and in), but over one connection a worker instead
 * of W - 1. The order of addition follows the ranks, so the bits are the same for every run with as many workers, and
 * others for another number. Source: Patarasu and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002, sec. 4.
 */
import { FRAME_KIND, type FrameHeader } from './frame.ts';
import { MeshError } from './mesh-errors.ts';
import type { Exchange, OutgoingFrame } from './mesh.ts';
import type { GradientBlock } from './tree-sum.ts';
import type { SumPrecision, VectorMemory } from './vector-memory.ts';
import { Wire } from './wire.ts';

/** 512 KiB of f32: what overlaps with the addition. */
const CHUNK_ELEMENTS = 131_072;
const SLICE_ALIGNMENT = 16;

/** What does not change from step to step. */
export class RingPlan {
  readonly rank: number;
  readonly worldSize: number;
  readonly result: Float32Array;
  readonly memory: VectorMemory;
  readonly precision: SumPrecision;
  readonly wire: Wire;
  /** By rank. */
  readonly slices: readonly { readonly start: number; readonly end: number }[];

  constructor(
    { rank, worldSize }: { rank: number; worldSize: number },
    {
      memory,
      result,
      precision,
    }: { memory: VectorMemory; result: Float32Array; precision: SumPrecision },
  ) {
    [this.rank, this.worldSize, this.precision] = [rank, worldSize, precision];
    [this.memory, this.result] = [memory, result];
    this.wire = new Wire(memory, precision, CHUNK_ELEMENTS);
    const cut = (at: number): number => {
      const exact = Math.floor((at * result.length) / worldSize);
      return at === worldSize ? result.length : exact - (exact % SLICE_ALIGNMENT);
    };
    this.slices = Array.from({ length: worldSize }, (_, at) => ({
      start: cut(at),
      end: cut(at + 1),
    }));
  }

  numChunks(slice: number): number {
    const { start, end } = this.slices[slice]!;
    return Math.ceil((end - start) / CHUNK_ELEMENTS);
  }

  chunkOf(vector: Float32Array, slice: number, chunk: number): Float32Array {
    const { start, end } = this.slices[slice]!;
    const at = start + chunk * CHUNK_ELEMENTS;
    return vector.subarray(at, Math.min(at + CHUNK_ELEMENTS, end));
  }
}

/** One chunk on its way from a worker to the next. */
interface Hop {
  readonly slice: number;
  readonly chunk: number;
  /** A sum so far, or one that is finished. */
  readonly isPartial: boolean;
}

/** The exchange of one step. The sum is in the plan's result once it has run. */
export class RingReduceExchange implements Exchange {
  readonly name: string;
  readonly step: number;
  /** Nobody's part is left out, and who is gone should be named by all, not the neighbours that left because of it. */
  readonly needsEveryone = true;
  readonly #plan: RingPlan;
  /** The sum of the own microbatches; undefined for a worker without any. */
  readonly #own: Float32Array | undefined;
  readonly #outgoing: readonly Hop[];
  readonly #incoming: readonly Hop[];
  #numSent = 0;
  #numPlaced = 0;
  #numReceived = 0;

  /** @param blocks are added up in the first of them */
  constructor(step: number, plan: RingPlan, blocks: readonly GradientBlock[]) {
    const { rank, worldSize, memory, precision, result } = plan;
    this.name = `ring gradient[${result.length}]`;
    this.step = step;
    this.#plan = plan;
    for (const { sum } of blocks.slice(1)) {
      memory.sum(precision, blocks[0]!.sum, blocks[0]!.sum, sum);
    }
    this.#own = blocks[0]?.sum;
    this.#outgoing = hopsFrom(plan, rank);
    this.#incoming = hopsFrom(plan, (rank + worldSize - 1) % worldSize);
  }

  numOutgoing(rank: number): number {
    const { rank: own, worldSize } = this.#plan;
    return rank === (own + 1) % worldSize ? this.#outgoing.length : 0;
  }

  numIncoming(rank: number): number {
    const { rank: own, worldSize } = this.#plan;
    return rank === (own + worldSize - 1) % worldSize ? this.#incoming.length : 0;
  }

  next(rank: number): OutgoingFrame | undefined {
    const { worldSize, result, wire } = this.#plan;
    const at = this.#numSent;
    const hop = this.#outgoing[at]!;
    // The first round is the own gradient; every other sends on what the round before has brought.
    const firstRound = this.#plan.numChunks(this.#plan.rank);
    if (at >= firstRound && this.#numReceived <= at - firstRound) return undefined;
    this.#numSent++;
    const kind = hop.isPartial ? FRAME_KIND.part : FRAME_KIND.sum;
    const isOwn = at < firstRound && worldSize > 1;
    const values = this.#plan.chunkOf(
      isOwn && this.#own !== undefined ? this.#own : result,
      hop.slice,
      hop.chunk,
    );
    if (isOwn && this.#own === undefined) values.fill(0);
    return { kind, chunk: at, payload: wire.payloadOf(rank, values) };
  }

  place(rank: number, { kind, chunk, length }: FrameHeader): Uint8Array {
    const hop = this.#incoming[this.#numPlaced];
    const target = hop && this.#plan.wire.placeOf(this.#received(hop));
    const expected = hop?.isPartial === true ? FRAME_KIND.part : FRAME_KIND.sum;
    if (target?.length !== length || chunk !== this.#numPlaced || kind !== expected) {
      throw new MeshError(
        'COLLECTIVE_MISMATCH',
        `rank ${rank} cuts the gradient of step ${this.step} in another way than rank ${this.#plan.rank}: ` +
          'the workers train models of different size, run them with one config',
        { rank },
      );
    }
    this.#numPlaced++;
    return target;
  }

  received(_rank: number, { chunk }: FrameHeader): void {
    const { wire, memory, precision } = this.#plan;
    const hop = this.#incoming[chunk]!;
    const values = this.#received(hop);
    wire.arrived(values);
    if (hop.isPartial && this.#own !== undefined) {
      const own = this.#plan.chunkOf(this.#own, hop.slice, hop.chunk);
      memory.sum(precision, values, values, own);
    }
    this.#numReceived++;
  }

  #received({ slice, chunk }: Hop): Float32Array {
    return this.#plan.chunkOf(this.#plan.result, slice, chunk);
  }
}

/** What a worker sends, in order: its own slice first, at each round the slice that the round before has brought. */
function hopsFrom(plan: RingPlan, rank: number): Hop[] {
  const { worldSize } = plan;
  const hops: Hop[] = [];
  for (let round = 0; round < 2 * (worldSize - 1); round++) {
    const slice = (((rank - round) % worldSize) + worldSize) % worldSize;
    for (let chunk = 0; chunk < plan.numChunks(slice); chunk++) {
      hops.push({ slice, chunk, isPartial: round < worldSize - 1 });
    }
  }
  return hops;
}
